"""The variance of x0 given x, from which the best variance of a reverse step follows (Bao et al. 2022,
arXiv:2201.06503 and arXiv:2206.07309).

In z = x / alpha = x0 + r eps with r = sigma / alpha, Var[x0 | x] = r^2 Var[eps | x]. If the data were one
normal of variance sigma_data^2 it would be r^2 sigma_data^2 / (r^2 + sigma_data^2). Tables and heads give it
in this unit: there it is of one size at every noise level.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from bench.diffusion.counting import counting
from bench.diffusion.denoiser import Denoiser, Prediction, noise_like, rowwise
from bench.diffusion.distillation import spent
from bench.diffusion.dynamic import cheapest_paths
from bench.diffusion.likelihood import normal_kl, step_bound
from bench.diffusion.networks import second_head
from bench.diffusion.steps import ancestral, clipped, posterior
from bench.diffusion.training import fit

ROWS = 256  # images evaluated at once, each under a noise and its negative
Reverse = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def unit(r: Tensor, sigma_data: float) -> Tensor:
    """Var[x0 | x] at noise r = sigma / alpha, if the data were normal."""
    return r**2 * sigma_data**2 / (r**2 + sigma_data**2)


def largest(denoiser: Denoiser) -> float:
    """The most that a coordinate of x0 can vary: 1 where the data are levels between -1 and 1."""
    return 1.0 if denoiser.levels else math.inf


class MeanVariance(nn.Module):
    """A denoiser, and the mean of Var[x0 | x] over x and coordinates, in its unit, on a grid of half log-SNRs
    that spans all it knows: it serves every budget and every schedule. Zero before it is estimated.
    """

    def __init__(self, base: Denoiser, knots: int):
        super().__init__()
        self.base = base
        self.register_buffer("lam", torch.linspace(*base.known, knots + 1, dtype=torch.float64))
        self.register_buffer("table", torch.zeros(knots + 1, dtype=torch.float64))

    def prior(self, n: int, generator: torch.Generator | None = None, device="cpu") -> Tensor:
        return self.base.prior(n, generator, device)

    @torch.no_grad()
    def estimate(self, x0: Tensor, generator: torch.Generator) -> None:
        """Fill the table from data x0 (n, *shape): r^2 (1 - E|eps(x)|^2 / d) at each knot.

        The 1 is taken as the drawn noise's own mean square, and every noise is used with its negative; both
        leave the expectation as it is, and where r is large, noise would otherwise drown the difference.
        Since a noisier x leaves no less of the variance, a knot whose value is lower than that of one with
        less noise, as an imperfect network's may be, takes the latter's.
        """
        total = torch.zeros_like(self.table)
        with counting(self.base) as tallies:
            for rows in x0.split(ROWS):
                noise = torch.randn(rows.shape, generator=generator).to(self.lam.device)
                clean, eps = rows.to(noise).repeat(2, *[1] * (rows.ndim - 1)), torch.cat([noise, -noise])
                for i, r in enumerate(torch.exp(-self.lam)):
                    z = clean + rowwise(r, clean) * eps
                    error = (clean - self.base.at(z, torch.ones_like(r), r).x0).double()
                    # eps(x) = eps + error / r
                    total[i] -= (2 * r * eps * error + error**2).sum()
        spent(tallies["nfe"].rows)
        variance = (total / (2 * x0.numel())).flip(0).cummax(0).values.flip(0)  # lambda rises, noise falls
        self.table.copy_(variance / unit(torch.exp(-self.lam), self.base.sigma_data))

    def at(self, lam: Tensor) -> Tensor:
        """The mean variance at half log-SNRs, linear between knots in its unit, within the paper's bounds:
        those of Var[eps | x], 0 and 1, and that of the data.
        """
        lam = lam.to(self.lam)
        last = len(self.lam) - 1
        place = (lam - self.lam[0]) / (self.lam[-1] - self.lam[0]) * last
        left = place.long().clamp(0, last - 1)
        share, r = self.table[left].lerp(self.table[left + 1], place - left), torch.exp(-lam)
        most = (r**2).clamp(max=largest(self.base))
        return (share * unit(r, self.base.sigma_data)).clamp(min=0).minimum(most)

    def of(self, out: Prediction) -> Tensor:
        """The mean variance at a prediction's scales, as `best_reverse` wants it."""
        return self.at(torch.log(out.alpha) - torch.log(out.sigma)).cpu()

    def best_times(self, nfe: int) -> Tensor:
        """nfe + 1 falling times, the last two t_min and 0, that minimise the sum of log(best variance /
        posterior's) over the steps between (Bao et al. 2022, arXiv:2201.06503).
        """
        schedule = self.base.schedule
        grid = schedule.steps(max(2 * (len(self.lam) - 1), nfe - 1))
        q = posterior(schedule, grid[:, None], grid[None, :])
        variance = self.at(schedule.lam(grid)).cpu()[:, None]
        return cheapest_times(grid, torch.log1p(q.on_x0**2 * variance / q.variance), nfe)


