"""Tau-leaping of a continuous-time chain: noise is a Markov chain with rates R_t, and so is its reverse, with

    R^_t(x -> y) = R_t(y -> x) sum over k of p(x_0 = k | x) q(y | k) / q(x | k)

in each position (Propositions 1 and 3 of the paper). A leap lets all jumps of a time h happen at the rates of
its start: their numbers are Poisson. Of tokens in an order they add up; else a position with more than one is
left as it is. Corrector leaps, at the rates R_t + R^_t that leave the marginal as it is (Proposition 4),
follow each predictor's late in sampling. At `end` the likeliest token is taken.

The continuous-time bound is the relative entropy of the paths of the process's own reverse, given x_0, whose
rates R~ have q(y | x_0) / q(x | x_0) for that sum, to the model's,

    integral of E sum over y of (R^ - R~ + R~ log(R~ / R^))(x_t -> y) dt,

plus what the prior and the last step get wrong. It equals the paper's (Proposition 2), whose logarithm looks
at one jump more; here one evaluation serves both terms. The network gives p(x_0 = k | x) / q(x | k), what the
other positions say, instead of p, so that nothing is divided by the probability of a rare x.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor

from bench.diffusion.categorical import Spectral, rows
from bench.diffusion.tokens import TokenDenoiser, pieces, prior_kl, token_denoiser
from bench.diffusion.training import fit
from bench.method import Method


class TauLDR(Method):
    """tauLDR"""

    paper = "arXiv:2205.14987"
    base = None
    kinds = {"tokens"}
    schedules = ()
    least = 2
    likelihood = "elbo"
    dequantise = "none"
    share = 0.35

    rate: str = ""  # "gaussian" or "uniform"; "" is the paper's, the first for images, else the second
    auxiliary: float = 0.001  # weight of the cross-entropy in training
    end: float = 0.01
    correctors: int = 0  # leaps after each predictor's; the paper's best has 10
    late: float = 0.1  # the time from which on there are correctors
    longer: float = 1.5  # their length, in predictor leaps
    learned: bool = False  # a network where the exact denoiser is known

    def build(self, base: None, data, nfe: int) -> TokenDenoiser:
        image = len(data.shape) == 3
        ordinal = self.rate == "gaussian" or (not self.rate and image)
        kernel = normal_rates(data.levels) if ordinal else even_rates(data.levels)
        model = token_denoiser(data, kernel, True, ordinal and image, self.learned)
        model.ordinal = ordinal
        return model

    def train(self, model: TokenDenoiser, base: None, data, images: int, nfe: int) -> None:
        def loss(x0: Tensor, generator) -> Tensor:
            t = self.end + (1 - self.end) * torch.rand(len(x0)).double()
            x = model.kernel.noised(x0, t)
            log_w = model(x, t)
            own = (log_w + model.kernel.log_evidence(x, t, log_w.dtype)).log_softmax(-1)
            own = own.gather(-1, x0[..., None]).flatten(1).sum(1)
            return (path_term(model, log_w, x, x0, t) - self.auxiliary * own).float() / x0[0].numel()

        if not model.exact:
            fit(loss, model, data, images, lr=2e-3, at_once=model.at_once)

    def sample(self, model: TokenDenoiser, x: Tensor, nfe: int) -> Tensor:
        return torch.cat([self.leapt(model, piece, nfe) for piece in pieces(x, model.kernel.states)])

    def leapt(self, model: TokenDenoiser, x: Tensor, nfe: int) -> Tensor:
        times = self.times(nfe)
        for s, t in pairwise(times.tolist()):
            back, _ = self.rates(model, x, s)
            x = leap(x, back * (s - t), model.ordinal)
            for _ in range(self.correctors if s <= self.late else 0):
                back, ahead = self.rates(model, x, t)
                x = leap(x, (back + ahead) * (s - t) * self.longer, model.ordinal)
        return model.log_posterior(x, self.end).argmax(-1)

    def times(self, nfe: int) -> Tensor:
        """Falling times from 1 to `end`, as many as leave the correctors and the last look their share."""
        for steps in range(nfe - 1, 0, -1):
            times = torch.linspace(1, self.end, steps + 1, dtype=torch.float64)
            if steps + self.correctors * int((times[:-1] <= self.late).sum()) + 1 <= nfe:
                return times
        return torch.tensor([1.0, self.end], dtype=torch.float64)

    def rates(self, model: TokenDenoiser, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """(N, *shape, K): from x to every other token, the model's reverse rates and the forward ones."""
        kernel = model.kernel
        ratio = ratios(kernel.between(0.0, t).spread(model.log_weights(x, t).softmax(-1)), x)
        return into(kernel, x, t, ratio.dtype) * ratio, out_of(kernel, x, t, ratio.dtype)

    def nll(self, model: TokenDenoiser, x: Tensor, nfe: int) -> dict[str, Tensor]:
        path, last = [], []
        for piece in pieces(x, model.kernel.states):
            parts = (torch.arange(nfe - 1)[:, None] + torch.rand(nfe - 1, len(piece)).double()) / (nfe - 1)
            total = torch.zeros(len(piece), dtype=torch.float64, device=x.device)
            for t in self.end + (1 - self.end) * parts:
                noisy = model.kernel.noised(piece, t)
                total += path_term(model, model.log_weights(noisy, t), noisy, piece, t)
            path.append((1 - self.end) * total / (nfe - 1))
            seen = model.kernel.noised(piece, self.end)
            own = model.log_posterior(seen, self.end).gather(-1, piece[..., None])
            last.append(-own.double().flatten(1).sum(1))
        terms = {"diffusion": torch.cat(path), "reconstruction": torch.cat(last)}
        return {"prior": prior_kl(model.kernel, x)} | terms


