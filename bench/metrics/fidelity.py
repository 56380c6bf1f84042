"""FID, IS, KID, precision and recall of a stream of samples, in one pass of the extractor, with jackknife
replicates.

They are torch-fidelity's quantities (a test holds them equal), computed from sums by block, so that leaving a
block out costs a subtraction, and FID's memory does not grow with the number of samples.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench.metrics import features as extractors
from bench.metrics.curved import CURVED
from bench.metrics.features import Extractor
from bench.metrics.jackknife import BLOCKS, Measured, blocks_of, require
from bench.metrics.names import column, find
from bench.metrics.ngrams import NGRAMS
from bench.metrics.pairs import kid, precision_recall
from bench.metrics.points import POINTWISE
from bench.metrics.references import ROWS, Reference
from bench.metrics.references import reference as reference_of

if TYPE_CHECKING:
    from bench.data import Data

SPLITS, SHUFFLE_SEED = 10, 2020  # of the Inception score, as torch-fidelity has them


def measure(
    names: Sequence[str],
    chunks: Iterable[Tensor],
    data: "Data",
    extractor: Extractor | str | None = None,
    blocks: int = BLOCKS,
    device: str = "cpu",
    reference: str = "train",
) -> dict[str, Measured]:
    """What was measured, by column (`fid[digits]`), of the samples in `chunks` (n, *shape), in stored form.

    Any metric `of` samples but `distance` (see `points.measure_distance`) may be named; `extractor` is by
    default the data's. `reference` is the split samples are compared with, "train" or "test"; on exact data
    `fid[pixels]` is the distance to the population. Sample i, counted over all chunks, belongs to block i %
    blocks.

    Raises ValueError if samples are not finite, not of the data's shape or type, or too few for the blocks,
    and `click.ClickException` for names that do not exist or do not fit.
    """
    metrics = [find(name) for name in dict.fromkeys(names)]
    points = {m.name: _pointwise(m.name, data) for m in metrics if not m.needs_extractor}
    seen = {m.name for m in metrics if m.needs_extractor}
    if seen and not isinstance(extractor, Extractor):
        extractor = extractors.extractor(extractor or extractors.default_extractor(data), data, device)
    if "is" in seen and extractor.classes is None:
        raise ValueError(
            f"The Inception score needs a classifier, which the extractor {extractor.name} is not."
        )
    target = reference_of(data, extractor, reference) if seen - {"is"} else None
    moments = Moments(target.mean, blocks) if "fid" in seen else None
    rows: dict[str, list[Tensor]] = {name: [] for name in ("features", "logits", *points)}

    count = broken = 0
    for chunk in chunks:
        start, count = count, count + len(chunk)
        _check(chunk, data)
        broken += int((~chunk.isfinite().flatten(1).all(1)).sum())
        if broken:
            continue  # only to count them
        for name, metric in points.items():
            rows[name].append(metric.rows(chunk))
        if not seen:
            continue
        found = extractor(chunk)
        features = found["features"].cpu()
        if moments:
            moments.add(features, start)
        if seen & {"kid", "precision", "recall"} and start < ROWS:
            rows["features"].append(features[: ROWS - start])
        if "is" in seen:
            rows["logits"].append(found["logits"].cpu())
    if broken:
        raise ValueError(f"{broken:,} of {count:,} samples are not finite.")
    require(count, blocks)

    measured = {name: metric.reduce(torch.cat(rows[name]), blocks) for name, metric in points.items()}
    estimates: dict[str, tuple[float, tuple[float, ...]]] = {}
    extra: dict[str, dict] = {}
    if moments:
        estimates["fid"] = moments.fid(target)
        extra["fid"] = {"reference": target.split, "reference_samples": target.count}
    if "is" in seen:
        estimates["is"] = inception_score(torch.cat(rows["logits"]), blocks)
    if rows["features"]:
        x = torch.cat(rows["features"])
        pairs = {"reference": reference, "rows": len(x), "reference_rows": len(target.rows)}
        extra |= dict.fromkeys(("kid", "precision", "recall"), pairs)
        if "kid" in seen:
            estimates["kid"] = kid(x, target.rows, blocks)
        if seen & {"precision", "recall"}:
            estimates |= precision_recall(x, target.rows, blocks)
    for name in seen:
        measured[name] = Measured(*estimates[name], count, extra.get(name, {}))
    return {column(m.name, extractor.name if m.needs_extractor else None): measured[m.name] for m in metrics}


class Moments:
    """Sums and outer products of features by block, about a point `near` their mean, in float64.

    As long as there are no more samples than features the samples themselves are less, and are held instead.
    """

    def __init__(self, near: Tensor, blocks: int) -> None:
        self.near, self.blocks = near, blocks
        self.held: list[Tensor] | None = []
        self.count = torch.zeros(blocks).double()
        self.total = near.new_zeros(blocks, len(near))
        self.outer = near.new_zeros(0)

    def add(self, features: Tensor, start: int) -> None:
        """Take in features (n, F) of the samples from number `start` on."""
        wide = features.double() - self.near
        if self.held is None:
            self._fold(wide, start)
            return
        self.held.append(wide)
        if start + len(wide) > len(self.near):
            self.outer = self.near.new_zeros(self.blocks, len(self.near), len(self.near))
            self._fold(torch.cat(self.held), 0)
            self.held = None

    def _fold(self, wide: Tensor, start: int) -> None:
        for b in range(self.blocks):
            rows = wide[(b - start) % self.blocks :: self.blocks]
            self.count[b] += len(rows)
            self.total[b] += rows.sum(0)
            self.outer[b].addmm_(rows.T, rows)

    def fid(self, target: Reference) -> tuple[float, tuple[float, ...]]:
        """The Fréchet distance to the reference, and without each block."""
        if self.held is not None:
            return self._fid_of_few(target)
        root = _root(target.cov)
        count, total, outer = self.count.sum(), self.total.sum(0), self.outer.sum(0)

        def distance(n: Tensor, total: Tensor, outer: Tensor) -> float:
            mean = total / n
            cov = (outer - n * torch.outer(mean, mean)) / (n - 1)
            shared = torch.linalg.eigvalsh(root @ cov @ root).clamp(min=0).sqrt().sum()
            offset = (mean + self.near - target.mean).square().sum()
            return (offset + cov.trace() + target.cov.trace() - 2 * shared).item()

        without = zip(count - self.count, total - self.total, self.outer)
        return distance(count, total, outer), tuple(distance(n, s, outer - block) for n, s, block in without)

    def _fid_of_few(self, target: Reference) -> tuple[float, tuple[float, ...]]:
        """The same from samples X fewer than features: tr sqrt(C1 C2) is then the nuclear norm of X sqrt(C2).

        Its singular values are the roots of the eigenvalues of the small matrix X C2 X^T.
        """
        wide = torch.cat(self.held)
        block, gram = blocks_of(len(wide), self.blocks), wide @ target.cov @ wide.T

        def distance(kept: Tensor) -> float:
            rows, n = wide[kept], int(kept.sum())
            mean = rows.mean(0)
            centred = gram[kept][:, kept]
            centred = centred - centred.mean(0) - centred.mean(1, keepdim=True) + centred.mean()
            shared = torch.linalg.eigvalsh(centred / (n - 1)).clamp(min=0).sqrt().sum()
            spread = (rows - mean).square().sum() / (n - 1)
            offset = (mean + self.near - target.mean).square().sum()
            return (offset + spread + target.cov.trace() - 2 * shared).item()

        return distance(block >= 0), tuple(distance(block != b) for b in range(self.blocks))


def inception_score(logits: Tensor, blocks: int) -> tuple[float, tuple[float, ...]]:
    """exp of the mean KL of p(class | sample) to p(class), a mean over 10 shuffled splits, and its
    replicates.

    (Salimans et al. 2016.) Every sample stays in its split when a block is left out: to shuffle anew would
    add the noise of the splits to every replicate.
    """
    count = len(logits)
    bounds = torch.tensor([i * count // SPLITS for i in range(1, SPLITS + 1)])
    place = torch.empty(count, dtype=torch.long)
    place[_shuffle(count)] = torch.arange(count)
    cell = torch.bucketize(place, bounds, right=True) * blocks + blocks_of(count, blocks)
    size, entropy = torch.zeros(2, SPLITS * blocks).double()
    mass = torch.zeros(SPLITS * blocks, logits.shape[1]).double()
    for piece, where in zip(logits.split(5000), cell.split(5000)):
        log_p = piece.double().log_softmax(1)
        p = log_p.exp()
        size.index_add_(0, where, torch.ones(len(piece)).double())
        entropy.index_add_(0, where, (p * log_p).sum(1))
        mass.index_add_(0, where, p)
    size, entropy, mass = (a.unflatten(0, (SPLITS, blocks)) for a in (size, entropy, mass))

    def score(size: Tensor, entropy: Tensor, mass: Tensor) -> float:
        q = mass / size[:, None]
        return (entropy / size - torch.xlogy(q, q).sum(1)).exp().mean().item()

    whole = [a.sum(1) for a in (size, entropy, mass)]
    replicates = (score(*(w - a[:, b] for w, a in zip(whole, (size, entropy, mass)))) for b in range(blocks))
    return score(*whole), tuple(replicates)


def _shuffle(count: int) -> Tensor:
    import numpy as np

    return torch.from_numpy(np.random.RandomState(SHUFFLE_SEED).permutation(count))


def _root(cov: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(cov)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


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
