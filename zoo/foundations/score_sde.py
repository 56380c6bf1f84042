"""Score SDE: predictor-corrector sampling of the reverse-time SDE, as set for each of the paper's processes.

The predictor is reverse diffusion: where the forward process goes from t to s by x_s = c x_t + sqrt(v) noise,
one goes back (eq. 46) by

    x_t = (2 - c) x_s + v score(x_s) + sqrt(v) noise.

Under VE a Langevin step at s comes before it (Algorithm 4), with signal-to-noise ratio 0.16; under VP and
sub-VP there is none (appendix H.1: the samples of table 3). For the models of table 3 that are trained in
continuous time the authors take Euler and Maruyama's predictor under VP and sub-VP, which is the method
"euler_maruyama" here. The last step, to time 0, returns its mean.
"""

from itertools import pairwise

import torch
from torch import Tensor

from bench.diffusion.denoiser import Denoiser
from bench.diffusion.steps import langevin, reverse_diffusion
from bench.method import Method


class ScoreSDE(Method):
    """Score SDE"""

    paper = "arXiv:2011.13456"
    schedules = ("vp", "subvp", "ve")
    least = 2
    batchwise = True  # Langevin steps from batch means

    corrector: str = "ve"  # where Langevin steps are taken: "ve", "all" or "none"
    snr: float = 0.16
    spacing: str = "time"

    def sample(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        if self.corrector not in ("ve", "all", "none"):
            raise ValueError(f"the corrector is for 've', 'all' or 'none', not {self.corrector!r}")
        explodes = bool(denoiser.schedule.alpha(denoiser.schedule.t_max) == 1)
        corrects = self.corrector == "all" or (self.corrector == "ve" and explodes)
        steps = nfe // 2 if corrects else nfe
        for s, t in pairwise(denoiser.schedule.steps(steps, self.spacing, end="zero")):
            if corrects:
                x = langevin(denoiser, x, s, t, self.snr)
            x, variance = reverse_diffusion(denoiser, x, s, t)
            if t > 0:
                x = x + variance.sqrt() * torch.randn_like(x)
        return x
