"""DPM-Solver++(2S): a second-order singlestep solver of the diffusion ODE in log-SNR, for data prediction.

With h = lambda_t - lambda_s and m the time half-way in lambda (the paper's r = 1/2),

    x_m = (sigma_m / sigma_s) x_s - alpha_m (e^{-h/2} - 1) x0(x_s, s)
    x_t = (sigma_t / sigma_s) x_s - alpha_t (e^{-h} - 1) x0(x_m, m).

Each step costs two evaluations; of an odd budget the last one is a step of first order.
"""

from torch import Tensor

from bench.diffusion.denoiser import Denoiser
from bench.diffusion.steps import by_x0
from bench.method import Method


class DPMSolverPP2S(Method):
    """DPM-Solver++(2S)"""

    paper = "arXiv:2211.01095"
    entry = "dpm_solver_pp"
    order = 2

    spacing: str = "lambda"

    def sample(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        schedule = denoiser.schedule
        times = schedule.steps((nfe + 1) // 2, self.spacing)
        lam = schedule.lam(times)
        for i, (s, m, t) in enumerate(zip(times, schedule.time((lam[:-1] + lam[1:]) / 2), times[1:])):
            x0 = denoiser(x, s).x0
            if 2 * i + 1 < nfe:  # not the odd one out
                x0 = denoiser(by_x0(schedule, x, s, m, x0), m).x0
            x = by_x0(schedule, x, s, t, x0)
        return x
