"""The Fréchet distance of a stream of features and of the stream without each block, from sums by block.

Between Gaussians it is |m1 - m2|^2 + tr C1 + tr C2 - 2 tr sqrt(C1 C2) (Dowson and Landau, 1982). With L L^T
the reference's covariance C2, the product has the eigenvalues of L^T C1 L, which is symmetric, and which is
the covariance of the features times L: sums of those are kept, so that a replicate costs the eigenvalues of
one symmetric matrix and no product of matrices.

Memory is that of the sums, which does not grow with the number of samples: 20 blocks of 2,048 features are
640 MiB.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from bench.metrics.jackknife import blocks_of
from bench.metrics.references import Reference

STRIPE = 256  # columns at a time, so that of triangular matrices little more than half is worked out


class Moments:
    """Sums by block, in float64, of features X about the reference's mean, of their squares, and of the outer
    products of X L, whose upper triangles nobody reads.

    Samples are held until there are more of them than features, and then go into the sums at once.
    """

    def __init__(self, target: Reference, blocks: int) -> None:
        self.target, self.blocks = target, blocks
        self.held: list[Tensor] = []
        self.start = 0  # the number of the first sample held
        self.count, self.square = torch.zeros(2, blocks).double()
        self.total = target.mean.new_zeros(blocks, len(target.mean))
        self.factor = self.outer = target.mean.new_zeros(0)

    def add(self, features: Tensor, start: int) -> None:
        """Take in features (n, F) of the samples from number `start` on."""
        if not self.held:
            self.start = start
        self.held.append(features.double() - self.target.mean)
        if start + len(features) - self.start > len(self.target.mean):
            self._fold()

    def _fold(self) -> None:
        wide, self.held = torch.cat(self.held), []
        dims = wide.shape[1]
        if not len(self.outer):
            self.factor, self.outer = factor(self.target.cov), wide.new_zeros(self.blocks, dims, dims)
        stripes = stripes_of(dims)
        seen = torch.cat([wide[:, s.start :] @ self.factor[s.start :, s] for s in stripes], 1)
        for b in range(self.blocks):
            mine = slice((b - self.start) % self.blocks, None, self.blocks)
            rows = seen[mine]
            self.count[b] += len(rows)
            self.total[b] += wide[mine].sum(0)
            self.square[b] += wide[mine].square().sum()
            for s in stripes:
                self.outer[b, s, : s.stop].addmm_(rows[:, s].T, rows[:, : s.stop])

    def value(self) -> float:
        """The Fréchet distance to the reference."""
        return next(self._distances())

    def fid(self) -> tuple[float, tuple[float, ...]]:
        """The Fréchet distance to the reference, and without each block."""
        value, *replicates = self._distances()
        return value, tuple(replicates)

    def _distances(self) -> Iterator[float]:
        if not len(self.outer):
            return self._of_few(torch.cat(self.held))
        if self.held:
            self._fold()
        return self._of_many()

    def _of_many(self) -> Iterator[float]:
        sums = self.count, self.total, self.square, self.outer
        whole = [by_block.sum(0) for by_block in sums]

        def distance(n: Tensor, total: Tensor, square: Tensor, outer: Tensor) -> float:
            mean = total / n
            seen = mean @ self.factor
            scatter = outer.addr(seen, seen, alpha=-float(n))
            spread = (square - n * mean.square().sum()) / (n - 1)
            return self._distance(mean, spread, torch.linalg.eigvalsh(scatter) / (n - 1))

        yield distance(*whole)
        for b in range(self.blocks):
            yield distance(*(all_blocks - by_block[b] for all_blocks, by_block in zip(whole, sums)))

    def _of_few(self, wide: Tensor) -> Iterator[float]:
        """From samples X fewer than features: C1 C2 then has the eigenvalues of the small X C2 X^T."""
        block, gram = blocks_of(len(wide), self.blocks), between(wide, self.target.cov)

        def distance(kept: Tensor) -> float:
            rows, n = wide[kept], int(kept.sum())
            mean = rows.mean(0)
            centred = gram[kept][:, kept]
            centred = centred - centred.mean(0) - centred.mean(1, keepdim=True) + centred.mean()
            spread = (rows - mean).square().sum() / (n - 1)
            return self._distance(mean, spread, torch.linalg.eigvalsh(centred / (n - 1)))

        yield distance(block >= 0)
        for b in range(self.blocks):
            yield distance(block != b)

    def _distance(self, offset: Tensor, spread: Tensor, eigenvalues: Tensor) -> float:
        """From the offset of the means, tr C1 and the eigenvalues of C1 C2, rounding below 0 as it may."""
        shared = eigenvalues.clamp(min=0).sqrt().sum()
        return (offset.square().sum() + spread + self.target.cov.trace() - 2 * shared).item()


def stripes_of(dims: int) -> list[slice]:
    return [slice(first, min(first + STRIPE, dims)) for first in range(0, dims, STRIPE)]


def between(wide: Tensor, cov: Tensor) -> Tensor:
    """X C X^T for X (n, F) and a symmetric C (F, F): what lies above C's diagonal, and half of that, make one
    half of it, and its transpose the other.
    """
    seen = torch.empty_like(wide)
    for s in stripes_of(len(cov)):
        corner = cov[s, s].triu()
        corner.diagonal().mul_(0.5)
        torch.mm(wide[:, : s.start], cov[: s.start, s], out=seen[:, s])
        seen[:, s].addmm_(wide[:, s], corner)
    product = seen @ wide.T
    return product + product.T


def factor(cov: Tensor) -> Tensor:
    """The lower triangular L (F, F) with L L^T the covariance, which may be singular."""
    lower, failed = torch.linalg.cholesky_ex(cov)
    if not failed:
        return lower
    values, vectors = torch.linalg.eigh(cov)
    return torch.linalg.qr((vectors * values.clamp(min=0).sqrt()).T).R.T
