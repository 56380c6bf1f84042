"""Analytic-DDIM: DDIM's step with noise of the variance that is best for a reverse process without its own.

From s to t, DDIM's mean with variance eta^2 v, v that of DDPM's posterior, depends on x0 by the factor

    c = alpha_t - sqrt(sigma_t^2 - eta^2 v) alpha_s / sigma_s,

and the best reverse variance is (the paper's lambda_n^2 is eta^2 v)

    eta^2 v + c^2 (sigma_s^2/alpha_s^2) (1 - E|eps(x_s)|^2 / d).

eta = 0 is the paper's. The expectation is estimated once on training data, the result kept within the bounds
that the variances of noise and data set, and the noise drawn last changes no pixel by more than `pixels`
levels in the mean. Under the DDIM process with eta = 0 the bound on the likelihood is infinite: it has none.
"""

import torch
from torch import Tensor

from bench.diffusion.covariance import MeanVariance, chosen, pixel
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.steps import ancestral, clipped, ddim, posterior
from bench.method import Method


class AnalyticDDIM(Method):
    """Analytic-DDIM"""

    paper = "arXiv:2201.06503"
    entry = "analytic_dpm"
    schedules = ("ddpm", "vp", "vp_cosine", "subvp", "ve", "edm", "flow")

    eta: float = 0.0
    spacing: str = "time"
    clip: float = 0.0  # bound on x0 in each step; the paper's code clips images to 1, 0 is none
    pixels: float = 1.0  # the paper's for DDIM; 0 does not clip
    knots: int = 60  # where the expectation is taken, even in lambda; the paper takes all its 1000 steps
    points: int = 256  # training data at each; the paper takes 10 to 50,000

    def build(self, base: Denoiser, data, nfe: int) -> MeanVariance:
        return MeanVariance(base, self.knots)

    def train(self, model: MeanVariance, base: Denoiser, data, images: int, nfe: int) -> None:
        model.estimate(*chosen(data, self.points))

    def sample(self, model: MeanVariance, x: Tensor, nfe: int) -> Tensor:
        times = model.base.schedule.steps(nfe, self.spacing, end="zero")
        last = pixel(model.base, self.pixels)
        return ancestral(x, times, lambda *at: self.reverse(model, *at), last)

    def reverse(self, model: MeanVariance, x: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of p(x_t | x_s)."""
        schedule, out = model.base.schedule, model.base(x, s)
        own = self.eta**2 * posterior(schedule, s, t).variance
        noise = torch.sqrt((schedule.sigma(t) ** 2 - own).clamp(min=0))
        on_x0 = schedule.alpha(t) - noise * schedule.alpha(s) / schedule.sigma(s)
        mean = ddim(schedule, clipped(out.x0, self.clip or None), out.eps, t, own)
        return mean, own + on_x0**2 * model.at(schedule.lam(s)).cpu()