def chosen(data, points: int) -> tuple[Tensor, torch.Generator]:
    """`points` training data (points, *shape) on [-1, 1], the same ones always, and the generator that chose
    them.
    """
    generator = torch.Generator().manual_seed(0)
    index = torch.randperm(len(data.train), generator=generator)[:points]
    return data.scale(data.train[index.sort().values]), generator


def cheapest_times(grid: Tensor, cost: Tensor, nfe: int) -> Tensor:
    """nfe + 1 of the grid's falling times, 0 after the last, along the cheapest path from first to last."""
    if nfe == 1:
        return torch.stack([grid[0], torch.zeros_like(grid[0])])
    path = cheapest_paths(cost, nfe - 1)[1][-1]
    return torch.cat([grid[path], grid.new_zeros(1)])


def best_reverse(denoiser: Denoiser, variance: Callable[[Prediction], Tensor], clip: float = 0.0) -> Reverse:
    """DDPM's reverse step with the variance that is best for it: the posterior's, and x0's by the square of
    its coefficient in the mean. variance: Var[x0 | x], a scalar or of x's shape. clip: bound on x0, 0 is
    none.
    """

    def reverse(x: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        q, out = posterior(denoiser.schedule, s, t), denoiser(x, s)
        x0 = clipped(out.x0, clip or None)
        return q.on_x * x + q.on_x0 * x0, q.variance + q.on_x0**2 * variance(out)

    return reverse


def positive(extra: Tensor) -> Tensor:
    """What a second head says, made positive; 1 where it says 0."""
    return nn.functional.softplus(extra + math.log(math.e - 1))


def by_head(denoiser: Denoiser, out: Prediction) -> Tensor:
    """Var[x0 | x] of each coordinate, in x's shape, as the second head says it in its unit."""
    scale = unit(out.sigma / out.alpha, denoiser.sigma_data)
    return (rowwise(scale, out.x) * positive(out.extra)).clamp(max=largest(denoiser))


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    # Both are least at the conditional mean of the target; the bound feels relative errors.
    "square": lambda target, value: (target - value) ** 2,
    "relative": lambda target, value: target / value + value.log(),
}


def headed(base: Denoiser, hidden: int) -> Denoiser:
    """The base, frozen, with a second head of that width."""
    return base.with_head(lambda width: second_head(width, base.shape, hidden))


def noised(denoiser: Denoiser, x0: Tensor, generator: torch.Generator) -> tuple[Tensor, Prediction, Tensor]:
    """What a second head learns from: noise eps, the prediction at x0 (n, *shape) noised by it, at half
    log-SNRs even over the schedule, and the unit of Var[eps | x] there, shaped for eps. 2n rows: the second
    half has the noise of the first with its sign changed.
    """
    first, last = (denoiser.schedule.lam(t) for t in (denoiser.schedule.t_max, denoiser.schedule.t_min))
    place = torch.rand(len(x0), generator=generator, device=generator.device).double()
    r = torch.exp(-(first + place * (last - first))).to(x0.device).repeat(2)
    eps = noise_like(x0, generator)
    x0, eps = torch.cat([x0, x0]), torch.cat([eps, -eps])
    out = denoiser.at(x0 + rowwise(r, x0) * eps, torch.ones_like(r), r)
    return eps, out, rowwise(unit(r, denoiser.sigma_data) / r**2, x0)


def squared_noise(denoiser: Denoiser, x0: Tensor, generator: torch.Generator, loss: str) -> Tensor:
    """SN's regression, of E[eps^2 | x], read as eps(x)^2 and what the head says. 2n losses."""
    eps, out, scale = noised(denoiser, x0, generator)
    normal, said = out.eps**2 + scale, out.eps**2 + scale * positive(out.extra)
    return LOSSES[loss](eps**2 / normal, said / normal).flatten(1).mean(1)


def squared_residual(denoiser: Denoiser, x0: Tensor, generator: torch.Generator, loss: str) -> Tensor:
    """NPR's regression, of E[(eps - eps(x))^2 | x], which is what the head says. 2n losses."""
    eps, out, scale = noised(denoiser, x0, generator)
    return LOSSES[loss]((eps - out.eps) ** 2 / scale, positive(out.extra)).flatten(1).mean(1)


