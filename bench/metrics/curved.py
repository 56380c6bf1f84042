"""Metrics of points on manifolds and in boxes: the kernel distance along geodesics, and how many of the true
modes are visited.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench.diffusion.manifold import wrapped
from bench.metrics.jackknife import Measured, jackknife, require
from bench.metrics.pairs import squared_mmd
from bench.metrics.points import PIECE, Pointwise

if TYPE_CHECKING:
    from bench.data import Data

SCALE = 0.5  # of the kernel, in radians
REFERENCE = 2000  # training rows that samples are compared with
VISITED = 0.5  # of what is expected of a mode


def mmd(data: "Data") -> Pointwise:
    """The unbiased squared MMD to the training split with the kernel exp(-distance / 0.5), of great circles
    on the sphere, of arcs summed over the angles on the torus: with these it is positive definite. It may
    fall below 0; `held_out` is what as many held-out rows score.
    """
    kernel = {"sphere": _great_circle, "torus": _arcs}[data.kind]
    y = data.scale(data.train[:REFERENCE]).double()

    def distance(rows: Tensor, blocks: int) -> tuple[float, tuple[float, ...]]:
        return squared_mmd(rows.double(), y, blocks, kernel, lambda x: torch.ones_like(x[:, 0]))

    def reduce(rows: Tensor, blocks: int) -> Measured:
        require(len(rows), blocks)
        held_out = distance(data.scale(data.test[: len(rows)]), blocks)[0]
        return Measured(*distance(rows, blocks), len(rows), {"held_out": held_out, "scale": SCALE})

    return Pointwise(lambda stored: data.scale(stored).cpu(), reduce)


def coverage(data: "Data") -> Pointwise:
    """The share of the true components that at least half as many samples belong to as of the training split;
    a sample belongs to the component that is the likeliest there.
    """
    if data.exact is None:
        raise ValueError(
            f"coverage needs data whose distribution is known, which that of {data.name} is not."
        )

    def belongs(stored: Tensor) -> Tensor:
        rows = data.scale(stored).flatten(1).cpu()
        return torch.cat([data.exact.responsibilities(piece).argmax(-1) for piece in rows.split(PIECE)])

    expected = shares(belongs(data.train), len(data.exact.weights))

    def visited(rows: Tensor) -> float:
        return float((shares(rows, len(expected)) >= VISITED * expected).double().mean())

    return Pointwise(belongs, lambda rows, blocks: jackknife(rows, visited, blocks, components=len(expected)))


def shares(which: Tensor, count: int) -> Tensor:
    """(count,) how large a share of the rows each number has."""
    return torch.bincount(which, minlength=count).double() / len(which)


def _great_circle(x: Tensor, y: Tensor) -> Tensor:
    return torch.exp(-(x @ y.T).clamp(-1, 1).acos() / SCALE)


def _arcs(x: Tensor, y: Tensor) -> Tensor:
    return torch.exp(-sum(wrapped(a[:, None] - b).abs() for a, b in zip(x.T, y.T)) / SCALE)


CURVED = {"mmd": mmd, "coverage": coverage}
