"""Reverse diffusion: the reverse-time SDE discretised in the way its forward process was.

Where the forward process goes from t to s exactly by x_s = c x_t + sqrt(v) noise, one goes back (eq. 46) by

    x_t = (2 - c) x_s + v score(x_s) + sqrt(v) noise.

For the VE chain c = 1 and v = sigma_s^2 - sigma_t^2; for the VP chain c = sqrt(1 - beta) and v = beta. The
grid ends with a step from t_min to time 0, which returns its mean.
"""

from itertools import pairwise

import torch
from torch import Tensor

from bench.diffusion.denoiser import Denoiser
from bench.diffusion.steps import reverse_diffusion
from bench.method import Method


class ReverseDiffusion(Method):
    """Reverse diffusion"""

    paper = "arXiv:2011.13456"
    entry = "score_sde"
    schedules = ("vp", "subvp", "ve")

    spacing: str = "time"

    def sample(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        for s, t in pairwise(denoiser.schedule.steps(nfe, self.spacing, end="zero")):
            x, variance = reverse_diffusion(denoiser, x, s, t)
            if t > 0:
                x = x + variance.sqrt() * torch.randn_like(x)
        return x
