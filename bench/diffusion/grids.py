"""Grids of times that schedules share: knots read anew, and the whole steps of a discrete process."""

import torch
from torch import Tensor

STRIDES = ("leading", "trailing", "linspace")  # diffusers' timestep_spacing


def resampled(knots: Tensor, count: int) -> Tensor:
    """`knots` read as a curve over [0, 1] at `count` even places."""
    if len(knots) == count:
        return knots.clone()
    place = torch.linspace(0, len(knots) - 1, count, dtype=torch.float64)
    left = place.long().clamp(max=len(knots) - 2)
    return knots[left] + (place - left) * (knots[left + 1] - knots[left])


def strided(length: int, n: int, spacing: str, end: str, offset: int = 0, last: int = 0) -> Tensor:
    """n of the times 1 / length .. 1 of a discrete process, falling, and `last` / length, as diffusers counts
    its steps: "leading" every (length // n)-th from the first and `offset` later, "trailing" every (length /
    n)-th from the last, "linspace" even between both. ValueError for grids that do not end at "zero", and of
    more steps than there are.
    """
    if end != "zero" or not 1 <= n <= length:
        raise ValueError(f"the spacing {spacing!r} is of 1 to {length} steps and ends at 'zero'")
    count = torch.arange(n, dtype=torch.float64)
    if spacing == "leading":
        step = 1 + count.flip(0) * (length // n) + offset
        if step[0] > length:
            raise ValueError(f"{n} of {length} steps leave no room for steps_offset, which is {offset}")
    elif spacing == "trailing":
        step = (length - count * length / n).round()
    else:
        step = 1 + torch.linspace(length - 1, 0, n, dtype=torch.float64).round()
    return torch.cat([step, step.new_full((1,), last)]) / length
