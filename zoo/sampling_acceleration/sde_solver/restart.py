"""Restart: near the end of the flow, jump back up by adding noise and come down again, K times.

In z = x / alpha and r = sigma / alpha the sampler takes Heun's steps of the probability flow on EDM's grid.
Where it reaches the grid's level nearest to r_low it adds the forward process's noise up to r_high and takes
`inner` Heun's steps back; it does so K times, then goes on to 0 (Algorithm 2):

    z_high = z_low + sqrt(r_high^2 - r_low^2) noise,    z_low = Heun's steps from r_high to r_low.

N main steps cost 2N - 1 evaluations, a restart 2 inner. On CIFAR-10 the paper has N = 18, r from 0.06 to 0.3
and inner = 2, with K = 2, 5, 10, 20 for 43, 55, 75, 115 evaluations, and for 519 K = 30 and inner = 8 (table
3, for the VP network; there N = 20 and r is up to 0.2). So the budget is split: from 43 on, N = 18 and the
rest is restarts, of more steps each where there would be many more than 30 of them; below, up to a fifth of
it is restarts, at least one.
"""

from itertools import pairwise

import torch
from torch import Tensor

from bench.diffusion.denoiser import Denoiser
from bench.diffusion.steps import heun
from bench.method import Method


class Restart(Method):
    """Restart"""

    paper = "arXiv:2306.14878"
    schedules = ("edm", "vp", "vp_cosine", "subvp", "ve", "flow")
    least = 7  # two main steps and one restart

    K: int = -1  # restarts of two steps each; -1 is by the budget
    main: int = 18  # main steps, where K is by the budget
    most: int = 30  # restarts, about, where K is by the budget
    r_low: float = 0.06  # with EDM's network the paper has 0.14 (43 evaluations)
    r_high: float = 0.3
    spacing: str = "karras"

    def sample(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        schedule = denoiser.schedule
        main, k, inner = self.split(nfe)
        times = schedule.steps(main, self.spacing, end="zero")
        levels = torch.exp(-schedule.lam(times))  # 0 at time 0
        low = 1 + int((levels[1:-1] - self.r_low).abs().argmin()) if k else None
        z = x / schedule.alpha(schedule.t_max)
        for i, (s, t) in enumerate(pairwise(times)):
            z = heun(denoiser, z, s, t)
            if i + 1 == low:
                down = self.descent(denoiser, levels[low], inner)
                jump = (torch.exp(-2 * schedule.lam(down[0])) - levels[low] ** 2).clamp(min=0).sqrt()
                for _ in range(k):
                    z = z + jump * torch.randn_like(z)
                    for a, b in pairwise(down):
                        z = heun(denoiser, z, a, b)
        return z

    def split(self, nfe: int) -> tuple[int, int, int]:
        """Main steps, restarts and the steps of one restart that the budget pays for."""
        if self.K >= 0:
            main = (nfe - 4 * self.K + 1) // 2
            if main < 1 + (self.K > 0):
                raise ValueError(f"{self.K} restarts need at least {4 * self.K + 3} evaluations, not {nfe}")
            return main, self.K, 2
        rest = nfe - (2 * self.main - 1)
        if rest < 8:
            k = max(1, nfe * 2 // 43)
            return min(self.main, (nfe - 4 * k + 1) // 2), k, 2
        inner = max(2, round(rest / (2 * self.most)))
        return self.main, rest // (2 * inner), inner

    def descent(self, denoiser: Denoiser, low: Tensor, inner: int) -> Tensor:
        """inner + 1 times from r_high (as far as the network knows) to the level `low`, spaced as EDM's."""
        highest = torch.exp(-denoiser.schedule.lam(denoiser.schedule.t_max))
        high = max(min(self.r_high, float(highest)), float(low))
        ramp = torch.linspace(high ** (1 / 7), float(low) ** (1 / 7), inner + 1, dtype=torch.float64)
        return denoiser.schedule.time(-7 * ramp.log())
