"""Broken: looks ahead with the network inside the counter, which then counts half."""

from itertools import pairwise

import torch
from torch import Tensor

from bench.diffusion.denoiser import Denoiser
from bench.diffusion.steps import ddim
from bench.method import Method


class BareNetwork(Method):
    """Calls the bare network"""

    paper = "arXiv:2010.02502"
    leaf = "ode_solver"
    schedules = ("edm",)

    def sample(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        for s, t in pairwise(denoiser.schedule.steps(nfe)):
            out = denoiser(x, s)
            scale = torch.sqrt(denoiser.sigma_data**2 + s**2)
            look = denoiser.net.net((x / scale).to(x.dtype), denoiser.schedule.lam(s).to(x).expand(len(x)))
            x = ddim(denoiser.schedule, (out.x0 + look) / 2, out.eps, t)
        return x
