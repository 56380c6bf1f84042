"""FID, IS, KID, precision and recall of a stream of samples, in one pass of the extractor, with jackknife
replicates.

They are torch-fidelity's quantities (a test holds them equal). FID and IS are computed from sums by block, so
that leaving a block out costs a subtraction; KID, precision and recall look at the first `ROWS` samples.
Memory does not grow with the number of samples, but for the few numbers a sample that some metrics of single
samples keep.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from bench.metrics import features as extractors
from bench.metrics.computed import ROWS
from bench.metrics.curved import CURVED
from bench.metrics.extractor import Extractor
from bench.metrics.jackknife import BLOCKS, Measured, require
from bench.metrics.moments import Moments
from bench.metrics.names import COMPARED, PAIRS, column, find
from bench.metrics.ngrams import NGRAMS
from bench.metrics.pairs import kid, precision_recall
from bench.metrics.points import POINTWISE
from bench.metrics.references import Reference
from bench.metrics.references import reference as reference_of
from bench.metrics.splits import Splits

if TYPE_CHECKING:
    from bench.data import Data


def measure(
    names: Sequence[str],
    chunks: Iterable[Tensor],
    data: "Data",
    extractor: Extractor | str | None = None,
    blocks: int = BLOCKS,
    device: str = "cpu",
    reference: str | Reference = "train",
    count: int | None = None,
) -> dict[str, Measured]:
    """What was measured, by column (`fid[digits]`), of the samples in `chunks` (n, *shape), in stored form.

    Any metric `of` samples but `distance` (see `points.measure_distance`) may be named; `extractor` is by
    default the data's. `reference` is what samples are compared with: the split "train" or "test" (on exact
    data `fid[pixels]` is the distance to the population), or moments from elsewhere. Sample i, counted over
    all chunks, belongs to block i % blocks. `count` is how many samples there will be: chunks are then let go
    one by one, and otherwise held to be counted.

    Raises ValueError if samples are not finite, not of the data's shape or type, or too few for the blocks,
    and `click.ClickException` for names that do not exist or do not fit.
    """
    if count is None:
        chunks = list(chunks)
        count = sum(len(chunk) for chunk in chunks)
    gathered = Gathered(names, data, extractor, blocks, device, reference, count)
    for chunk in chunks:
        gathered.add(chunk)
    return gathered.measured()


class Gathered:
    """What metrics keep of a stream of `count` samples; the arguments are those of `measure`.

    `add` takes the chunks one by one, in their order, each to its sums by block; `measured` comes after the
    last.
    """

    def __init__(
        self,
        names: Sequence[str],
        data: "Data",
        extractor: Extractor | str | None,
        blocks: int,
        device: str,
        reference: str | Reference,
        count: int,
    ) -> None:
        self.metrics = [find(name) for name in dict.fromkeys(names)]
        self.data, self.blocks, self.count = data, blocks, count
        self.seen = self.broken = 0
        self.points = {m.name: _pointwise(m.name, data) for m in self.metrics if not m.needs_extractor}
        self.wanted = wanted = {m.name for m in self.metrics if m.needs_extractor}
        if wanted and not isinstance(extractor, Extractor):
            extractor = extractors.extractor(extractor or extractors.default_extractor(data), data, device)
        if "is" in wanted and extractor.classes is None:
            raise ValueError(
                f"The Inception score needs a classifier, which the extractor {extractor.name} is not."
            )
        self.extractor = extractor
        self.target = _target(reference, data, extractor) if wanted & COMPARED else None
        self.pairs = wanted & PAIRS
        if self.pairs and self.target.rows is None:
            raise ValueError(
                f"{self.target.split} holds moments, and {', '.join(sorted(self.pairs))} need the features "
                "themselves: compare with the training images instead."
            )
        self.compared = reference if isinstance(reference, str) else reference.split
        self.moments = Moments(self.target, blocks) if "fid" in wanted else None
        self.splits = Splits(count, blocks) if "is" in wanted else None
        self.rows: dict[str, Tensor] = {}  # by metric of single samples, and the `features` of the first ROWS

    def add(self, chunk: Tensor) -> None:
        """Take in the next samples (n, *shape)."""
        start, self.seen = self.seen, self.seen + len(chunk)
        _check(chunk, self.data)
        self.broken += int((~chunk.isfinite().flatten(1).all(1)).sum())
        if self.broken or self.seen > self.count:
            return  # only to count them
        for name, metric in self.points.items():
            self._keep(name, metric.rows(chunk), start, self.count)
        if not self.wanted:
            return
        found = self.extractor(chunk)
        features = found["features"].cpu()
        if self.moments:
            self.moments.add(features, start)
        if self.pairs and start < ROWS:
            self._keep("features", features[: ROWS - start], start, min(ROWS, self.count))
        if self.splits:
            self.splits.add(found["logits"].cpu(), start)

    def _keep(self, name: str, rows: Tensor, start: int, count: int) -> None:
        if name not in self.rows:
            self.rows[name] = rows.new_empty(count, *rows.shape[1:])
        self.rows[name][start : start + len(rows)] = rows

    def measured(self) -> dict[str, Measured]:
        """The metrics of all samples, by column."""
        if self.broken:
            raise ValueError(f"{self.broken:,} of {self.seen:,} samples are not finite.")
        if self.seen != self.count:
            raise ValueError(f"{self.seen:,} samples came where {self.count:,} were expected.")
        require(self.count, self.blocks)
        found = {name: metric.reduce(self.rows[name], self.blocks) for name, metric in self.points.items()}
        estimates: dict[str, tuple[float, tuple[float, ...]]] = {}
        extra: dict[str, dict] = {}
        if self.moments:
            estimates["fid"] = self.moments.fid()
            extra["fid"] = {"reference": self.target.split, "reference_samples": self.target.count}
        if self.splits:
            estimates["is"] = self.splits.score()
        if self.pairs:
            x, y = self.rows["features"], self.target.rows
            facts = {"reference": self.compared, "rows": len(x), "reference_rows": len(y)}
            extra |= dict.fromkeys(PAIRS, facts)
            if "kid" in self.pairs:
                estimates["kid"] = kid(x, y, self.blocks)
            if self.pairs & {"precision", "recall"}:
                estimates |= precision_recall(x, y, self.blocks)
        for name in self.wanted:
            found[name] = Measured(*estimates[name], self.count, extra.get(name, {}))
        names = {
            m.name: column(m.name, self.extractor.name if m.needs_extractor else None) for m in self.metrics
        }
        return {names[m.name]: found[m.name] for m in self.metrics}


def _target(reference: str | Reference, data: "Data", extractor: Extractor) -> Reference:
    return reference if isinstance(reference, Reference) else reference_of(data, extractor, reference)


def _pointwise(name: str, data: "Data"):
    known = POINTWISE | NGRAMS | CURVED
    if name not in known:
        raise ValueError(f"{name} is not a metric of samples alone; it has a function of its own.")
    return known[name](data)


def _check(chunk: Tensor, data: "Data") -> None:
    if tuple(chunk.shape[1:]) != tuple(data.shape):
        raise ValueError(
            f"Samples have shape {tuple(chunk.shape[1:])}, those of {data.name} {tuple(data.shape)}."
        )
    if bool(data.levels) == chunk.dtype.is_floating_point:
        stored = f"uint8 levels 0 to {data.levels - 1}" if data.levels else "floats"
        raise ValueError(f"Samples are {chunk.dtype}, but {data.name} stores {stored}.")
