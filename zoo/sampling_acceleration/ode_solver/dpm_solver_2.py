"""DPM-Solver-2: a second-order singlestep solver of the diffusion ODE in log-SNR, for the noise prediction.

With h = lambda_t - lambda_s > 0 and m the time half-way in lambda (Algorithm 1 of the paper, r_1 = 1/2),

    x_m = (alpha_m / alpha_s) x_s - sigma_m (e^{h/2} - 1) eps(x_s, s)
    x_t = (alpha_t / alpha_s) x_s - sigma_t (e^h - 1) eps(x_m, m).

Each step costs two evaluations; of an odd budget the last one is a step of DPM-Solver-1 (DDIM), as in the
paper's section 3.3.
"""

from itertools import pairwise

from torch import Tensor

from bench.diffusion.denoiser import Denoiser
from bench.diffusion.steps import by_eps
from bench.method import Method


class DPMSolver2(Method):
    """DPM-Solver-2"""

    paper = "arXiv:2206.00927"
    entry = "dpm_solver"
    order = 2

    spacing: str = "lambda"

    def sample(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        schedule = denoiser.schedule
        for i, (s, t) in enumerate(pairwise(schedule.steps((nfe + 1) // 2, self.spacing))):
            eps = denoiser(x, s).eps
            if 2 * i + 1 < nfe:  # not the odd one out
                m = schedule.time(schedule.lam(s) + (schedule.lam(t) - schedule.lam(s)) / 2)
                eps = denoiser(by_eps(schedule, x, s, m, eps), m).eps
            x = by_eps(schedule, x, s, t, eps)
        return x
