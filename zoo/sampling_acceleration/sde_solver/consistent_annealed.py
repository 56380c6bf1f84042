"""Consistent annealed sampling: annealed Langevin steps whose noise reaches the next level's exactly.

Over geometric noise levels with sigma_{i+1} = gamma sigma_i, a step of share eta towards the denoised x0
keeps (1 - eta) sigma_i of the noise, and new noise of size beta makes up sigma_{i+1}:

    x <- x + eta sigma_i^2 score(x) + sigma_{i+1} beta noise,    beta = sqrt(1 - ((1 - eta) / gamma)^2).

The paper tunes eta = 5.6e-6 / 0.01^2 for 232 levels (CIFAR-10, one step a level); for L levels we take the
one that keeps as much of the noise over all steps, 1 - (1 - eta)^{231/(L-1)}, close to what it tunes for five
times as many. The last level returns x0.
"""

import torch
from torch import Tensor

from bench.diffusion.denoiser import Denoiser
from bench.method import Method


class ConsistentAnnealed(Method):
    """Consistent annealed sampling"""

    paper = "arXiv:2009.05475"
    entry = "asm"
    schedules = ("ve", "edm")
    least = 2

    eta: float = 0.056  # at 232 levels
    levels: int = 232

    def sample(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        times = denoiser.schedule.steps(nfe, "lambda", end="zero")[:-1]
        sigma = denoiser.schedule.sigma(times)
        keep = (1 - self.eta) ** ((self.levels - 1) / (nfe - 1))
        gamma = float(sigma[1] / sigma[0])
        if not keep <= gamma:
            raise ValueError(
                f"eta = {self.eta} leaves more noise than the next level has: take at least {1 - gamma:.3g}"
                f" for {nfe} levels"
            )
        beta = (1 - (keep / gamma) ** 2) ** 0.5
        for s, sigma_t in zip(times, sigma[1:]):
            x0 = denoiser(x, s).x0
            x = x0 + keep * (x - x0) + beta * sigma_t * torch.randn_like(x)
        return denoiser(x, times[-1]).x0
