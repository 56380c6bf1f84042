"""EDM's stochastic sampler: Heun's steps of the probability flow, each from a little more noise.

In z = x / alpha and r = sigma / alpha, a step from r_s first goes up to r' = (1 + gamma) r_s by fresh noise,

    z <- z + sqrt(r'^2 - r_s^2) S_noise noise,    gamma = min(S_churn / N, sqrt(2) - 1),

where S_min <= r_s <= S_max, and then takes Heun's step from r' to r_t (Algorithm 2). The settings are those
for CIFAR-10 and the VP network (table 5). N steps cost 2N - 1 evaluations. Under an even budget one
evaluation is left over and not spent.
"""

from itertools import pairwise

import torch
from torch import Tensor

from bench.diffusion.denoiser import Denoiser
from bench.diffusion.steps import heun
from bench.method import Method


class EDMStochastic(Method):
    """EDM (stochastic)"""

    paper = "arXiv:2206.00364"
    entry = "edm"
    schedules = ("edm", "vp", "vp_cosine", "subvp", "ve", "flow")

    S_churn: float = 30.0
    S_min: float = 0.01
    S_max: float = 1.0
    S_noise: float = 1.007
    spacing: str = "karras"

    def sample(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        schedule, steps = denoiser.schedule, (nfe + 1) // 2
        gamma = min(self.S_churn / steps, 2**0.5 - 1)
        r_max = torch.exp(-schedule.lam(schedule.t_max))
        z = x / schedule.alpha(schedule.t_max)
        for s, t in pairwise(schedule.steps(steps, self.spacing, end="zero")):
            r = schedule.sigma(s) / schedule.alpha(s)
            if gamma > 0 and self.S_min <= r <= self.S_max:
                more = torch.minimum((1 + gamma) * r, r_max)  # not beyond what the network knows
                s = schedule.time(-more.log())
                z = z + (more**2 - r**2).clamp(min=0).sqrt() * self.S_noise * torch.randn_like(z)
            z = heun(denoiser, z, s, t)
        return z
