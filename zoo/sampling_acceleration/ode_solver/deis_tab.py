"""tAB-DEIS: the flow's linear part solved exactly, the noise prediction extrapolated by a polynomial in time.

With z = x / alpha and r = sigma / alpha the flow is dz = eps dr. Over a step from s to t the method puts for eps the polynomial in time
through its values at s and at the times before it (eq. 13-15),

    x_t = (alpha_t / alpha_s) x_s + sum_j C_j eps_j,    C_j = alpha_t * integral from s to t of l_j(tau) r'(tau) dtau,

l_j being Lagrange's polynomials on those times. The C do not depend on the data; they are found by quadrature. The first steps have fewer
points.
"""

from itertools import pairwise

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
    order = 4

    r: int = 3  # degree of the polynomial; 0 is DDIM
    spacing: str = "quadratic"

    def sample(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        alpha = denoiser.schedule.alpha
        times = denoiser.schedule.steps(nfe, self.spacing)
        known = []  # the noise predicted at the latest times, the latest last
        for i, (s, t) in enumerate(pairwise(times)):
            known = [*known, denoiser(x, s).eps][-self.r - 1 :]
            x = alpha(t) / alpha(s) * x
            for c, eps in zip(coefficients(denoiser.schedule, times[i + 1 - len(known) : i + 1], t), known):
                x = x + c * eps
        return x


def coefficients(schedule: Schedule, points: Tensor, t: Tensor) -> Tensor:
    """C_j (k,) of the step from the last of `points` (k,) to t, by Gauss and Legendre's rule in log time."""
    start, end = points[-1].log(), t.log()
    tau = ((start + end) / 2 + (end - start) / 2 * NODES).exp()
    # r' = -r lambda'; the last factor is dtau / dlog(tau)
    weights = (end - start) / 2 * WEIGHTS * -(-schedule.lam(tau)).exp() * slope(schedule.lam, tau) * tau
    others = ~torch.eye(len(points), dtype=torch.bool)
    lagrange = [
        ((tau[:, None] - points[row]) / (points[j] - points[row])).prod(1) for j, row in enumerate(others)
    ]
    return schedule.alpha(t) * torch.stack(lagrange) @ weights