def even_rates(levels: int, total: float = 6.0, growth: float = 100.0) -> Spectral:
    """Rates of an even draw, growing as `normal_rates`; at t = 1 a token is kept with probability
    exp(-total). The paper's are constant in time, and of 129 notes their total is 3.9.
    """
    rates = torch.full((levels, levels), 1 / levels).double() - torch.eye(levels).double()
    return growing(rates, torch.full((levels,), 1 / levels), total / (growth - 1), growth)


def normal_rates(
    levels: int, reach: float = 6.0, spread: float = 512.0, base: float = 3.0, growth: float = 100.0
) -> Spectral:
    """Rates exp(-d^2 / reach^2) to levels d apart, in balance with a discretised normal of deviation
    `spread`, and `base` growth^t log(growth) as strong at time t. These are the paper's for 256 levels;
    of fewer, a token crosses the same share of the range in the same time.
    """
    scale = (levels - 1) / 255
    level = torch.arange(levels, dtype=torch.float64)
    end = torch.exp(-((level - (levels - 1) / 2) ** 2) / (2 * (spread * scale) ** 2))
    end = end / end.sum()
    near = max(reach * scale, 1.0)
    rates = torch.exp(-((level[:, None] - level) ** 2) / near**2) * (end[None] / end[:, None]).sqrt()
    far = torch.arange(1, 256, dtype=torch.float64)
    wanted = scale**2 * (far**2 * torch.exp(-((far / reach) ** 2))).sum()
    rates = rates * wanted / (far**2 * torch.exp(-((far / near) ** 2))).sum()
    rates = rates - torch.diag(rates.sum(1))
    return growing(rates, end, base, growth)


def growing(rates: Tensor, end: Tensor, base: float, growth: float) -> Spectral:
    """A kernel of these rates times base growth^t log(growth), which is its `speed`."""
    kernel = Spectral(rates, end, lambda t: base * (growth**t - 1))
    kernel.speed = lambda t: base * math.log(growth) * growth**t
    return kernel


def into(kernel: Spectral, x: Tensor, t: Tensor | float, dtype) -> Tensor:
    """(N, *shape, K): the rates R_t(y -> x) from every other token y."""
    return others(kernel.rates.mT, kernel, x, t, dtype)


def out_of(kernel: Spectral, x: Tensor, t: Tensor | float, dtype) -> Tensor:
    """(N, *shape, K): the rates R_t(x -> y) to every other token y."""
    return others(kernel.rates, kernel, x, t, dtype)


def others(rates: Tensor, kernel: Spectral, x: Tensor, t: Tensor | float, dtype) -> Tensor:
    found = (rates - torch.diag(rates.diagonal())).to(x.device, dtype)[x]
    return found * rows(kernel.speed(torch.as_tensor(t, dtype=torch.float64)), found).to(found)


def ratios(p: Tensor, x: Tensor) -> Tensor:
    """(N, *shape, K): the probability of every token as a share of that of x's."""
    return p / p.gather(-1, x[..., None]).clamp(min=1e-20)


def path_term(model: TokenDenoiser, log_weights: Tensor, x: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """(N,) nats per unit of time: the integrand of the bound at x = x_t, float64."""
    seen = model.kernel.between(0.0, t)
    truth = ratios(seen.row(x0, log_weights.dtype), x)
    ours = ratios(seen.spread(log_weights.softmax(-1)), x)
    gap = ours - truth + truth * (truth.clamp(min=1e-20) / ours.clamp(min=1e-20)).log()
    return (into(model.kernel, x, t, gap.dtype) * gap).flatten(1).sum(1, dtype=torch.float64)


def leap(x: Tensor, means: Tensor, ordinal: bool) -> Tensor:
    """x after as many jumps to every token as a Poisson number of these means."""
    jumps = torch.poisson(means.clamp(max=1e6))
    if ordinal:
        level = torch.arange(means.shape[-1], device=x.device).to(means)
        moved = x + (jumps * (level - x[..., None])).sum(-1)
        return moved.round().clamp(0, means.shape[-1] - 1).long()
    return torch.where(jumps.sum(-1) == 1, jumps.argmax(-1), x)
