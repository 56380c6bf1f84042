"""The Inception score of a stream of logits, from sums by split and block."""

import torch
from torch import Tensor

from bench.metrics.jackknife import blocks_of

SPLITS, SHUFFLE_SEED = 10, 2020  # as torch-fidelity has them
PIECE = 5000


class Splits:
    """Sums of p(class | sample) and of its negative entropy, in float64, by the split and the block that a
    sample is in.

    The shuffled split of every sample follows from how many there will be, so that no logit has to wait for
    the last one.
    """

    def __init__(self, count: int, blocks: int) -> None:
        bounds = torch.tensor([i * count // SPLITS for i in range(1, SPLITS + 1)])
        place = torch.empty(count, dtype=torch.long)
        place[_shuffle(count)] = torch.arange(count)
        self.blocks = blocks
        self.cell = torch.bucketize(place, bounds, right=True) * blocks + blocks_of(count, blocks)
        self.size, self.entropy = torch.zeros(2, SPLITS * blocks).double()
        self.mass: Tensor | None = None

    def add(self, logits: Tensor, start: int) -> None:
        """Take in logits (n, classes) of the samples from number `start` on."""
        if self.mass is None:
            self.mass = torch.zeros(SPLITS * self.blocks, logits.shape[1]).double()
        for piece, where in zip(logits.split(PIECE), self.cell[start : start + len(logits)].split(PIECE)):
            log_p = piece.double().log_softmax(1)
            p = log_p.exp()
            self.size.index_add_(0, where, torch.ones(len(piece)).double())
            self.entropy.index_add_(0, where, (p * log_p).sum(1))
            self.mass.index_add_(0, where, p)

    def score(self) -> tuple[float, tuple[float, ...]]:
        """exp of the mean KL of p(class | sample) to p(class), a mean over the splits, and its replicates.

        (Salimans et al. 2016.) Every sample stays in its split when a block is left out: to shuffle anew
        would add the noise of the splits to every replicate.
        """
        sums = [a.unflatten(0, (SPLITS, self.blocks)) for a in (self.size, self.entropy, self.mass)]
        whole = [a.sum(1) for a in sums]
        without = ([w - a[:, b] for w, a in zip(whole, sums)] for b in range(self.blocks))
        return _score(*whole), tuple(_score(*kept) for kept in without)


def inception_score(logits: Tensor, blocks: int) -> tuple[float, tuple[float, ...]]:
    """The Inception score of logits (N, classes), and its replicates."""
    splits = Splits(len(logits), blocks)
    splits.add(logits, 0)
    return splits.score()


def _score(size: Tensor, entropy: Tensor, mass: Tensor) -> float:
    q = mass / size[:, None]
    return (entropy / size - torch.xlogy(q, q).sum(1)).exp().mean().item()


def _shuffle(count: int) -> Tensor:
    import numpy as np

    return torch.from_numpy(np.random.RandomState(SHUFFLE_SEED).permutation(count))
