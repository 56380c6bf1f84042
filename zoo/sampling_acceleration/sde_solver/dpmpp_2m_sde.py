"""SDE-DPM-Solver++(2M): a second-order multistep solver of the diffusion SDE in log-SNR.

With eta the share of the SDE's noise (1 is the reverse-time SDE, 0 the ODE) and h = lambda_t - lambda_s > 0,

    x_t = (sigma_t / sigma_s) e^{-eta h} x_s + alpha_t (1 - e^{-(1+eta) h}) D
          + sigma_t sqrt(1 - e^{-2 eta h}) noise,

where D = x0_s + h / (2 h_last) (x0_s - x0_last) is the line through the last two values of x0, half-way along
the step (the paper has eta = 1).
"""

from itertools import pairwise

import torch
from torch import Tensor

from bench.diffusion.denoiser import Denoiser
from bench.method import Method


class DPMSolverPP2MSDE(Method):
    """SDE-DPM-Solver++(2M)"""

    paper = "arXiv:2211.01095"
    entry = "dpm_solver_pp"

    eta: float = 1.0
    spacing: str = "lambda"
    lower_order_final: bool = True  # below 15 steps, end on one of first order; the authors' later code: 10

    def sample(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        alpha, sigma, lam = denoiser.schedule.alpha, denoiser.schedule.sigma, denoiser.schedule.lam
        h_last = x0_last = None
        for i, (s, t) in enumerate(pairwise(denoiser.schedule.steps(nfe, self.spacing))):
            h = lam(t) - lam(s)
            x0 = denoiser(x, s).x0
            cautious = self.lower_order_final and nfe < 15 and i == nfe - 1
            line = x0 if x0_last is None or cautious else x0 + h / (2 * h_last) * (x0 - x0_last)
            x = (
                sigma(t) / sigma(s) * (-self.eta * h).exp() * x
                - alpha(t) * (-(1 + self.eta) * h).expm1() * line
            )
            if self.eta > 0:
                x = x + sigma(t) * (-(-2 * self.eta * h).expm1()).sqrt() * torch.randn_like(x)
            h_last, x0_last = h, x0
        return x
