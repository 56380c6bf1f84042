"""The denoiser of tokens, and what the methods that go through a discrete chain share: the K-step bound, the
ancestral sampler, the loss.

A network is shown x_t (N, *shape), whole numbers of which the last may be a mask, and the time, and gives a
distribution over the levels of every token. Where the data is a known chain, the exact posterior stands in
its place.
"""

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

from bench.diffusion.categorical import Kernel, Matrix, Mixed, divergence, draw, normal
from bench.diffusion.counting import Counted
from bench.diffusion.token_nets import token_net

ENTRIES = 1 << 22  # of a table (rows, tokens, states) worked on at once


class TokenDenoiser(nn.Module):
    """A network, counted, with the kernel whose noise it takes away; calling it at (x_t, t) gives log
    probabilities (N, *shape, levels).

    `others` says what of: of w in `categorical`'s formula, what the other positions say (D3PM's network,
    which is never divided by the evidence), or of the posterior p(x_0 | x_t).
    """

    def __init__(self, net: nn.Module, kernel: Kernel, shape: tuple[int, ...], others: bool = False):
        super().__init__()
        self.net, self.kernel, self.shape, self.others = Counted(net), kernel, tuple(shape), others

    @property
    def exact(self) -> bool:
        return isinstance(self.net.net, ExactTokens)

    @property
    def at_once(self) -> int:
        """How many rows are worked on at once, that their tables of states fit a CPU's caches."""
        return fitting(self.shape, self.kernel.states)

    def forward(self, x: Tensor, t: Tensor | float) -> Tensor:
        t = torch.as_tensor(t, dtype=torch.float64)
        if self.exact:
            return self.net(x, self.kernel.log_evidence(x, t), self.others)
        return self.net(x, t.to(x.device, torch.float32).expand(len(x))).log_softmax(-1)

    def log_weights(self, x: Tensor, t: Tensor | float) -> Tensor:
        """log w, up to a constant: what the other positions say of x_0."""
        return self.as_weights(self(x, t), x, t)

    def as_weights(self, told: Tensor, x: Tensor, t: Tensor | float) -> Tensor:
        """log w from what the network gave for x_t."""
        return told if self.others else told - self.kernel.log_evidence(x, t, told.dtype)

    def log_posterior(self, x: Tensor, t: Tensor | float) -> Tensor:
        """log p(x_0 | x_t)."""
        found = self(x, t)
        if not self.others:
            return found
        return (found + self.kernel.log_evidence(x, t, found.dtype)).log_softmax(-1)

    def prior(self, n: int, generator: torch.Generator | None = None, device="cpu") -> Tensor:
        """n draws of x at t = 1, (n, *shape), made on the CPU."""
        end = self.kernel.stationary().cpu().cumsum(0)
        u = torch.rand(n, *self.shape, generator=generator).double()
        return torch.searchsorted(end, u, right=True).clamp(max=len(end) - 1).to(device)


class ExactTokens(nn.Module):
    """The perfect network of a chain: the evidence at each position to the posterior of each."""

    def __init__(self, chain: nn.Module):
        super().__init__()
        self.chain = chain

    def forward(self, x: Tensor, log_evidence: Tensor, others: bool) -> Tensor:
        return self.chain.posterior(log_evidence, own=not others)


def token_denoiser(
    data, kernel: Kernel, others: bool = False, logistic: bool = False, learned: bool = False
) -> TokenDenoiser:
    """The untrained denoiser of `data` under a kernel; of a known chain the exact one, unless `learned`."""
    if data.exact is not None and not learned:
        net = ExactTokens(type(data.exact)(data.exact.matrix, data.exact.length))
    else:
        net = token_net(data, kernel.states > kernel.levels, logistic)
    return TokenDenoiser(net, kernel, data.shape, others)


