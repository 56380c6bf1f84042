"""Predictor-corrector: each step of reverse diffusion starts from a state that Langevin dynamics corrected.

With e = 2 c^2 (snr |noise| / |score|)^2 and c, v those of the forward transition x_s = c x_t + sqrt(v) noise
(Algorithms 2-5), one step is

    x_s <- x_s + e score(x_s) + sqrt(2 e) noise,    then    x_t = (2 - c) x_s + v score(x_s) + sqrt(v) noise.

The paper's algorithms predict before they correct; its authors' code corrects first, as here. It costs one
evaluation for each Langevin step and one for the predictor; what an odd budget leaves over is not spent. The
lengths are means over the batch, as in the paper. The last step, to time 0, returns its mean.
"""

from itertools import pairwise

import torch
from torch import Tensor

from bench.diffusion.denoiser import Denoiser
from bench.diffusion.steps import langevin, reverse_diffusion
from bench.method import Method


class PredictorCorrector(Method):
    """Predictor-corrector"""

    paper = "arXiv:2011.13456"
    entry = "score_sde"
    schedules = ("ve", "vp", "subvp")
    least = 2
    batchwise = True  # Langevin steps from batch means

    snr: float = 0.16  # the paper's for VE; for VP its best is 0.01 (table 5)
    corrections: int = 1  # Langevin steps at each time
    per_sample: bool = False  # each sample's own lengths rather than the batch's means
    spacing: str = "time"

    def sample(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        corrections = min(self.corrections, nfe - 1)
        for s, t in pairwise(denoiser.schedule.steps(nfe // (corrections + 1), self.spacing, end="zero")):
            for _ in range(corrections):
                x = langevin(denoiser, x, s, t, self.snr, self.per_sample)
            x, variance = reverse_diffusion(denoiser, x, s, t)
            if t > 0:
                x = x + variance.sqrt() * torch.randn_like(x)
        return x
