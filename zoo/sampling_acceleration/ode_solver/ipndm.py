"""iPNDM: PNDM without its warm-up, started on formulas of lower order instead.

The DEIS paper's improvement of PNDM: a step from s to t is DDIM's, with a noise e combined from the last
one, two, three and then four predictions by Adams and Bashforth's formulas,

    x_t = (alpha_t / alpha_s) x_s + (sigma_t - alpha_t sigma_s / alpha_s) e,
    e = e_s, then (3 e_s - e_1) / 2, then (23 e_s - 16 e_1 + 5 e_2) / 12, then as in PNDM,

so that every step costs one evaluation, the first ones too. The formulas are those of even steps in sigma /
alpha, which steps even in t are not; that, and the first step, make it of second order.
"""

from itertools import pairwise

from torch import Tensor

from bench.diffusion.denoiser import Denoiser
from bench.diffusion.steps import adams_bashforth, by_eps
from bench.method import Method


class IPNDM(Method):
    """iPNDM"""

    paper = "arXiv:2204.13902"
    schedules = ("vp", "vp_cosine", "subvp", "ve", "edm", "flow")
    # Even steps in time do not settle under EDM, where time is sigma.
    order = {"vp": 2, "subvp": 2, "ve": 2, "vp_cosine": 2, "flow": 2}

    p: int = 4  # predictions combined at most
    spacing: str = "time"

    def sample(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        known = []  # the noise predicted at the latest times, the latest last
        for s, t in pairwise(denoiser.schedule.steps(nfe, self.spacing)):
            known = [*known, denoiser(x, s).eps][-self.p :]
            x = by_eps(denoiser.schedule, x, s, t, adams_bashforth(known))
        return x
