"""Metrics that look at single samples: sliced Wasserstein, exact NLL, memorisation, distance to the true
solution.

Each reduces a chunk of samples to one row a sample, and all rows to a value, so that the jackknife only drops
rows.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench.metrics.computed import cached
from bench.metrics.jackknife import BLOCKS, Measured, jackknife, of_mean

if TYPE_CHECKING:
    from bench.data import Data

PROJECTIONS = 128
EXACT_SAMPLES = 2**16  # the sample that stands for the distribution in the sliced Wasserstein distance
HELD_OUT = 2000  # held-out images whose distance to the training set is the unit of memorisation
PIECE = 4096  # rows worked on at once
WIDTH = 16  # and projections, of which there are a multiple of it


@dataclass(frozen=True)
class Pointwise:
    """`rows` maps stored samples (n, *shape) to rows (n, ...); `reduce` all rows to what was measured."""

    rows: Callable[[Tensor], Tensor]
    reduce: Callable[[Tensor, int], Measured]  # (rows, blocks)


def measure_distance(
    chunks: Iterable[Tensor], converged: Iterable[Tensor], data: "Data", blocks: int = BLOCKS
) -> Measured:
    """The mean over samples of the root mean square, over dimensions, of their distance to `converged` ones.

    Both streams start from the same noise and run in the same order; they need not be cut alike.
    Raises ValueError if they differ in length.
    """
    ours, true = (
        torch.cat([data.scale(chunk).flatten(1) for chunk in stream]) for stream in (chunks, converged)
    )
    if ours.shape != true.shape:
        raise ValueError(f"{len(ours):,} samples cannot be held against {len(true):,} converged ones.")
    return of_mean(_rms(ours.double() - true), blocks)


def sliced_wasserstein(data: "Data") -> Pointwise:
    """The Wasserstein-2 distance of one-dimensional projections, root of the mean square over 128 directions.

    (Bonneel et al. 2015.) Directions, and the exact sample whose quantiles they are held against, are fixed.
    """
    _require_exact("sliced_wasserstein", data)
    directions = _directions(data.train[0].numel())
    parts = (data.fingerprint, str(PROJECTIONS), str(EXACT_SAMPLES))
    exact = cached("sliced", parts, lambda: {"sorted": _exact_projections(data, directions)})["sorted"]

    def square(rows: Tensor, truth: Tensor) -> float:
        return (rows.T.sort(dim=1).values - _quantiles(truth, len(rows))).double().square().mean().item()

    def reduce(rows: Tensor, blocks: int) -> Measured:
        some = zip(rows.split(WIDTH, 1), exact.split(WIDTH))  # all at once would be copied for every block
        parts = [jackknife(piece, partial(square, truth=truth), blocks) for piece, truth in some]
        replicates = zip(*(part.replicates for part in parts))
        value = _root_mean([part.value for part in parts])
        return Measured(value, tuple(map(_root_mean, replicates)), len(rows), {"projections": PROJECTIONS})

    return Pointwise(lambda stored: data.scale(stored).flatten(1).cpu() @ directions, reduce)


def exact_nll(data: "Data") -> Pointwise:
    """The mean of -log p(sample) in nats; `extra["held_out"]` is the data's, which is what to aim at."""
    _require_exact("exact_nll", data)

    def rows(stored: Tensor) -> Tensor:
        return -data.exact.log_prob(data.scale(stored).flatten(1)).cpu()

    held_out = rows(data.test).double().mean().item()
    return Pointwise(rows, lambda rows, blocks: of_mean(rows, blocks, held_out=held_out))


def memorisation(data: "Data") -> Pointwise:
    """The mean distance to the nearest training sample, in units of the held-out samples' own mean distance.

    About 1 for a faithful model, near 0 for one that copies, above 1 far from the data. `extra` holds the
    unit (root mean square over dimensions) and the share of samples nearer than every held-out one
    ("copies").
    """
    parts = (data.fingerprint, str(HELD_OUT))
    compute = lambda: {"distances": nearest(data.test[:HELD_OUT], data)}
    held_out = cached("held_out", parts, compute)["distances"]
    unit = held_out.mean().item()
    if unit == 0:
        raise ValueError(
            f"Every held-out sample of {data.name} is in its training set: nothing to compare with."
        )

    def reduce(rows: Tensor, blocks: int) -> Measured:
        copies = (rows < held_out.min()).double().mean().item()
        return of_mean(rows / unit, blocks, held_out=unit, copies=copies)

    return Pointwise(lambda stored: nearest(stored, data), reduce)


def nearest(stored: Tensor, data: "Data") -> Tensor:
    """(N,) root mean square distance of samples (N, *shape) to the nearest training sample, in float64."""
    x = data.scale(stored).flatten(1).cpu()
    least, index = torch.full((len(x),), torch.inf), torch.zeros(len(x), dtype=torch.long)
    for start in range(0, len(data.train), PIECE):
        train = data.scale(data.train[start : start + PIECE]).flatten(1)
        squares = train.square().sum(1) - 2 * x @ train.T  # less |x|^2, which all have in common
        squares, place = squares.min(1)
        index = torch.where(squares < least, start + place, index)
        least = torch.minimum(least, squares)
    return _rms(x.double() - data.scale(data.train[index]).flatten(1))  # anew: the product cancels for copies


POINTWISE: dict[str, Callable[["Data"], Pointwise]] = {
    "sliced_wasserstein": sliced_wasserstein,
    "exact_nll": exact_nll,
    "memorisation": memorisation,
}


def _root_mean(squares: Sequence[float]) -> float:
    return math.sqrt(math.fsum(squares) / len(squares))


def _rms(difference: Tensor) -> Tensor:
    return difference.square().mean(1).sqrt()


def _require_exact(metric: str, data: "Data") -> None:
    if data.exact is None:
        raise ValueError(
            f"{metric} needs data whose distribution is known, which that of {data.name} is not."
        )


def _directions(dims: int) -> Tensor:
    directions = torch.randn(dims, PROJECTIONS, generator=torch.Generator().manual_seed(0))
    return directions / directions.norm(dim=0)


def _exact_projections(data: "Data", directions: Tensor) -> Tensor:
    """(PROJECTIONS, EXACT_SAMPLES) projections of exact draws, sorted."""
    generator = torch.Generator().manual_seed(3)
    pieces = [
        data.exact.sample(PIECE, generator).flatten(1).to(directions) @ directions
        for _ in range(EXACT_SAMPLES // PIECE)
    ]
    return torch.cat(pieces).T.sort(dim=1).values


def _quantiles(ordered: Tensor, count: int) -> Tensor:
    """The `count` quantiles at (i + 1/2)/count of rows sorted along their last dimension, linear between."""
    place = (torch.arange(count, dtype=torch.float64) + 0.5) * ordered.shape[-1] / count - 0.5
    place = place.clamp(0, ordered.shape[-1] - 1)
    low = place.long().clamp(max=ordered.shape[-1] - 2)
    return ordered[..., low].lerp(ordered[..., low + 1], (place - low).to(ordered.dtype))
