"""Analytic-DDPM: ancestral sampling with the reverse variance that maximises the bound, in closed form.

The best variance of a step from s to t is the posterior's, v, plus the variance of x0 given x_s times the
square of its factor c in the mean (Theorem 1),

    v + c^2 (sigma_s^2/alpha_s^2) (1 - E|eps(x_s)|^2 / d),    c = alpha_t (1 - e^{2 (lambda_s - lambda_t)}),

with the expectation estimated once on training data (eq. 8) and the result kept within the bounds of Theorem
2. The noise drawn last changes no pixel by more than `pixels` levels in the mean (appendix F). The even
trajectory is DDPM's; the optimal one minimises the sum of log(best variance / v) by dynamic programming
(section 4).
"""

import torch
from torch import Tensor

from bench.diffusion.covariance import MeanVariance, chain_bound, pixel
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.dynamic import cheapest_paths
from bench.diffusion.steps import ancestral, clipped, posterior
from bench.method import Method


class AnalyticDDPM(Method):
    """Analytic-DDPM"""

    paper = "arXiv:2201.06503"
    entry = "analytic_dpm"
    schedules = ("ddpm", "vp", "vp_cosine", "subvp", "ve", "edm", "flow")
    likelihood = "elbo"
    dequantise = "none"

    trajectory: str = "even"  # "optimal" is the other, for the bound
    spacing: str = "time"  # of the even one
    clip: float = 0.0  # bound on x0 in each step; the paper's code clips images to 1, 0 is none
    pixels: float = 2.0  # the paper's for DDPM on CIFAR-10 with linear beta; 0 does not clip
    knots: int = 60  # where the expectation is taken, even in lambda; the paper takes all its 1000 steps
    points: int = 256  # training data at each; the paper takes 10 to 50,000

    def build(self, base: Denoiser, data, nfe: int) -> MeanVariance:
        return MeanVariance(base, self.knots)

    def train(self, model: MeanVariance, base: Denoiser, data, images: int, nfe: int) -> None:
        generator = torch.Generator().manual_seed(0)
        chosen = torch.randperm(len(data.train), generator=generator)[: self.points]
        model.estimate(data.scale(data.train[chosen.sort().values]), generator)

    def sample(self, model: MeanVariance, x: Tensor, nfe: int) -> Tensor:
        last = pixel(model.base, self.pixels)
        return ancestral(x, self.times(model, nfe), lambda *at: self.reverse(model, *at), last)

    def nll(self, model: MeanVariance, x: Tensor, nfe: int) -> dict[str, Tensor]:
        return chain_bound(model.base, x, self.times(model, nfe), lambda *at: self.reverse(model, *at))

    def reverse(self, model: MeanVariance, x: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of p(x_t | x_s)."""
        q = posterior(model.base.schedule, s, t)
        x0 = clipped(model.base(x, s).x0, self.clip or None)
        variance = q.variance + q.on_x0**2 * model.at(model.base.schedule.lam(s)).cpu()
        return q.on_x * x + q.on_x0 * x0, variance

    def times(self, model: MeanVariance, nfe: int) -> Tensor:
        """nfe + 1 falling times, the last two t_min and 0."""
        schedule = model.base.schedule
        if self.trajectory == "even" or nfe == 1:
            return schedule.steps(nfe, self.spacing, end="zero")
        grid = schedule.steps(max(2 * self.knots, nfe - 1))
        q = posterior(schedule, grid[:, None], grid[None, :])
        variance = model.at(schedule.lam(grid)).cpu()[:, None]
        cost = torch.log1p(q.on_x0**2 * variance / q.variance)
        path = cheapest_paths(cost, nfe - 1)[1][-1]
        return torch.cat([grid[path], grid.new_zeros(1)])
