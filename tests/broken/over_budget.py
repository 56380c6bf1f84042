"""Broken: asks twice the evaluations it was given."""

from itertools import pairwise

from torch import Tensor

from bench.diffusion.denoiser import Denoiser
from bench.diffusion.steps import ddim
from bench.method import Method


class OverBudget(Method):
    """Over budget"""

    paper = "arXiv:2010.02502"
    leaf = "ode_solver"

    def sample(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        for s, t in pairwise(denoiser.schedule.steps(2 * nfe)):
            out = denoiser(x, s)
            x = ddim(denoiser.schedule, out.x0, out.eps, t)
        return x
