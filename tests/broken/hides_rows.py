"""Broken: maps the denoiser over two times at once, hoping that the two count as one."""

from itertools import pairwise

import torch
from torch import Tensor

from bench.diffusion.denoiser import Denoiser
from bench.method import Method


class HidesRows(Method):
    """Hides rows in vmap"""

    paper = "arXiv:2206.00364"
    leaf = "ode_solver"
    schedules = ("edm",)

    def sample(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        for s, t in pairwise(denoiser.schedule.steps(nfe, "karras")):
            both = torch.stack([x, x + 0.01])
            eps = torch.func.vmap(lambda y, s=s: denoiser(y, s).eps)(both).mean(0)
            x = x + (t - s) * eps
        return x
