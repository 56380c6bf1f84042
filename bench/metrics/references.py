"""What samples are compared with: the moments of the data's features, computed once and cached by content, or
those of a file that others published.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import click
import torch
from torch import Tensor

from bench.data import Data
from bench.metrics.computed import ROWS, cached, keep, kept, place
from bench.metrics.extractor import Extractor
from bench.metrics.names import PAIRS

CHUNK = 1000
SAVE_EVERY = 60.0  # seconds of a pass over the images


@dataclass(frozen=True)
class Reference:
    """The features of the data: mean (F,) and covariance (F, F) in float64, and its first rows (R, F)."""

    split: str  # "train" | "test" | "population", or the name of the file that the moments are from
    count: int  # 0 for a population, and where nobody said how many there were
    mean: Tensor
    cov: Tensor
    rows: Tensor | None  # None where there are moments only
    sha256: str = ""  # of the file they are from


def reference(
    data: Data,
    extractor: Extractor,
    split: str = "train",
    tell: Callable[[int, int], None] = lambda seen, total: None,
) -> Reference:
    """What `extractor` sees of the data's split "train" or "test". `tell` hears how many of how many images
    it has seen, where they are not known from before: one that is slow takes hours.

    Where the distribution is known and the features are its coordinates (or a projection of them), mean and
    covariance are the population's, whatever the split; only the rows are a sample.
    """
    if split not in ("train", "test"):
        raise ValueError(f'The reference is "train" or "test", not "{split}".')
    stored = data.train if split == "train" else data.test
    if of_population(data, extractor):
        directions = extractor.directions
        exact = (
            data.exact.project(directions)
            if directions is not None
            else (data.exact.mean(), data.exact.cov())
        )
        mean, cov = (moment.cpu().double() for moment in exact)
        return Reference("population", 0, mean, cov, extractor(stored[:ROWS])["features"].cpu())

    parts = parts_of(data, extractor, split)
    begun = place("reference", parts).with_suffix(".part.safetensors")
    found = cached("reference", parts, lambda: moments_of(stored, extractor, begun, tell))
    if begun.exists():  # nothing is asked of a cache that can only be read
        begun.unlink(missing_ok=True)
    return Reference(split, len(stored), **found)


def of_population(data: Data, extractor: Extractor) -> bool:
    """Whether the features' own mean and covariance are known."""
    return data.exact is not None and extractor.name == "pixels"


def parts_of(data: Data, extractor: Extractor, split: str) -> tuple[str, ...]:
    """What the moments of a split's features depend on."""
    return data.fingerprint, split, str(ROWS), extractor.name, extractor.sha256


def known(data: Data, extractor: Extractor, split: str = "train") -> bool:
    """Whether `reference` has nothing left to compute."""
    return of_population(data, extractor) or place("reference", parts_of(data, extractor, split)).exists()


def moments_of(
    stored: Tensor, extractor: Extractor, begun: Path, tell: Callable[[int, int], None]
) -> dict[str, Tensor]:
    """`mean`, `cov` and first `rows` of the features of `stored`, of which `tell` hears as in `reference`.
    What a long pass has gathered is kept at `begun` now and then, so that one that was killed goes on from
    there and ends with the same bits.
    """
    few, saved = min(ROWS, len(stored)), time.monotonic()

    def seen(first: int, last: int) -> Iterator[Tensor]:
        for start in range(first, last, CHUNK):
            stop = min(start + CHUNK, last)
            yield extractor(stored[start:stop])["features"].cpu()
            tell(stop, len(stored))

    def gathered(**tensors: Tensor) -> None:
        nonlocal saved
        if time.monotonic() - saved > SAVE_EVERY:
            keep(begun, tensors)
            saved = time.monotonic()

    before = kept(begun)
    rows = before.get("rows", torch.empty(0, extractor.dims))
    for features in seen(len(rows), few):
        rows = torch.cat([rows, features])
        gathered(rows=rows)
    near = rows.double().mean(0)  # moments are summed about a near mean, where they lose no digits
    total = before.get("total", torch.zeros_like(near))
    outer = before.get("outer", near.new_zeros(len(near), len(near)))
    count = int(before.get("count", 0))  # of what is in the sums
    later = seen(max(few, count), len(stored))
    for features in later if count else chain(rows.split(CHUNK), later):
        wide = features.double() - near
        total += wide.sum(0)
        outer += wide.T @ wide
        count += len(features)
        if count > few:
            gathered(rows=rows, total=total, outer=outer, count=torch.tensor(count))
    mean = total / len(stored)
    cov = (outer - len(stored) * torch.outer(mean, mean)) / (len(stored) - 1)
    return {"mean": mean + near, "cov": cov, "rows": rows}


def imported(path: Path | None, extractor: Extractor, names: Sequence[str]) -> Reference | None:
    """The moments `mu` (F,) and `sigma` (F, F) of an .npz, as EDM, ADM and pytorch-fid publish them, for the
    metrics of these names; None without a path.

    `click.ClickException`, in one sentence, where they are not of the extractor's features, or a metric
    needs more than moments.
    """
    from bench.data.folder import read_npz

    if path is None:
        return None
    if more := PAIRS & set(names):
        raise click.ClickException(
            f"{path} holds moments, and {min(more)} needs features: leave --statistics out, or {min(more)}."
        )
    dims = extractor.dims
    arrays = read_npz(path, ("mu", "sigma"))
    shapes = arrays["mu"].shape, arrays["sigma"].shape
    if shapes != ((dims,), (dims, dims)):
        raise click.ClickException(
            f"{path} holds mu and sigma of shapes {shapes[0]} and {shapes[1]}, and the extractor has {dims} "
            "features: give --extractor the one that they were made with."
        )
    if not all(array.dtype.kind == "f" for array in arrays.values()):
        raise click.ClickException(f"{path} should hold mu and sigma as floats: replace it.")
    mean, cov = (torch.from_numpy(arrays[name].astype("float64")) for name in ("mu", "sigma"))
    if not (mean.isfinite().all() and cov.isfinite().all()):
        raise click.ClickException(f"{path} holds moments that are not finite: replace it.")
    if not torch.allclose(cov, cov.T, rtol=1e-4, atol=1e-6 * float(cov.abs().max())) or bool(
        (cov.diagonal() < 0).any()
    ):
        raise click.ClickException(f"sigma in {path} is no covariance, which is symmetric: replace it.")
    return Reference(
        path.name, 0, mean, (cov + cov.T) / 2, None, hashlib.sha256(path.read_bytes()).hexdigest()
    )