def step_loss(
    denoiser: TokenDenoiser, x0: Tensor, steps: int, auxiliary: float = 0.0, s: Tensor | None = None
) -> Tensor:
    """(N,) nats a token: the bound of a chain of so many steps by one of them a row, drawn evenly unless `s`
    (N,) tells which; and with a weight, the cross-entropy of the network's own output.
    """
    kernel = denoiser.kernel
    s = torch.randint(1, steps + 1, (len(x0),)) if s is None else s
    t, s = (s.double() - 1) / steps, s.double() / steps
    x = kernel.noised(x0, s)
    told = denoiser(x, s)
    log_weights = denoiser.as_weights(told, x, s)
    q, p = both(kernel.between(t, s), kernel.between(0.0, t), log_weights, x, x0)
    loss = steps * divergence(q, p)
    if auxiliary:
        own = told.log_softmax(-1).gather(-1, x0[..., None])
        loss = loss - auxiliary * own.flatten(1).sum(1)
    return (loss / x0[0].numel()).float()


def step_bound(denoiser: TokenDenoiser, x0: Tensor, times: Tensor) -> dict[str, Tensor]:
    """The K-step variational bound of -log P(x0) in nats a row, term by term; K = len(times) - 1 rows a
    sample.

    times: falling from 1 to 0. Each term is estimated with one draw of x_s from q(x_s | x0); the last is
    -log p(x_0 | x_s).
    """
    kernel = denoiser.kernel
    none = torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
    total = {"prior": prior_kl(kernel, x0), "diffusion": none, "reconstruction": none}
    for s, t in pairwise(times):
        back, ahead = kernel.between(t, s), kernel.between(0.0, t)
        terms = []
        for piece in pieces(x0, kernel.states):
            x = kernel.noised(piece, s)
            terms.append(divergence(*both(back, ahead, denoiser.log_weights(x, s), x, piece)))
        name = "diffusion" if t > 0 else "reconstruction"
        total[name] = total[name] + torch.cat(terms)
    return total


def ancestral(denoiser: TokenDenoiser, x: Tensor, times: Tensor, last: str = "draw") -> Tensor:
    """x at times[-1] = 0 by draws from p(x_t | x_s); with `last` "mode" the last is the likeliest token."""
    kernel = denoiser.kernel
    for s, t in pairwise(times):
        back, ahead = kernel.between(t, s), kernel.between(0.0, t)
        found = []
        for piece in pieces(x, kernel.states):
            weights = denoiser.log_weights(piece, s).softmax(-1)
            p = back.column(piece, weights.dtype) * ahead.spread(weights)
            ends = p[..., : kernel.levels]
            found.append(draw(p) if t > 0 else ends.argmax(-1) if last == "mode" else draw(ends))
        x = torch.cat(found)
    return x


def both(
    back: Mixed | Matrix, ahead: Mixed | Matrix, log_weights: Tensor, x: Tensor, x0: Tensor
) -> tuple[Tensor, Tensor]:
    """q(x_t | x_s, x0) and p(x_t | x_s), (N, *shape, states): `back` from t to s, `ahead` from 0 to t."""
    column = back.column(x, log_weights.dtype)
    weights = log_weights.softmax(-1)
    return normal(column * ahead.row(x0, weights.dtype)), normal(column * ahead.spread(weights))


def prior_kl(kernel: Kernel, x0: Tensor) -> Tensor:
    """KL(q(x_1 | x0) || the stationary distribution) of each row: what the start of sampling gets wrong."""
    ends = kernel.between(0.0, 1.0).row(torch.arange(kernel.levels, device=x0.device))
    each = torch.stack([divergence(q[None], kernel.stationary().to(q)[None]) for q in ends[:, None]])
    return each[x0, 0].flatten(1).sum(1)


def grid(steps: int, nfe: int) -> Tensor:
    """Falling times from 1 to 0 of a chain of so many steps, `nfe` of them or all, as even as they lie."""
    return torch.linspace(steps, 0, min(nfe, steps) + 1, dtype=torch.float64).round() / steps


def pieces(x: Tensor, states: int) -> Iterator[Tensor]:
    """The rows of x, so many at once as fit a table of their states."""
    return iter(x.split(fitting(x.shape[1:], states)))


def fitting(shape: tuple[int, ...], states: int) -> int:
    return max(1, ENTRIES // (math.prod(shape) * states))