def fit_head(
    regression: Callable[[Denoiser, Tensor, torch.Generator, str], Tensor],
    denoiser: Denoiser,
    data,
    images: int,
    loss: str,
    lr: float,
) -> None:
    """Fit the second head within `images` evaluations: each image is seen twice, under a noise and its
    negative.
    """
    fit(
        lambda x0, generator: regression(denoiser, x0, generator, loss),
        denoiser,
        data,
        images // 2,
        batch=64,
        lr=lr,
        clip=10.0,
    )


class Planned(nn.Module):
    """A denoiser with a second head, and the cost (n + 1, n + 1) in nats a row of each step between n + 1
    falling times, on training data: the chain of the least bound for every number of steps. 0 before `plan`.
    """

    def __init__(self, base: Denoiser, candidates: int):
        super().__init__()
        self.base = base
        self.register_buffer("grid", base.schedule.steps(candidates))
        self.register_buffer("cost", torch.zeros(candidates + 1, candidates + 1, dtype=torch.float64))

    def prior(self, n: int, generator: torch.Generator | None = None, device="cpu") -> Tensor:
        return self.base.prior(n, generator, device)

    @torch.no_grad()
    def plan(self, x0: Tensor, generator: torch.Generator) -> None:
        """Fill the costs from data x0 (n, *shape): the bound's terms, one evaluation a time and image."""
        grid, x0 = self.grid.cpu(), x0.to(self.grid.device)
        noise = torch.randn(x0.shape, generator=generator).to(x0)
        with counting(self.base) as tallies:
            for i, s in enumerate(grid[:-1]):
                out = self.base(self.base.noised(x0, s, noise), s)
                left, q = by_head(self.base, out), posterior(self.base.schedule, s, grid[i + 1 :])
                for j, (c, v) in enumerate(zip(q.on_x0, q.variance), i + 1):
                    self.cost[i, j] = normal_kl(c * x0, v, c * out.x0, v + c**2 * left).mean()
        spent(tallies["nfe"].rows)

    def times(self, nfe: int, trajectory: str = "optimal") -> Tensor:
        """nfe + 1 falling times, the last two t_min and 0: "optimal", or "even" in time."""
        if trajectory == "even":
            return self.base.schedule.steps(nfe, "time", end="zero")
        if nfe - 1 > len(self.grid) - 1:  # more steps than candidates: even in lambda, as they are
            return self.base.schedule.steps(nfe, end="zero")
        return cheapest_times(self.grid.cpu(), self.cost.cpu(), nfe)

    def reverse(self, clip: float) -> Reverse:
        """The chain's step, with the variance that the head says."""
        return best_reverse(self.base, partial(by_head, self.base), clip)

    def sampled(self, x: Tensor, nfe: int, trajectory: str, clip: float) -> Tensor:
        """Samples (N, *shape) of the chain from x."""
        return ancestral(x, self.times(nfe, trajectory), self.reverse(clip))

    def bound(self, x: Tensor, nfe: int, trajectory: str, clip: float) -> dict[str, Tensor]:
        """The terms of the same chain's bound."""
        even = trajectory == "even"
        return chain_bound(self.base, x, self.times(nfe, trajectory), self.reverse(clip), even)


def pixel(denoiser: Denoiser, pixels: float) -> float | None:
    """The deviation of noise that changes a level by `pixels` levels in the mean; None without levels or
    where pixels is 0.
    """
    return pixels * 2 / (denoiser.levels - 1) * math.sqrt(math.pi / 2) if denoiser.levels and pixels else None


def chain_bound(
    denoiser: Denoiser, x: Tensor, times: Tensor, reverse: Reverse, even: bool = True
) -> dict[str, Tensor]:
    """`step_bound` with the last step's variance as these papers have it for levels, that of the posterior of
    the step before; for a density, and in chains whose steps are not even and may be very short there, the
    reverse step's own, no less than that.
    """

    def with_last(x: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        mean, variance = reverse(x, s, t)
        if t > 0:
            return mean, variance
        if len(times) == 2:
            return mean, variance.clamp(min=float(denoiser.schedule.sigma(denoiser.schedule.t_min)) ** 2)
        own = posterior(denoiser.schedule, times[-3], times[-2]).variance
        return mean, own if denoiser.levels and even else variance.clamp(min=float(own))

    return step_bound(denoiser, x, times, with_last)
