"""Noise on tokens: forward processes that act on each position by itself, and what every discrete method
computes with them.

A kernel knows the transition Q between any two of its times, from t = 0, the data, to t = 1, and
`between(t, s)` gives it with the operations that are ever needed, at a vector's cost where Q has structure:
a column Q(., x), a row Q(x, .) and a row vector p Q. Between the reverse transitions and the denoiser stands
one formula (Austin et al. 2021, arXiv:2107.03006, eq. 3 and 4),

    p(x_t | x_s) ~ Q_{t->s}(x_t, x_s) sum_k w(k) Q_{0->t}(k, x_t),    t < s.

With w one-hot at x_0 it is the process's own q(x_t | x_s, x_0). With w(k) = p(x_0 = k | x_s) / q(x_s | x_0 =
k), what the other positions say of x_0, it is the posterior mixture of those; D3PM's network gives w.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

TINY = 1e-30  # probabilities are kept above it where their logarithm is taken


class Mixed(NamedTuple):
    """A transition that keeps a token with probability `keep`, masks it with `mask`, and draws it evenly
    among all `levels` with what is left: O(K). A mask stays one; it is state number `levels`, which exists
    where `masks`. Probabilities are scalars or have rows (N, 1, ...).
    """

    keep: Tensor
    mask: Tensor
    levels: int
    masks: bool

    @property
    def even(self) -> Tensor:
        """The probability of each token to be drawn."""
        left = 1 - self.mask - self.keep
        return torch.where(left > 1e-12, left, 0.0) / self.levels

    def column(self, x: Tensor, dtype=torch.float64) -> Tensor:
        """(N, *shape, states): from each state, the probability to come to x (N, *shape)."""
        keep, mask, even = (rows(a, x).to(x.device, dtype)[..., None] for a in (*self[:2], self.even))
        states = self.levels + self.masks
        found = even + keep * functional.one_hot(x, states).to(dtype)
        if not self.masks:
            return found
        masked = (x == self.levels)[..., None]
        found = torch.where(masked, mask, found)
        found[..., self.levels :] = masked.to(dtype)
        return found

    def spread(self, p: Tensor) -> Tensor:
        """(N, *shape, states): where tokens distributed as p (N, *shape, levels) go."""
        keep, mask, even = (rows(a, p[..., 0]).to(p)[..., None] for a in (*self[:2], self.even))
        found = keep * p + even
        return torch.cat([found, mask.expand_as(found[..., :1])], -1) if self.masks else found

    def row(self, x: Tensor, dtype=torch.float64) -> Tensor:
        """(N, *shape, states): where tokens x (N, *shape) go."""
        return self.spread(functional.one_hot(x, self.levels).to(dtype))


class Matrix(NamedTuple):
    """A transition by its matrix (K, K), or one a row (N, K, K): O(K^2)."""

    matrix: Tensor

    def column(self, x: Tensor, dtype=torch.float64) -> Tensor:
        """As `Mixed.column`."""
        return self.picked(self.matrix.mT, x, dtype)

    def row(self, x: Tensor, dtype=torch.float64) -> Tensor:
        """As `Mixed.row`."""
        return self.picked(self.matrix, x, dtype)

    def picked(self, matrix: Tensor, x: Tensor, dtype) -> Tensor:
        matrix = matrix.to(x.device, dtype)
        if matrix.ndim == 2:
            return matrix[x]
        return matrix[torch.arange(len(x), device=x.device).view(-1, *[1] * (x.ndim - 1)), x]

    def spread(self, p: Tensor) -> Tensor:
        """As `Mixed.spread`."""
        matrix = self.matrix.to(p)
        if matrix.ndim == 2:
            return p @ matrix
        return (p.flatten(1, -2) @ matrix).view(p.shape)


class Kernel(nn.Module):
    """A forward process on tokens of so many `levels`, whose `states` are those and perhaps a mask."""

    levels: int
    states: int

    def between(self, t: Tensor | float, s: Tensor | float) -> Mixed | Matrix:
        """The transition from time t to s >= t; scalars, or (N,)."""
        raise NotImplementedError

    def stationary(self) -> Tensor:
        """(states,) where the process ends, and sampling begins."""
        return torch.full((self.levels,), 1 / self.levels, dtype=torch.float64)

    def noised(self, x0: Tensor, t: Tensor | float) -> Tensor:
        """A draw of x_t (N, *shape) from q(x_t | x_0), by torch's own generator."""
        return draw(self.between(0.0, t).row(x0, torch.float32))

    def log_evidence(self, x: Tensor, t: Tensor | float, dtype=torch.float64) -> Tensor:
        """(N, *shape, levels): log q(x_t | x_0 = k) for every k."""
        column = self.between(0.0, t).column(x, dtype)[..., : self.levels]
        return column.clamp(min=TINY).log()


