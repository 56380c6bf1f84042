"""Broken: a multistep method whose memory is of the wrong sign, which leaves it of first order."""

from itertools import pairwise

from torch import Tensor

from bench.diffusion.denoiser import Denoiser
from bench.diffusion.steps import by_x0
from bench.method import Method


class FirstCalledSecond(Method):
    """First order called second"""

    paper = "arXiv:2211.01095"
    leaf = "ode_solver"
    schedules = ("vp",)
    order = 2

    def sample(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        last = None
        for s, t in pairwise(denoiser.schedule.steps(nfe)):
            x0 = denoiser(x, s).x0
            x = by_x0(denoiser.schedule, x, s, t, x0 if last is None else x0 - (x0 - last) / 2)
            last = x0
        return x
