"""tAB-DEIS: the flow's linear part solved exactly, the noise prediction extrapolated by a polynomial in
time.

With z = x / alpha and r = sigma / alpha the flow is dz = eps dr. Over a step from s to t the method puts
for eps the polynomial in time through its values at s and at the times before it,

    x_t = (alpha_t / alpha_s) x_s + sum_j C_j eps_j,
    C_j = alpha_t * integral from s to t of l_j(tau) r'(tau) dtau,

l_j being Lagrange's polynomials on those times. The C do not depend on the data and are found by
quadrature. Where there are not yet r + 1 values the degree is lower: that start is of order 2, which shows
at once where r' is steep at t_max ("vp_cosine", "flow"), and elsewhere only below the errors that a budget
reaches; with values to start from, the order is r + 1.
"""

import numpy
import torch
from torch import Tensor

from bench.diffusion.denoiser import Denoiser
from bench.diffusion.schedule import Schedule, slope
from bench.method import Method

NODES, WEIGHTS = (torch.from_numpy(a) for a in numpy.polynomial.legendre.leggauss(64))


class TABDEIS(Method):
    """tAB-DEIS"""

    paper = "arXiv:2204.13902"
    entry = "deis"
    order = {"vp_cosine": 2, "flow": 2}  # elsewhere between r + 1 and its start's 2, and not settled

    r: int = 3  # degree of the polynomial; 0 is DDIM
    spacing: str = "quadratic"

    def sample(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        alpha = denoiser.schedule.alpha
        times = denoiser.schedule.steps(nfe, self.spacing)
        known = []  # the noise predicted at the latest times, the latest last
        for s, t, c in zip(times, times[1:], coefficients(denoiser.schedule, times, self.r)):
            known = [*known, denoiser(x, s).eps][-self.r - 1 :]
            x = alpha(t) / alpha(s) * x + sum(c_j * eps for c_j, eps in zip(c, known))
        return x


def coefficients(schedule: Schedule, times: Tensor, r: int) -> list[Tensor]:
    """C (up to r + 1,) of each step, the latest time's last, by Gauss and Legendre's rule in log time."""
    start, half = times[:-1, None].log(), times.log().diff()[:, None] / 2
    tau = (start + half * (1 + NODES)).exp()
    # r' = -r lambda', and the last factor is dtau / dlog(tau)
    weights = half * WEIGHTS * -(-schedule.lam(tau)).exp() * slope(schedule.lam, tau) * tau
    found = []
    for i in range(len(tau)):
        points = times[max(0, i - r) : i + 1]
        apart = points[:, None] - points + torch.eye(len(points), dtype=torch.float64)
        factors = (tau[i] - points[:, None])[None] / apart[
            ..., None
        ]  # (j, k, node): (tau - t_k) / (t_j - t_k)
        factors.diagonal().fill_(1.0)
        found.append(schedule.alpha(times[i + 1]) * factors.prod(1) @ weights[i])
    return found
