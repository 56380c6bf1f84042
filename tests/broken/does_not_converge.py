"""Broken: half of every step's noise prediction is lost, so that more steps do not help."""

from itertools import pairwise

from torch import Tensor

from bench.diffusion.denoiser import Denoiser
from bench.method import Method


class DoesNotConverge(Method):
    """Does not converge"""

    paper = "arXiv:2010.02502"
    leaf = "ode_solver"
    schedules = ("edm",)

    def sample(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        for s, t in pairwise(denoiser.schedule.steps(nfe, "karras")):
            x = x + (t - s) * denoiser(x, s).eps / 2
        return x
