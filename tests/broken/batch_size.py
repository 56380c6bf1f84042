"""Broken: takes other steps for large batches than for small ones."""

from itertools import pairwise

from torch import Tensor

from bench.diffusion.denoiser import Denoiser
from bench.diffusion.steps import ddim
from bench.method import Method


class BatchSize(Method):
    """Depends on the batch size"""

    paper = "arXiv:2010.02502"
    leaf = "ode_solver"

    def sample(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        spacing = "lambda" if len(x) > 40 else "time"
        for s, t in pairwise(denoiser.schedule.steps(nfe, spacing)):
            out = denoiser(x, s)
            x = ddim(denoiser.schedule, out.x0, out.eps, t)
        return x
