"""DPM-Solver++(2M): a second-order multistep solver of the diffusion ODE in log-SNR.

With lambda = log(alpha / sigma), the ODE goes from time s to time t exactly by

    x_t = (sigma_t / sigma_s) x_s + sigma_t * integral over [lambda_s, lambda_t] of e^lambda x0(lambda).

The method takes x0(lambda) to be the line through its last two values (Algorithm 2 of the paper).
"""

from itertools import pairwise

from torch import Tensor

from bench.diffusion.denoiser import Denoiser
from bench.diffusion.steps import by_x0
from bench.method import Method


class DPMSolverPP2M(Method):
    """DPM-Solver++(2M)"""

    paper = "arXiv:2211.01095"
    entry = "dpm_solver_pp"
    order = 2

    spacing: str = "lambda"
    lower_order_final: bool = True  # below 15 steps, end on one of first order; the authors' later code: 10

    def sample(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        schedule = denoiser.schedule
        h_last = x0_last = None
        for i, (s, t) in enumerate(pairwise(schedule.steps(nfe, self.spacing))):
            h = schedule.lam(t) - schedule.lam(s)
            x0 = denoiser(x, s).x0
            cautious = self.lower_order_final and nfe < 15 and i == nfe - 1
            line = x0 if x0_last is None or cautious else x0 + h / (2 * h_last) * (x0 - x0_last)
            x = by_x0(schedule, x, s, t, line)
            h_last, x0_last = h, x0
        return x
