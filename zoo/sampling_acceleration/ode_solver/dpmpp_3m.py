"""DPM-Solver++(3M): a third-order multistep solver of the diffusion ODE in log-SNR, for the data
prediction.

Over h = lambda_t - lambda_s the data prediction is taken to be the parabola through its last three values:
the paper's expansion of order 3. With x0' and x0'' the parabola's derivatives in lambda at s,

    x_t = (sigma_t / sigma_s) x_s - alpha_t (e^{-h} - 1) x0
          + alpha_t (e^{-h} - 1 + h) x0' - alpha_t (e^{-h} - 1 + h - h^2 / 2) x0''.

The first step is of first order and the second that of 2M, where sigma is so large that it is not felt. The
authors' code halves x0'', and so do the programs that follow it: then the method is of second order.
`curvature` = 0.5 is that one.
"""

from itertools import pairwise

from torch import Tensor

from bench.diffusion.denoiser import Denoiser
from bench.diffusion.steps import by_x0
from bench.method import Method


class DPMSolverPP3M(Method):
    """DPM-Solver++(3M)"""

    paper = "arXiv:2211.01095"
    entry = "dpm_solver_pp"
    order = 3

    spacing: str = "lambda"
    lower_order_final: bool = True  # below 15 steps, end on one of second and one of first order
    curvature: float = 1.0  # share of x0'' that is used

    def sample(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        schedule = denoiser.schedule
        cautious = self.lower_order_final and nfe < 15
        known = []  # (lambda, x0) at the latest times, the latest last
        for i, (s, t) in enumerate(pairwise(schedule.steps(nfe, self.spacing))):
            known = [*known[-2:], (schedule.lam(s), denoiser(x, s).x0)]
            points = known[i - nfe :] if cautious else known
            x = by_x0(schedule, x, s, t, *self.derivatives(points, schedule.lam(t)))
        return x

    def derivatives(self, points: list[tuple[Tensor, Tensor]], lam: Tensor) -> list[Tensor]:
        """Of x0 at the last of up to three points (lambda, x0), as far as a step to `lam` uses them."""
        (lam_0, x0), *past = reversed(points)
        if not past:
            return [x0]
        (lam_1, x0_1), *past = past
        slope = (x0 - x0_1) / (lam_0 - lam_1)
        if not past:  # 2M's form: the value of the line half-way
            return [x0 + (lam - lam_0) / 2 * slope]
        lam_2, x0_2 = past[0]
        bend = (slope - (x0_1 - x0_2) / (lam_1 - lam_2)) / (lam_0 - lam_2)
        return [x0, slope + (lam_0 - lam_1) * bend, 2 * self.curvature * bend]
