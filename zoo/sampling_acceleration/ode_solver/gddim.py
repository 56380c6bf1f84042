"""gDDIM: DDIM for diffusions whose noise is not the same in all directions, here critically-damped Langevin.

Of all R with R R^T = Sigma_t, the covariance of u_t given x0, take the one that the flow carries along,

    dR/dt = (F + G G^T Sigma^-1 / 2) R    (eq. 17).

Then eps = R^-1 (u - a E[x0 | u]) = -R^T score does not change along the flow of a single x0, and the flow

    du/dt = F u + G G^T R^-T eps / 2

is solved by multistep exponential integration (eq. 19), eps being the polynomial in t through its last
q + 1 values: u_t = Psi(t, s) u_s + sum_j C_j eps_j. R is the Cholesky factor L times a rotation by the angle
-int (beta / M) (L_vv / L_xx) dt; where that begins turns eps by a constant and changes no sample.

With eta > 0, the paper's lambda, noise of eta^2 G G^T is added and x0 is held over a step (eq. 22):
u_t = a_t x0 + Psi_hat L_s eps_L + noise of covariance Sigma_t - Psi_hat Sigma_s Psi_hat^T.
"""

from itertools import pairwise

import numpy
import torch
from torch import Tensor

from bench.diffusion.cld import CLD, AugmentedDenoiser, applied, lower, spread
from bench.method import Method

NODES, WEIGHTS = (torch.from_numpy(a) for a in numpy.polynomial.legendre.leggauss(32))
SUBSTEPS = 256  # of the stochastic transition within a step, a power of 2


class GDDIM(Method):
    """gDDIM"""

    paper = "arXiv:2206.05564"
    base = "cld"
    schedules = ("vp",)  # none is read: the process is CLD's own

    # Degree of the polynomial; the order is q + 1, which the paper calls q. Its authors take 2 for their
    # result at 50 evaluations; their configuration's default is 1.
    q: int = 2
    corrector: bool = False  # correct each step but the last by the value at its end, at twice the cost
    eta: float = 0.0  # the paper's lambda: 0 is deterministic, 1 the reverse SDE; q is then 0
    stride: float = 2.0  # times are even in this root of t
    denoise: bool = True  # from t_min to 0 at the end by Euler's rule, which in x needs no score

    def start(
        self, model: AugmentedDenoiser, n: int, generator: torch.Generator, device: str = "cpu"
    ) -> Tensor:
        return model.prior(n, generator, device)

    def sample(self, model: AugmentedDenoiser, u: Tensor, nfe: int) -> Tensor:
        process = model.process
        n = (nfe + 1) // 2 if self.corrector and not self.eta else nfe
        ends = [t ** (1 / self.stride) for t in (process.t_max, process.t_min)]
        times = torch.linspace(*ends, n + 1, dtype=torch.float64) ** self.stride
        times[-1] = process.t_min
        u = self.stochastic(model, u, times) if self.eta else self.deterministic(model, u, times)
        x, v = u.chunk(2, 1)
        return x - process.t_min * process.beta / process.mass * v if self.denoise else x

    def deterministic(self, model: AugmentedDenoiser, u: Tensor, times: Tensor) -> Tensor:
        process, turns = model.process, rotations(model.process, times)
        told = lambda u, i: applied(turns[i].mT, model(u, times[i]).eps)  # eps of R from that of L
        known = []  # eps at the latest times, the latest last
        for i in range(len(times) - 1):
            known = [*known, told(u, i)][-self.q - 1 :]
            linear = applied(process.transition(times[i + 1] - times[i]), u)
            u = linear + moved(process, times, i, i, known)
            if self.corrector and i < len(times) - 2:
                u = linear + moved(process, times, i, i + 1, [*known, told(u, i + 1)])
        return u

    def stochastic(self, model: AugmentedDenoiser, u: Tensor, times: Tensor) -> Tensor:
        process = model.process
        for s, t in pairwise(times):
            out = model(u, s)
            carried = stirred(process, s, t, self.eta)
            noise = lower(process.covariance(t) - carried @ process.covariance(s) @ carried.mT)
            u = spread(process.mean(t), out.x0) + applied(carried @ process.cholesky(s), out.eps)
            u = u + applied(noise, torch.randn_like(u))
        return u


def rotations(process: CLD, times: Tensor) -> Tensor:
    """R = L O: the O (..., 2, 2) at times of any shape, by Gauss and Legendre's rule in the root of time."""
    half = times.sqrt()[..., None] / 2
    root = half * (1 + NODES)
    factor = process.cholesky(root**2)
    rate = process.beta / process.mass * factor[..., 1, 1] / factor[..., 0, 0] * 2 * root
    angle = -(half * WEIGHTS * rate).sum(-1)
    rows = [[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def moved(process: CLD, times: Tensor, i: int, last: int, known: list[Tensor]) -> Tensor:
    """sum_j C_j eps_j over the step from times[i]; the eps are those at the times up to times[last]."""
    points = times[last + 1 - len(known) : last + 1]
    half = (times[i + 1] / times[i]).log() / 2
    tau = times[i] * (half * (1 + NODES)).exp()  # in log time the kernel is smooth down to t_min
    inverse = torch.linalg.inv(process.cholesky(tau) @ rotations(process, tau)).mT
    push = torch.zeros_like(inverse)  # G G^T R^-T / 2
    push[:, 1] = process.friction * process.beta * inverse[:, 1]
    kernel = process.transition(times[i + 1] - tau) @ push * (half * WEIGHTS * tau)[:, None, None]
    total = torch.zeros_like(known[0])
    for j, eps in enumerate(known):
        others = torch.cat([points[:j], points[j + 1 :]])
        lagrange = ((tau[:, None] - others) / (points[j] - others)).prod(-1)
        total = total + applied((lagrange[:, None, None] * kernel).sum(0), eps)
    return total


def stirred(process: CLD, s: Tensor, t: Tensor, eta: float) -> Tensor:
    """Psi_hat(t, s): the transition of F + (1 + eta^2) G G^T Sigma^-1 / 2, as R_t Y R_s^-1 with
    Y' = (eta^2 / 2) (R^-1 G) (R^-1 G)^T Y, by exponentials over short steps in log time.
    """
    grid = torch.linspace(0, 1, SUBSTEPS + 1, dtype=torch.float64) * (t / s).log() + s.log()
    middle = ((grid[1:] + grid[:-1]) / 2).exp()
    frame = lambda tau: process.cholesky(tau) @ rotations(process, tau)
    g = torch.linalg.inv(frame(middle))[..., 1] * (2 * process.friction * process.beta) ** 0.5
    square = g.square().sum(-1)
    grown = torch.expm1(eta**2 / 2 * square * middle * grid.diff()) / square
    factors = torch.eye(2, dtype=torch.float64) + grown[:, None, None] * g[:, :, None] * g[:, None, :]
    while len(factors) > 1:  # SUBSTEPS is a power of 2
        factors = factors[1::2] @ factors[::2]
    return frame(t) @ factors[0] @ torch.linalg.inv(frame(s))
