"""Critically-damped Langevin diffusion: data x coupled to a velocity v that alone receives noise.

Dockhorn, Vahdat and Kreis 2022 (arXiv:2112.07068), eq. 5, with Gamma^2 = 4 M,

    dx = (beta / M) v dt,    dv = -beta x dt - (beta Gamma / M) v dt + sqrt(2 Gamma beta) dw,

with v_0 ~ N(0, gamma M).

A state u = (x, v) has x and v one after the other in its first dimension after the rows. Each coordinate goes
its own way, so that a moment is a 2 x 2 matrix, and all of them follow from the number y = 2 beta t / Gamma.
Given x0 the state is normal, u = a x0 + L noise with a in R^2 and L lower triangular (Cholesky), hence

    score(u) = Sigma^-1 (a E[x0 | u] - u),        Sigma = L L^T.

Two things follow. A score in v determines E[x0 | u] and with it the score in x. And u tells of x0 what
z = a^T Sigma^-1 u / (a^T Sigma^-1 a) = x0 + r noise tells, r^-2 = a^T Sigma^-1 a: a denoiser of z, such as a
mixture's exact one, is an exact score under CLD.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from bench.diffusion.counting import Counted
from bench.diffusion.denoiser import rowwise
from bench.diffusion.schedule import at

TRAINED_FROM = 1e-5  # the loss's earliest time, as in its authors' code; sampling ends at the process's t_min


@dataclass(frozen=True)
class CLD:
    """The process and its moments in closed form, float64, for times of any shape; the paper's defaults."""

    beta: float = 4.0
    friction: float = 1.0  # Gamma; the mass is Gamma^2 / 4, which damps critically
    gamma: float = 0.04  # the first velocities' variance, in units of the mass
    t_min: float = 1e-3
    t_max: float = 1.0

    @property
    def mass(self) -> float:
        return self.friction**2 / 4

    def pace(self, t: float | Tensor) -> Tensor:
        """y = 2 beta t / Gamma: the time in units of the relaxation time."""
        return 2 * self.beta * at(t) / self.friction

    def transition(self, h: float | Tensor) -> Tensor:
        """exp(F h), (..., 2, 2): where the drift alone takes (x, v) in a time h, which may be negative."""
        y = self.pace(h)
        rows = [[1 + y, 2 / self.friction * y], [-self.friction / 2 * y, 1 - y]]
        return torch.exp(-y)[..., None, None] * matrix(rows)

    def noise(self, h: float | Tensor) -> Tensor:
        """(..., 2, 2): the covariance that a time h >= 0 adds."""
        y = self.pace(h)
        decay = torch.exp(-2 * y)
        xx = torch.special.gammainc(torch.full_like(y, 3.0), 2 * y)  # 1 - e^-2y (1 + 2y + 2y^2), exact near 0
        vv = self.mass * (decay * (2 * y - 2 * y**2) - torch.expm1(-2 * y))
        xv = self.friction * y**2 * decay
        return matrix([[xx, xv], [xv, vv]])

    def mean(self, t: float | Tensor) -> Tensor:
        """a (..., 2): what x0 is multiplied by in the mean of u_t."""
        return self.transition(t)[..., 0]

    def covariance(self, t: float | Tensor) -> Tensor:
        """Sigma (..., 2, 2) of u_t given x0, the first velocity integrated out (hybrid score matching)."""
        column = self.transition(t)[..., 1]
        return self.noise(t) + self.gamma * self.mass * column[..., :, None] * column[..., None, :]

    def cholesky(self, t: float | Tensor) -> Tensor:
        """L (..., 2, 2), lower triangular."""
        return lower(self.covariance(t))

    def precision(self, t: float | Tensor) -> Tensor:
        """a^T Sigma^-1 a = r^-2: how well u_t tells x0."""
        return whitened(self.cholesky(t), self.mean(t)).square().sum(-1)

    def lam(self, t: float | Tensor) -> Tensor:
        """The half log-SNR of the state as a whole, -log r."""
        return self.precision(t).log() / 2


def matrix(rows: list[list[Tensor]]) -> Tensor:
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def lower(covariance: Tensor) -> Tensor:
    """The Cholesky factor of 2 x 2 covariances; zero where they are."""
    xx = covariance[..., 0, 0].clamp(min=0).sqrt()
    vx = torch.where(xx > 0, covariance[..., 1, 0] / xx.where(xx > 0, torch.ones_like(xx)), 0.0)
    vv = (covariance[..., 1, 1] - vx**2).clamp(min=0).sqrt()
    return matrix([[xx, torch.zeros_like(xx)], [vx, vv]])


def whitened(factor: Tensor, vector: Tensor) -> Tensor:
    """L^-1 vector, (..., 2)."""
    return torch.linalg.solve_triangular(factor, vector[..., None], upper=False)[..., 0]


def applied(m: Tensor, u: Tensor) -> Tensor:
    """A (2, 2) matrix, or one a row (N, 2, 2), applied to the pairs (x, v) of u."""
    x, v = u.chunk(2, 1)
    return torch.cat([rowwise(m[..., i, 0], x) * x + rowwise(m[..., i, 1], v) * v for i in (0, 1)], 1)


def spread(a: Tensor, x0: Tensor) -> Tensor:
    """A vector (2,) or one a row (N, 2) times x0: the pair (a_x x0, a_v x0)."""
    return torch.cat([rowwise(a[..., i], x0) * x0 for i in (0, 1)], 1)


