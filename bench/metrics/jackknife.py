"""What every metric returns, and the delete-a-block jackknife its errors come from."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

BLOCKS = 20


@dataclass(frozen=True)
class Measured:
    """A metric of `samples` samples; replicate b is its value without block b. `extra` holds what else is
    known.
    """

    value: float
    replicates: tuple[float, ...]
    samples: int
    extra: dict = field(default_factory=dict)


def blocks_of(count: int, blocks: int, start: int = 0) -> Tensor:
    """(count,) block of each sample: sample i of the whole stream belongs to block i % blocks."""
    return torch.arange(start, start + count) % blocks


def require(count: int, blocks: int) -> None:
    """ValueError unless there are two samples for each block."""
    if count < 2 * blocks:
        raise ValueError(
            f"{count:,} samples are too few for {blocks} blocks; draw {2 * blocks} or ask for fewer blocks."
        )


def jackknife(rows: Tensor, metric: Callable[[Tensor], float], blocks: int, **extra: object) -> Measured:
    """`metric` of all `rows` (N, ...) and of the rows without each block."""
    require(len(rows), blocks)
    block = blocks_of(len(rows), blocks).to(rows.device)
    replicates = tuple(float(metric(rows[block != b])) for b in range(blocks))
    return Measured(float(metric(rows)), replicates, len(rows), extra)


def of_mean(rows: Tensor, blocks: int, **extra: object) -> Measured:
    """The mean of `rows` (N,), in float64."""
    return jackknife(rows.double(), lambda kept: kept.mean().item(), blocks, **extra)
