"""DDPM: ancestral sampling along the reverse of a Gaussian Markov chain, and its variational bound.

One step from time s to t < s draws from a normal around the posterior mean with the network's x0 in it
(Algorithm 2, eq. 6-7)

    x_t = (alpha_s/alpha_t) (sigma_t^2/sigma_s^2) x_s + alpha_t (1 - e^{2 (lambda_s - lambda_t)}) x0(x_s) +
    noise,

whose variance is the chain's own ("beta", upper) or the posterior's ("posterior", lower; section 3.2). With
fewer steps than the chain has, the same formulas hold between any two of its times.
"""

from itertools import pairwise

import torch
from torch import Tensor

from bench.diffusion.denoiser import Denoiser
from bench.diffusion.likelihood import step_bound
from bench.diffusion.steps import clipped, posterior
from bench.method import Method


class DDPM(Method):
    """DDPM"""

    paper = "arXiv:2006.11239"
    schedules = ("ddpm", "vp", "vp_cosine", "subvp", "ve", "edm", "flow")
    likelihood = "elbo"
    dequantise = "none"

    variance: str = "beta"  # the paper's choice for CIFAR-10; "posterior" is the other
    spacing: str = "time"
    clip: float = 0.0  # bound on x0 in each step; the paper's code clips images to 1, 0 is none

    def sample(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        for s, t in pairwise(denoiser.schedule.steps(nfe, self.spacing, end="zero")):
            mean, variance = self.reverse(denoiser, x, s, t)
            x = mean + variance.sqrt() * torch.randn_like(x) if t > 0 else mean
        return x

    def nll(self, denoiser: Denoiser, x: Tensor, nfe: int) -> dict[str, Tensor]:
        times = denoiser.schedule.steps(nfe, self.spacing, end="zero")

        def reverse(x: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            mean, variance = self.reverse(denoiser, x, s, t)
            if (
                variance == 0 and nfe > 1
            ):  # the posterior's at t = 0; the paper's code takes the step's before it
                variance = posterior(denoiser.schedule, times[-3], times[-2]).variance
            return mean, variance

        return step_bound(denoiser, x, times, reverse)

    def reverse(self, denoiser: Denoiser, x: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of p(x_t | x_s)."""
        q = posterior(denoiser.schedule, s, t)
        x0 = clipped(denoiser(x, s).x0, self.clip or None)
        return q.on_x * x + q.on_x0 * x0, q.forward if self.variance == "beta" else q.variance
