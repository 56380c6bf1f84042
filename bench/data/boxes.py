"""Data in a box whose truth is known: `box2d`, a mixture of normals cut to the square [-1, 1]^2."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.data import Data
from bench.data.exact import ExactData

if TYPE_CHECKING:
    from bench.diffusion.reflection import TruncatedNormals


def load(name: str) -> Data:
    return ExactData(name, "box", (2,), square())


def square() -> TruncatedNormals:
    """Five normals of unequal weights; three are cut by a wall, one of them in a corner."""
    import torch

    from bench.diffusion.reflection import TruncatedNormals

    weights = torch.tensor([4, 3, 3, 2, 4], dtype=torch.float64)
    means = torch.tensor([[-1.0, 1.0], [0.9, 0.3], [-0.4, -0.9], [0.2, 0.4], [0.0, 0.0]], dtype=torch.float64)
    deviations = torch.tensor(
        [[0.25, 0.30], [0.15, 0.35], [0.30, 0.15], [0.12, 0.12], [0.70, 0.70]], dtype=torch.float64
    )
    return TruncatedNormals(weights, means, deviations)
