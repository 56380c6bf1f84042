"""UniPC: a predictor and a corrector of one form and any order, for the data prediction in log-SNR.

A step goes over h = lambda_t - lambda_s from what is known at s and at the p - 1 times before it. With r_k =
(lambda_k - lambda_s) / h and D_k = x0_k - x0_s, both are

    x_t = (sigma_t / sigma_s) x_s - alpha_t (e^{-h} - 1) x0_s - alpha_t B(h) sum_k a_k D_k / r_k,

and the a solve the linear system that makes the terms up to h^p exact. The corrector takes the
time t itself as one more point, r = 1. Its evaluation at the predicted x_t is also the next step's, so a
step costs one evaluation; the last is predicted only.
"""

from itertools import pairwise

import torch
from torch import Tensor

from bench.diffusion.denoiser import Denoiser
from bench.method import Method


class UniPC(Method):
    """UniPC"""

    paper = "arXiv:2302.04867"
    version = 2
    # p + 1 = 4 inside; it starts and, with lower_order_final, ends on steps of lower order, which under the
    # other schedules are too small an error for the order to settle.
    order = {"vp": 2, "ve": 2, "vp_cosine": 2}

    p: int = 3
    variant: str = "B1"  # B(h) = h, its authors' code's default; "B2" is e^h - 1
    spacing: str = "lambda"
    lower_order_final: bool = True

    def sample(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        alpha, sigma, lam = denoiser.schedule.alpha, denoiser.schedule.sigma, denoiser.schedule.lam
        times = denoiser.schedule.steps(nfe, self.spacing)
        known = [(lam(times[0]), denoiser(x, times[0]).x0)]  # (lambda, x0), the latest last
        for i, (s, t) in enumerate(pairwise(times)):
            p = min(self.p, i + 1, nfe - i if self.lower_order_final else self.p)
            h = lam(t) - lam(s)
            x0_s = known[-1][1]
            past = known[-2 : -p - 1 : -1]
            r = [(lam_k - lam(s)) / h for lam_k, _ in past]
            slopes = [(x0_k - x0_s) / r_k for r_k, (_, x0_k) in zip(r, past)]
            euler = sigma(t) / sigma(s) * x - alpha(t) * (-h).expm1() * x0_s
            x = euler - alpha(t) * self.combined(h, r, slopes)
            if i < nfe - 1:
                x0_t = denoiser(x, t).x0
                x = euler - alpha(t) * self.combined(h, [*r, torch.ones_like(h)], [*slopes, x0_t - x0_s])
                known = [*known[-self.p :], (lam(t), x0_t)]
        return x

    def combined(self, h: Tensor, r: list[Tensor], slopes: list[Tensor]) -> Tensor | float:
        """B(h) sum_k a_k D_k / r_k, exact for polynomials of the degree that the points allow."""
        if not r:
            return 0.0
        step = -h  # the data prediction's sign of h
        b_h = step if self.variant == "B1" else step.expm1()
        if len(r) == 1:  # the paper sets a = 1/2 here: the leading term of the solution, and nothing to solve
            return b_h / 2 * slopes[0]
        phi, factorial, rights = step.expm1() / step - 1, 1.0, []
        for k in range(1, len(r) + 1):
            rights.append(phi * factorial / b_h)
            factorial *= k + 1
            phi = phi / step - 1 / factorial
        points = torch.stack(r)
        system = torch.stack([points**k for k in range(len(r))])
        a = torch.linalg.solve(system, torch.stack(rights))
        return b_h * sum(a_k * slope for a_k, slope in zip(a, slopes))
