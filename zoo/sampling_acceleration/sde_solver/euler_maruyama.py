"""Euler-Maruyama: the plain first-order discretisation of the reverse-time SDE.

The process dx = f x dt + g dw runs backwards as dx = [f x - g^2 score] dt + g dw (eq. 6). From time s to
t < s, with h = s - t,

    x_t = x_s - h (f x_s - g^2 score(x_s)) + g sqrt(h) noise,

on an even grid of times, the last step without its noise (appendix G: the noise of the last step only hurts
FID).
"""

from itertools import pairwise

import torch
from torch import Tensor

from bench.diffusion.denoiser import Denoiser
from bench.method import Method


class EulerMaruyama(Method):
    """Euler-Maruyama"""

    paper = "arXiv:2011.13456"
    entry = "sde_baseline"
    schedules = ("vp", "subvp", "ve")

    spacing: str = "time"
    denoise: bool = True  # return the mean of the last step

    def sample(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        mean = x
        for s, t in pairwise(denoiser.schedule.steps(nfe, self.spacing)):
            f, g, h = denoiser.schedule.drift(s), denoiser.schedule.diffusion(s), s - t
            mean = x - h * (f * x - g**2 * denoiser(x, s).score)
            x = mean + g * h.sqrt() * torch.randn_like(x)
        return mean if self.denoise else x
