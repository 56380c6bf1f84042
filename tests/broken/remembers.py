"""Broken: a module-wide memory makes an answer depend on what was asked before."""

from itertools import pairwise

from torch import Tensor

from bench.diffusion.denoiser import Denoiser
from bench.diffusion.steps import ddim
from bench.method import Method

BUDGETS = [0]


class Remembers(Method):
    """Remembers"""

    paper = "arXiv:2010.02502"
    leaf = "ode_solver"
    schedules = ("edm",)

    def sample(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        spacing = "karras" if BUDGETS[-1] > nfe else "lambda"
        BUDGETS.append(nfe)
        for s, t in pairwise(denoiser.schedule.steps(nfe, spacing)):
            out = denoiser(x, s)
            x = ddim(denoiser.schedule, out.x0, out.eps, t)
        return x