class Augmented:
    """What the network says of a state u: x0, the unit noise under the Cholesky factor, the score."""

    def __init__(self, process: CLD, u: Tensor, t: Tensor, x0: Tensor):
        self.process, self.u, self.t, self.x0 = process, u, t, x0

    @cached_property
    def eps(self) -> Tensor:
        """L^-1 (u - a x0), shape of u."""
        rest = self.u - spread(self.process.mean(self.t), self.x0)
        return applied(torch.linalg.inv(self.process.cholesky(self.t)), rest)

    @property
    def score(self) -> Tensor:
        """The gradient of the log-density in x and in v, shape of u: -L^-T eps."""
        return -applied(torch.linalg.inv(self.process.cholesky(self.t)).mT, self.eps)


class AugmentedDenoiser(nn.Module):
    """A network that tells x0, the noise and the score of a state (x, v) under CLD; called at (u, t).

    With the form "eps_v" `net(u_in, lam)` sees both parts, each of unit variance, and answers with the
    paper's alpha' (N, *shape): the noise in v is alpha' + v L_vv / Sigma_vv (its mixed score).
    With "x0" it sees z alone, of unit variance, as a Denoiser's network does, and answers with E[x0 | z].
    """

    def __init__(
        self, net: nn.Module, shape: tuple[int, ...], form: str, sigma_data: float, process: CLD = CLD()
    ):
        super().__init__()
        if form not in ("eps_v", "x0"):
            raise ValueError(f"no form {form!r}; there are eps_v and x0")
        self.net = net if isinstance(net, Counted) else Counted(net)
        self.shape, self.form, self.sigma_data, self.process = tuple(shape), form, sigma_data, process

    def forward(self, u: Tensor, t: float | Tensor) -> Augmented:
        """The prediction at u (N, 2 C, ...) and time t, a scalar or one a row."""
        t, process = at(t), self.process
        if self.form == "eps_v":
            return Augmented(process, u, t, self.x0_of(u, t, self.eps_v(u, t)))
        factor, precision = process.cholesky(t), process.precision(t)
        a = process.mean(t)
        weights = torch.cholesky_solve(a[..., None], factor)[..., 0] / precision[..., None]
        x, v = u.chunk(2, 1)
        z = rowwise(weights[..., 0], x) * x + rowwise(weights[..., 1], v) * v
        scale = (self.sigma_data**2 + 1 / precision).rsqrt()
        return Augmented(process, u, t, self.net(rowwise(scale, z) * z, self.told(u, t)))

    def told(self, u: Tensor, t: Tensor) -> Tensor:
        return self.process.lam(t).to(u.device, u.dtype).expand(len(u))

    def eps_v(self, u: Tensor, t: Tensor) -> Tensor:
        """The noise in v, the second of L^-1 (u - a E[x0 | u])."""
        sigma, a = self.process.covariance(t), self.process.mean(t)
        scales = (a**2 * self.sigma_data**2 + sigma.diagonal(dim1=-2, dim2=-1)).rsqrt()
        out = self.net(applied(torch.diag_embed(scales), u), self.told(u, t))
        _, v = u.chunk(2, 1)
        return out + rowwise(self.process.cholesky(t)[..., 1, 1] / sigma[..., 1, 1], v) * v

    def x0_of(self, u: Tensor, t: Tensor, eps_v: Tensor) -> Tensor:
        """E[x0 | u] from the noise in v: solved from eps_v = (L^-1 u)_v - (L^-1 a)_v x0, whose last factor is
        negative at all times.
        """
        factor = self.process.cholesky(t)
        inverse = torch.linalg.inv(factor)[..., 1, :]
        slope = whitened(factor, self.process.mean(t))[..., 1]
        x, v = u.chunk(2, 1)
        return (
            rowwise(inverse[..., 0] / slope, x) * x
            + rowwise(inverse[..., 1] / slope, v) * v
            - rowwise(1 / slope, x) * eps_v
        )

    def prior(
        self, n: int, generator: torch.Generator | None = None, device: str | torch.device = "cpu"
    ) -> Tensor:
        """n draws of (x, v) at t_max: unit noise, drawn on the CPU in float32, x's first, v's by sqrt(M)."""
        x, v = (torch.randn(n, *self.shape, generator=generator) for _ in range(2))
        return torch.cat([x, math.sqrt(self.process.mass) * v], 1).to(device)


def hybrid_loss(model: AugmentedDenoiser, x0: Tensor, generator: torch.Generator) -> Tensor:
    """Hybrid score matching, v_0 integrated out, with the paper's weights for quality: t is uniform and the
    noise in v is predicted with unit weight. One number a row.
    """
    process = model.process
    share = torch.rand(len(x0), generator=generator, device=generator.device).double().to(x0.device)
    t = TRAINED_FROM + share * (process.t_max - TRAINED_FROM)
    shape = (len(x0), 2 * x0.shape[1], *x0.shape[2:])
    noise = torch.randn(shape, generator=generator, device=generator.device).to(x0)
    u = spread(process.mean(t), x0) + applied(process.cholesky(t), noise)
    return (model.eps_v(u, t) - noise.chunk(2, 1)[1]).square().flatten(1).mean(1)
