"""DDIM: a non-Markov process with DDPM's marginals, whose reverse can be made deterministic.

From time s to t < s (eq. 12), with the network's x0 and eps at x_s,

    x_t = alpha_t x0 + sqrt(sigma_t^2 - v) eps + sqrt(v) noise,    v = eta^2 times the variance of DDPM's
    posterior (eq. 16).

eta = 0 is DDIM, a first-order solver of the probability flow; eta = 1 is DDPM with the posterior variance.
"""

from itertools import pairwise

import torch
from torch import Tensor

from bench.diffusion.denoiser import Denoiser
from bench.diffusion.steps import ddim, posterior
from bench.method import Method


class DDIM(Method):
    """DDIM"""

    paper = "arXiv:2010.02502"
    schedules = ("ddpm", "vp", "vp_cosine", "subvp", "ve", "edm", "flow")
    # Even steps in time do not settle under EDM, where time is sigma.
    order = {"ddpm": 1, "vp": 1, "vp_cosine": 1, "subvp": 1, "ve": 1, "flow": 1}

    eta: float = 0.0
    spacing: str = "time"  # the paper's "linear"; it uses "quadratic" for CIFAR-10

    def sample(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        for s, t in pairwise(denoiser.schedule.steps(nfe, self.spacing, end="zero")):
            out = denoiser(x, s)
            variance = self.eta**2 * posterior(denoiser.schedule, s, t).variance
            x = ddim(denoiser.schedule, out.x0, out.eps, t, variance)
            if self.eta > 0 and t > 0:
                x = x + variance.sqrt() * torch.randn_like(x)
        return x
