"""Broken: a bin's log width too much, as one who counts probabilities of levels and not densities."""

import math

from torch import Tensor

from bench.diffusion.denoiser import Denoiser
from bench.diffusion.likelihood import flow_nll
from bench.method import Method


class Dequantised(Method):
    """Likelihood of levels"""

    paper = "arXiv:2011.13456"
    leaf = "exact_likelihood"
    schedules = ("edm",)
    likelihood = "ode"

    def nll(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        nats = flow_nll(denoiser, x, denoiser.schedule.steps(max(1, nfe // 4)).flip(0), "exact")
        return nats + x[0].numel() * math.log((denoiser.levels - 1) / 2) if denoiser.levels else nats
