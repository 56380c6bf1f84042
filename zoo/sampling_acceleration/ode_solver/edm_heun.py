"""EDM's deterministic sampler: Heun's second-order method on the probability flow, in sigma (Algorithm 1).

With z = x / alpha and r = sigma / alpha the flow is dz/dr = eps for every schedule. A step from s to t takes
Euler's prediction with eps_s and, except where r_t = 0, averages it with the slope found there:

    z' = z + (r_t - r_s) eps_s,    z_t = z + (r_t - r_s) (eps_s + eps(z', t)) / 2.

N steps cost 2N - 1 evaluations. Under an even budget one evaluation is left over and not spent.
"""

from itertools import pairwise

from torch import Tensor

from bench.diffusion.denoiser import Denoiser
from bench.diffusion.steps import heun
from bench.method import Method


class EDMHeun(Method):
    """EDM (Heun)"""

    paper = "arXiv:2206.00364"
    entry = "edm"
    schedules = ("edm", "vp", "vp_cosine", "subvp", "ve", "flow")
    order = 2

    spacing: str = "karras"

    def sample(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        z = x / denoiser.schedule.alpha(denoiser.schedule.t_max)
        for s, t in pairwise(denoiser.schedule.steps((nfe + 1) // 2, self.spacing, end="zero")):
            z = heun(denoiser, z, s, t)
        return z
