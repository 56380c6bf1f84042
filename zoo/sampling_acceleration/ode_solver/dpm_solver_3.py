"""DPM-Solver-3: a third-order singlestep solver of the diffusion ODE in log-SNR, its steps for any budget.

With h = lambda_t - lambda_s and the times m, n at lambda_s + h/3 and lambda_s + 2h/3 (Algorithm 2 of the
paper, r_1 = 1/3 and r_2 = 2/3), x goes

    to m with eps held at eps_s,
    to n with eps on the line in lambda through eps_s and eps_m,
    to t with eps on the line in lambda through eps_s and eps_n,

each solved exactly; that is three evaluations. The paper spends any budget exactly ("DPM-Solver-fast",
section 3.3): 3k evaluations are steps of orders 3, ..., 3, 2, 1, 3k + 1 are 3, ..., 3, 1, and 3k + 2 are 3,
..., 3, 2, all even in lambda.
"""

import torch
from torch import Tensor

from bench.diffusion.denoiser import Denoiser
from bench.diffusion.steps import by_eps
from bench.method import Method


class DPMSolver3(Method):
    """DPM-Solver-3"""

    paper = "arXiv:2206.00927"
    entry = "dpm_solver"
    # Its last two steps are of lower order: where they show, the whole is of order 2.
    order = {"vp": 2, "vp_cosine": 2, "ve": 2, "subvp": 3, "edm": 3, "flow": 3}

    spacing: str = "lambda"

    def sample(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        schedule = denoiser.schedule
        orders = fast(nfe)
        times = schedule.steps(len(orders), self.spacing)
        lam, h = schedule.lam(times[:-1]), schedule.lam(times).diff()
        # where the second and the third evaluation of a step are
        inner = schedule.time(torch.stack([lam + h / torch.tensor(orders), lam + 2 * h / 3]))
        for i, order in enumerate(orders):
            s, t, (m, n) = times[i], times[i + 1], inner[:, i]
            eps = denoiser(x, s).eps
            terms = [eps]
            if order > 1:
                eps_m = denoiser(by_eps(schedule, x, s, m, eps), m).eps
                terms = [eps_m]
            if order > 2:
                line = eps, (eps_m - eps) / (h[i] / 3)
                eps_n = denoiser(by_eps(schedule, x, s, n, *line), n).eps
                terms = [eps, (eps_n - eps) / (2 * h[i] / 3)]
            x = by_eps(schedule, x, s, t, *terms)
        return x


def fast(nfe: int) -> list[int]:
    """The orders of the steps that spend `nfe` evaluations exactly."""
    thirds, rest = divmod(nfe, 3)
    return [3] * (thirds - 1) + [2, 1] if rest == 0 else [3] * thirds + [rest]
