"""NCSN: Langevin dynamics at one noise level after another, from the largest to the smallest.

At each of the geometric levels sigma_1 > .. > sigma_L it takes T steps (Algorithm 1, with NCSNv2's scaling)

    x <- x + e sigma_i^2 score(x) + sqrt(2 e) sigma_i noise,

and at the end it returns the denoised x + sigma_L^2 score(x). Were all data one point, T steps would leave
(1 - e)^{2T} (gamma^2 - k) + k times the variance sigma_i^2, where k = 2 / (2 - e) and gamma is the ratio of
neighbouring levels; e is where this is closest to 1 (technique 4 of NCSNv2, arXiv:2006.09011). With 232
levels from 50 to 0.01 and T = 5 that is the paper's e = 6.2e-6 / 0.01^2.

The paper's numbers cost L T + 1 = 1161 evaluations. With fewer, T falls first; once it is 1, so does L.
"""

import torch
from torch import Tensor

from bench.diffusion.denoiser import Denoiser
from bench.method import Method


class NCSN(Method):
    """NCSN (annealed Langevin)"""

    paper = "arXiv:1907.05600"
    schedules = ("ve", "edm")
    least = 3

    levels: int = 232
    T: int = 5  # steps at each level, at most

    def sample(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        steps = max(1, min(self.T, (nfe - 1) // self.levels))
        times = denoiser.schedule.steps((nfe - 1) // steps, "lambda", end="zero")[:-1]
        levels = denoiser.schedule.sigma(times)
        e = step_size(float(levels[0] / levels[1]), steps)
        for t, sigma in zip(times, levels):
            for _ in range(steps):
                drift = e * sigma**2 * denoiser(x, t).score
                x = x + drift + (2 * e) ** 0.5 * sigma * torch.randn_like(x)
        return denoiser(x, times[-1]).x0


def step_size(gamma: float, steps: int) -> float:
    """The e in (0, 1] for which `steps` Langevin steps come nearest to the next level's variance."""
    e = torch.linspace(0, 1, 10_001, dtype=torch.float64)[1:]
    k = 2 / (2 - e)
    left = (1 - e) ** (2 * steps) * (gamma**2 - k) + k
    return float(e[(left - 1).abs().argmin()])
