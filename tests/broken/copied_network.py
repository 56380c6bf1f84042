"""Broken: samples with a copy of its denoiser, which counts for itself."""

import copy
from itertools import pairwise

from torch import Tensor

from bench.diffusion.denoiser import Denoiser
from bench.diffusion.steps import ddim
from bench.method import Method


class CopiedNetwork(Method):
    """Samples with a copy"""

    paper = "arXiv:2010.02502"
    leaf = "ode_solver"
    schedules = ("edm",)

    def sample(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        denoiser(x, denoiser.schedule.t_max)
        hidden = copy.deepcopy(denoiser)
        for s, t in pairwise(denoiser.schedule.steps(3 * nfe)):
            out = hidden(x, s)
            x = ddim(denoiser.schedule, out.x0, out.eps, t)
        return x
