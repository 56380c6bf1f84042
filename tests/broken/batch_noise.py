"""Broken: noise divided by its own mean over the batch, so that each sample depends on the others."""

from itertools import pairwise

import torch
from torch import Tensor

from bench.diffusion.denoiser import Denoiser
from bench.diffusion.steps import posterior
from bench.method import Method


class BatchNoise(Method):
    """Noise depends on the batch"""

    paper = "arXiv:2006.11239"
    leaf = "sde_solver"

    def sample(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        for s, t in pairwise(denoiser.schedule.steps(nfe)):
            q = posterior(denoiser.schedule, s, t)
            noise = torch.randn_like(x)
            mean = q.on_x * x + q.on_x0 * denoiser(x, s).x0
            x = mean + q.variance.sqrt() * noise / noise.std()
        return x
