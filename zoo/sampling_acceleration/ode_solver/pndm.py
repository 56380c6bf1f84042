"""PNDM: classical multistep formulas for the noise prediction, carried by DDIM's step, not a straight line.

A step from s to t is DDIM's, with a combined noise e that Adams and Bashforth's formula of order 4 takes
from the last four predictions:

    e = (55 e_s - 59 e_1 + 37 e_2 - 9 e_3) / 24,
    x_t = (alpha_t / alpha_s) x_s + (sigma_t - alpha_t sigma_s / alpha_s) e.

F-PNDM finds its first three by pseudo Runge-Kutta steps of order 4, four evaluations each, so that N steps
cost N + 9; S-PNDM has the formula of order 2, e = (3 e_s - e_1) / 2, after one pseudo improved-Euler step,
and costs N + 1. The formulas are those of even steps in sigma / alpha; with steps even in t, which the
method takes down to t_min, both are of second order, as the paper says.
"""

from itertools import pairwise

from torch import Tensor

from bench.diffusion.denoiser import Denoiser
from bench.diffusion.steps import adams_bashforth, by_eps
from bench.method import Method


class PNDM(Method):
    """PNDM"""

    paper = "arXiv:2202.09778"
    schedules = ("ddpm", "vp", "vp_cosine", "subvp", "ve", "edm", "flow")
    # Even steps in time do not settle under EDM, where time is sigma, nor on a table with its kinks.
    order = {"vp": 2, "subvp": 2, "ve": 2, "vp_cosine": 2, "flow": 2}
    least = 4

    variant: str = "F"  # "S": two-point formula, one evaluation of warm-up
    spacing: str = "time"

    def sample(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        fourth = self.variant == "F"
        warm_up = self.runge_kutta if fourth else self.improved_euler
        # Below 12 evaluations F-PNDM is nothing but its warm-up.
        n, warm, points = (max(nfe - 9, nfe // 4), 3, 4) if fourth else (nfe - 1, 1, 2)
        known = []  # the noise predicted at the latest times, the latest last
        for i, (s, t) in enumerate(pairwise(denoiser.schedule.steps(n, self.spacing))):
            known = [*known[1 - points :], denoiser(x, s).eps]
            noise = warm_up(denoiser, x, s, t, known[-1]) if i < warm else adams_bashforth(known)
            x = by_eps(denoiser.schedule, x, s, t, noise)
        return x

    def runge_kutta(self, denoiser: Denoiser, x: Tensor, s: Tensor, t: Tensor, e_1: Tensor) -> Tensor:
        """The combined noise of a pseudo Runge-Kutta step; three evaluations more."""
        m = (s + t) / 2
        e_2 = denoiser(by_eps(denoiser.schedule, x, s, m, e_1), m).eps
        e_3 = denoiser(by_eps(denoiser.schedule, x, s, m, e_2), m).eps
        e_4 = denoiser(by_eps(denoiser.schedule, x, s, t, e_3), t).eps
        return (e_1 + 2 * e_2 + 2 * e_3 + e_4) / 6

    def improved_euler(self, denoiser: Denoiser, x: Tensor, s: Tensor, t: Tensor, e_1: Tensor) -> Tensor:
        """The combined noise of a pseudo improved-Euler step; one evaluation more."""
        return (e_1 + denoiser(by_eps(denoiser.schedule, x, s, t, e_1), t).eps) / 2
