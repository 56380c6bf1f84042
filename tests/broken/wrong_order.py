"""Broken: DDIM, which is of first order, declared second."""

from itertools import pairwise

from torch import Tensor

from bench.diffusion.denoiser import Denoiser
from bench.diffusion.steps import ddim
from bench.method import Method


class WrongOrder(Method):
    """Wrong order"""

    paper = "arXiv:2010.02502"
    leaf = "ode_solver"
    schedules = ("vp", "edm")
    order = 2

    def sample(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        for s, t in pairwise(denoiser.schedule.steps(nfe)):
            out = denoiser(x, s)
            x = ddim(denoiser.schedule, out.x0, out.eps, t)
        return x
