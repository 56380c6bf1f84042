"""Broken: draws noise by numpy, whose generator no seed reaches."""

from itertools import pairwise

import numpy
import torch
from torch import Tensor

from bench.diffusion.denoiser import Denoiser
from bench.diffusion.steps import posterior
from bench.method import Method


class NotDeterministic(Method):
    """Not deterministic"""

    paper = "arXiv:2006.11239"
    leaf = "sde_solver"

    def sample(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        for s, t in pairwise(denoiser.schedule.steps(nfe)):
            q = posterior(denoiser.schedule, s, t)
            noise = torch.from_numpy(numpy.random.standard_normal(x.shape)).to(x)
            x = q.on_x * x + q.on_x0 * denoiser(x, s).x0 + q.variance.sqrt() * noise
        return x
