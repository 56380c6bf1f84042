"""Watson's schedule: the times of a K-step DDPM that maximise its training bound, by dynamic programming.

The bound is a sum of terms L(s, t), one for each step of the chain, whatever the other steps are. For a step
from s to t > 0 of DDPM with a fixed variance p, with v and c the posterior's variance and coefficient of x0,

    L(s, t) = d/2 (v/p - 1 - log v/p) + c^2 E|x0 - x0(x_s)|^2 / (2 p)

depends on the network only by its error at s, so that one evaluation a candidate time and image gives the
whole table; L(s, 0) is the reconstruction from s. The cheapest path of K steps through the table is the
schedule: one table serves every K. Sampling and bound are DDPM's.
"""

import torch
from torch import Tensor, nn

from bench.diffusion.counting import counting
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.distillation import spent
from bench.diffusion.dynamic import cheapest_paths
from bench.diffusion.likelihood import bin_log_density, normal_log_prob, per_row, step_bound
from bench.diffusion.steps import ancestral, clipped, posterior
from bench.method import Method


class WatsonDP(Method):
    """DP schedule (Watson et al. 2021)"""

    paper = "arXiv:2106.03802"
    schedules = ("ddpm", "vp", "vp_cosine", "subvp", "ve", "edm", "flow")
    likelihood = "elbo"
    dequantise = "none"

    variance: str = "beta"  # of the steps before the last, as in DDPM; "posterior" is the other
    clip: float = 0.0  # bound on x0 in each step; DDPM's code clips images to 1, 0 is none
    candidates: int = 200  # times to choose from, even in lambda; the paper takes all its 1000 or 4000 steps
    points: int = 128  # training data at each

    def build(self, base: Denoiser, data, nfe: int) -> nn.Module:
        return Paths(base, self.candidates)

    @torch.no_grad()
    def train(self, model: nn.Module, base: Denoiser, data, images: int, nfe: int) -> None:
        generator = torch.Generator().manual_seed(0)
        chosen = torch.randperm(len(data.train), generator=generator)[: self.points]
        x0 = data.scale(data.train[chosen.sort().values]).to(model.times.device)
        noise = torch.randn(x0.shape, generator=generator).to(x0)
        with counting(base) as tallies:
            cost = self.terms(base, x0, noise, model.times.cpu())
        spent(tallies["nfe"].rows)
        model.paths.copy_(cheapest_paths(cost, self.candidates)[1])

    def terms(self, base: Denoiser, x0: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """L(s, t) (len(times), len(times)) of falling times, the last 0, in nats a row."""
        cost = torch.full((len(times), len(times)), torch.inf, dtype=torch.float64)
        for i, s in enumerate(times[:-1]):
            x = base.noised(x0, s, noise)
            predicted = clipped(base(x, s).x0, self.clip or None)
            q = posterior(base.schedule, s, times[i + 1 :])
            p = self.of_step(q, times[i + 1 :])
            error, ratio = per_row((x0 - predicted) ** 2).mean().cpu(), q.variance / p
            cost[i, i + 1 :] = x0[0].numel() / 2 * (ratio - 1 - ratio.log()) + q.on_x0**2 * error / (2 * p)
            if base.levels:
                cost[i, -1] = -bin_log_density(x0, predicted, p[-1], base.levels).mean()
            else:
                cost[i, -1] = -normal_log_prob(x0, predicted.double(), p[-1]).mean()
        return cost

    def sample(self, model: nn.Module, x: Tensor, nfe: int) -> Tensor:
        return ancestral(x, model.chain(nfe), lambda *at: self.reverse(model.base, *at))

    def nll(self, model: nn.Module, x: Tensor, nfe: int) -> dict[str, Tensor]:
        return step_bound(model.base, x, model.chain(nfe), lambda *at: self.reverse(model.base, *at))

    def reverse(self, base: Denoiser, x: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of p(x_t | x_s)."""
        q = posterior(base.schedule, s, t)
        x0 = clipped(base(x, s).x0, self.clip or None)
        return q.on_x * x + q.on_x0 * x0, self.of_step(q, t)

    def of_step(self, q, t: Tensor) -> Tensor:
        """The variance of steps that arrive at t; the posterior's is none where t is 0."""
        return q.forward if self.variance == "beta" else torch.where(t > 0, q.variance, q.forward)


class Paths(nn.Module):
    """A denoiser, its candidate times (n + 1,), falling to 0, and for each K up to n which of them a chain of
    K steps visits: row K - 1 of `paths`, even ones before the search.
    """

    def __init__(self, base: Denoiser, n: int):
        super().__init__()
        self.base = base
        self.register_buffer("times", base.schedule.steps(n, end="zero"))
        even = [torch.linspace(0, n, k + 1).round().long() for k in range(1, n + 1)]
        rows = [torch.cat([row, row.new_full((n + 1 - len(row),), n)]) for row in even]
        self.register_buffer("paths", torch.stack(rows))

    def prior(self, n: int, generator: torch.Generator | None = None, device="cpu") -> Tensor:
        return self.base.prior(n, generator, device)

    def chain(self, nfe: int) -> Tensor:
        """nfe + 1 falling times, the last 0; for more steps than candidates, even in lambda as they are."""
        if nfe > len(self.paths):
            return self.base.schedule.steps(nfe, end="zero")
        return self.times[self.paths[nfe - 1, : nfe + 1]].cpu()
