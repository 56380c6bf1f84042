"""Broken: a second-order method declared first."""

from itertools import pairwise

from torch import Tensor

from bench.diffusion.denoiser import Denoiser
from bench.diffusion.steps import heun
from bench.method import Method


class ClaimsTooLittle(Method):
    """Claims too little"""

    paper = "arXiv:2206.00364"
    leaf = "ode_solver"
    schedules = ("edm",)
    order = 1
    least = 2

    def sample(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        for s, t in pairwise(denoiser.schedule.steps(nfe // 2, "karras")):
            x = heun(denoiser, x, s, t)
        return x
