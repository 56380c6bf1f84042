"""DPM-Solver-2: a second-order singlestep solver of the diffusion ODE in log-SNR, for the noise prediction.

With h = lambda_t - lambda_s > 0 and m the time half-way in lambda (Algorithm 1 of the paper, r_1 = 1/2),

    x_m = (alpha_m / alpha_s) x_s - sigma_m (e^{h/2} - 1) eps(x_s, s)
    x_t = (alpha_t / alpha_s) x_s - sigma_t (e^h - 1) eps(x_m, m).

Each step costs two evaluations; of an odd budget the last one is a step of DPM-Solver-1 (DDIM), as in the paper's section 3.3.
"""

from itertools import pairwise

from torch import Tensor

from bench.diffusion.denoiser import Denoiser
from bench.method import Method


class DPMSolver2(Method):
    """DPM-Solver-2"""

    paper = "arXiv:2206.00927"
    entry = "dpm_solver"
    order = 2

    spacing: str = "lambda"

    def sample(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        alpha, sigma, lam = denoiser.schedule.alpha, denoiser.schedule.sigma, denoiser.schedule.lam
        for i, (s, t) in enumerate(pairwise(denoiser.schedule.steps((nfe + 1) // 2, self.spacing))):
            h = lam(t) - lam(s)
            eps = denoiser(x, s).eps
            if 2 * i + 1 < nfe:  # not the odd one out
                m = denoiser.schedule.time(lam(s) + h / 2)
                middle = alpha(m) / alpha(s) * x - sigma(m) * (h / 2).expm1() * eps
                eps = denoiser(middle, m).eps
            x = alpha(t) / alpha(s) * x - sigma(t) * h.expm1() * eps
        return x