class Mixing(Kernel):
    """Uniform noise, masks, or both: by the time t a token is still itself with probability `keep(t)`, a mask
    with `masked(t)`, and else drawn evenly. Both are functions of float64 times.
    """

    def __init__(
        self,
        levels: int,
        keep: Callable[[Tensor], Tensor],
        masked: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__()
        self.levels, self.states = levels, levels + (masked is not None)
        self.keep, self.masked = keep, masked

    def between(self, t: Tensor | float, s: Tensor | float) -> Mixed:
        t, s = torch.as_tensor(t, dtype=torch.float64), torch.as_tensor(s, dtype=torch.float64)
        keep, mask = self.keep(s) / self.keep(t), torch.zeros_like(s)
        if self.masked is not None:
            mask = 1 - (1 - self.masked(s)) / (1 - self.masked(t))
        return Mixed(keep, mask, self.levels, self.masked is not None)

    def stationary(self) -> Tensor:
        if self.masked is None:
            return super().stationary()
        mask = self.masked(torch.tensor(1.0, dtype=torch.float64))
        return torch.cat([super().stationary() * (1 - mask), mask[None]])


class Gaussian(Kernel):
    """Tokens that are levels of a quantity, moved as by a discretised normal (Austin et al. 2021, appendix
    A.2.3), in len(betas) steps; its times are those steps' ends.

    The way from one level to another has probability ~ exp(-4 d^2 / ((K - 1)^2 beta)), d levels apart, of all
    ways up and down; what leads outside is added to staying, so that the even distribution is stationary.
    """

    def __init__(self, levels: int, betas: Tensor):
        super().__init__()
        self.levels = self.states = levels
        self.steps = len(betas)
        distance = torch.arange(levels, dtype=torch.float64)
        apart = (distance[:, None] - distance).abs().long()
        energy = -4 * distance**2 / ((levels - 1) ** 2 * betas.double()[:, None])
        both = torch.cat([energy[:, 1:].flip(1), energy], 1)
        ways = both.softmax(1)[:, levels - 1 :].clone()  # (steps, levels): to one level so far away
        reach = functional.pad(ways[:, 1:].cumsum(1), (1, 0))  # to all levels on one side, up to so far away
        dtype = torch.float64 if levels <= 64 else torch.float32  # 1000 matrices of 256 levels are 262 MB
        self.register_buffer("ways", ways, persistent=False)
        self.register_buffer("stay", 1 - reach - reach.flip(1), persistent=False)
        self.register_buffer("apart", apart, persistent=False)
        after = [torch.eye(levels, dtype=torch.float64)]
        whole = torch.empty(self.steps + 1, levels, levels, dtype=dtype)
        whole[0] = after[0]
        for i in range(self.steps):
            after[0] = after[0] @ self.step(torch.tensor(i))
            whole[i + 1] = after[0]
        self.register_buffer("whole", whole, persistent=False)

    def step(self, i: Tensor) -> Tensor:
        """The matrices of steps i + 1, (*i.shape, K, K)."""
        found = self.ways[i][..., self.apart]
        return found - torch.diag_embed(found.diagonal(dim1=-2, dim2=-1) - self.stay[i])

    def between(self, t: Tensor | float, s: Tensor | float) -> Matrix:
        first, last = (
            (torch.as_tensor(at, dtype=torch.float64) * self.steps).round().long().to(self.ways.device)
            for at in (t, s)
        )
        if not bool(first.any()):
            return Matrix(self.whole[last])
        if bool((last - first <= 1).all()):
            single = self.step(first.clamp(max=self.steps - 1))
            same = (last == first).view(*first.shape, 1, 1)
            return Matrix(torch.where(same, self.whole[0].to(single), single))
        if first.ndim:
            raise ValueError("rows of their own take single steps of the chain")
        found = self.step(first)
        for i in range(int(first) + 1, int(last)):
            found = found @ self.step(torch.tensor(i))
        return Matrix(found)


class Spectral(Kernel):
    """A continuous-time chain of rate beta(t) R with a fixed matrix R (K, K) that has a stationary
    distribution and is in balance with it; `total(t)` is the integral of beta from 0 to t.
    """

    def __init__(self, rates: Tensor, end: Tensor, total: Callable[[Tensor], Tensor]):
        super().__init__()
        self.levels = self.states = len(rates)
        self.total = total
        root = end.double().sqrt()
        # balance makes root R / root symmetric, whose eigenvectors are orthonormal
        values, vectors = torch.linalg.eigh(root[:, None] * rates.double() / root)
        self.register_buffer("rates", rates.double(), persistent=False)
        self.register_buffer("end", end.double(), persistent=False)
        self.register_buffer("values", values.clamp(max=0), persistent=False)
        self.register_buffer("left", vectors / root[:, None], persistent=False)
        self.register_buffer("right", vectors.T * root, persistent=False)

    def between(self, t: Tensor | float, s: Tensor | float) -> Matrix:
        time = self.total(torch.as_tensor(s, dtype=torch.float64)) - self.total(
            torch.as_tensor(t, dtype=torch.float64)
        )
        kept = (time.to(self.values.device)[..., None] * self.values).exp()
        return Matrix(((self.left * kept[..., None, :]) @ self.right).clamp(min=0))

    def stationary(self) -> Tensor:
        return self.end


def normal(p: Tensor) -> Tensor:
    """p divided by its sums over the last dimension."""
    return p / p.sum(-1, keepdim=True).clamp(min=TINY)


def draw(p: Tensor) -> Tensor:
    """(N, *shape) a draw from each distribution p (N, *shape, K), which need not be normalised."""
    total = p.cumsum(-1)
    u = torch.rand(p.shape[:-1], dtype=p.dtype, device=p.device) * total[..., -1]
    return (total <= u[..., None]).sum(-1).clamp(max=p.shape[-1] - 1)


def divergence(q: Tensor, p: Tensor) -> Tensor:
    """KL(q || p) of each row in nats, (N,) float64: the sum over all its positions."""
    gap = torch.where(q > 0, q * (q.clamp(min=TINY).log() - p.clamp(min=TINY).log()), 0.0)
    return gap.flatten(1).sum(1, dtype=torch.float64)


def cosine(t: Tensor, s: float = 0.008) -> Tensor:
    """The cosine schedule (Nichol & Dhariwal 2021, eq. 17), unsquared: what Hoogeboom et al. 2021 keep of a
    token by the time t.
    """
    end = torch.cos(torch.as_tensor(s / (1 + s) * math.pi / 2, dtype=torch.float64))
    return torch.cos((t + s) / (1 + s) * math.pi / 2).clamp(min=0) / end


def rows(a: Tensor, x: Tensor) -> Tensor:
    """A scalar as it is, a value a row (N,) with x's trailing dimensions."""
    return a.view(-1, *[1] * (x.ndim - 1)) if a.ndim else a
