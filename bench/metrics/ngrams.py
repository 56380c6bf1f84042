"""Metrics of sequences of tokens: how far the runs of one, two and three tokens in samples are from the
data's.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench.metrics.jackknife import BLOCKS, Measured, jackknife
from bench.metrics.points import Pointwise

if TYPE_CHECKING:
    from bench.data import Data


def total_variation(data: "Data", n: int) -> Pointwise:
    """Half the sum, over all runs of n tokens, of how far their share among the samples' (N, length) is from
    that of the data: of its distribution where that is known, else of the training split.

    Rare runs make it positive for perfect samples too; `held_out`, what as many held-out rows score, is the
    least to expect. ValueError where sequences are shorter than n, or the table of runs past all bounds.
    """
    if len(data.shape) != 1 or data.shape[0] < n:
        raise ValueError(f"runs of {n} tokens need sequences of that length, which {data.name} does not have")
    if data.levels**n > 1 << 24:
        raise ValueError(f"there are {data.levels**n:,} runs of {n} tokens: too many to count")
    if data.exact is not None:
        truth = data.exact.ngrams(n).cpu()
    else:
        truth = shares(runs(data.train, data.levels, n), data.levels**n)

    def distance(rows: Tensor) -> float:
        return float((shares(rows, data.levels**n) - truth).abs().sum() / 2)

    def reduce(rows: Tensor, blocks: int = BLOCKS) -> Measured:
        held_out = distance(runs(data.test[: len(rows)], data.levels, n))
        return jackknife(rows, distance, blocks, held_out=held_out)

    return Pointwise(lambda stored: runs(stored.cpu(), data.levels, n), reduce)


def runs(tokens: Tensor, levels: int, n: int) -> Tensor:
    """(N, length - n + 1) int32, the number of every run of n tokens, the first the slowest to change."""
    windows = tokens.int().unfold(1, n, 1)
    return sum(windows[..., i] * levels ** (n - 1 - i) for i in range(n))


def shares(rows: Tensor, count: int) -> Tensor:
    """(count,) the share of each number."""
    found = torch.bincount(rows.flatten(), minlength=count).double()
    return found / found.sum()


NGRAMS = {f"tv{n}": lambda data, n=n: total_variation(data, n) for n in (1, 2, 3)}
