"""Manifolds that diffusion runs on: the unit sphere in three dimensions, and the flat torus.

Points and tangent vectors are rows in ambient coordinates, (N, 3) or (N, d) angles; densities are with
respect to the surface measure (area, or the product of angles). The heat kernel p_tau(x | x0) is the density
at x of Brownian motion dX = dB after a time tau from x0, a number or one a row.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class Manifold(ABC):
    """A manifold: how to walk on it, what is uniform on it, and how heat spreads on it."""

    ambient: int  # coordinates of a point
    volume: float

    @abstractmethod
    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """Where the geodesic from x with velocity v is after a unit of time."""

    @abstractmethod
    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The shortest v with exp(x, v) = y; at a cut point, where there are several, a finite one."""

    @abstractmethod
    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        """The part of v tangent at x."""

    @abstractmethod
    def frame(self, x: Tensor) -> list[Tensor]:
        """Orthonormal tangent vectors at each row, as many as there are dimensions."""

    @abstractmethod
    def nearest(self, x: Tensor) -> Tensor:
        """The nearest point of the manifold; of angles, the same within [-pi, pi)."""

    @abstractmethod
    def uniform(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n uniform points in float32, drawn on the CPU."""

    @abstractmethod
    def log_kernel(self, x0: Tensor, x: Tensor, tau: Tensor | float) -> Tensor:
        """(N,) log p_tau(x | x0), float64."""

    @abstractmethod
    def kernel_score(self, x0: Tensor, x: Tensor, tau: Tensor | float) -> Tensor:
        """The gradient of log p_tau(x | x0) in x, tangent at x, in x's dtype."""

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """What a network is shown of a point: smooth functions on the manifold."""

    @abstractmethod
    def walk(self, x: Tensor, tau: Tensor | float, steps: int = 100) -> Tensor:
        """x after Brownian motion for a time tau."""

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """The length of the shortest geodesic."""
        return self.log(x, y).norm(dim=-1)

    def noise(self, x: Tensor) -> Tensor:
        """A unit normal draw in the tangent space of each row."""
        return self.tangent(x, torch.randn_like(x))


@dataclass(frozen=True)
class Sphere(Manifold):
    """The unit sphere in R^3."""

    small: float = 0.05  # below this time the kernel is its asymptotic form, whose error is of order tau
    degrees: int = 40  # of the kernel's Legendre series: what is left out at `small` is below 1e-15
    ambient = 3
    volume = 4 * math.pi

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        angle = v.norm(dim=-1, keepdim=True)
        return self.nearest(angle.cos() * x + torch.sinc(angle / math.pi) * v)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        across = self.tangent(x, y)
        sine = across.norm(dim=-1, keepdim=True)
        angle = torch.atan2(sine, (x * y).sum(-1, keepdim=True))
        return angle / sine.clamp(min=1e-12) * across

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        return v - (x * v).sum(-1, keepdim=True) * x

    def frame(self, x: Tensor) -> list[Tensor]:
        axis = torch.eye(3, dtype=x.dtype, device=x.device)[x.abs().argmin(-1)]
        first = self.nearest(self.tangent(x, axis))
        return [first, torch.linalg.cross(x, first)]

    def nearest(self, x: Tensor) -> Tensor:
        return x / x.norm(dim=-1, keepdim=True)

    def uniform(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return self.nearest(torch.randn(n, 3, generator=generator))

    def features(self, x: Tensor) -> Tensor:
        return x

    def walk(self, x: Tensor, tau: Tensor | float, steps: int = 100) -> Tensor:
        """A geodesic random walk: `steps` normal steps in the tangent space, of a length that makes them
        right to second order in tau / steps.
        """
        h = rows(tau, x) / steps
        length = (h * (1 - h / 6).clamp(min=0)).sqrt()
        for _ in range(steps):
            x = self.exp(x, length * self.noise(x))
        return x

    def log_kernel(self, x0: Tensor, x: Tensor, tau: Tensor | float) -> Tensor:
        x0, x, tau = x0.double(), x.double(), rows(tau, x).double()[:, 0]
        angle = self.distance(x0, x)
        p, _ = zonal((x0 * x).sum(-1), tau, self.degrees)
        # Varadhan's -angle^2 / (2 tau) with the volume factor of the sphere, and the first correction in tau.
        bend = (angle / angle.sin().clamp(min=1e-9)).clamp(min=1).log() / 2
        near = -(angle**2) / (2 * tau) - (2 * math.pi * tau).log() + bend + tau / 6
        return torch.where(self.is_near(tau, p), near, p.clamp(min=1e-300).log())

    def kernel_score(self, x0: Tensor, x: Tensor, tau: Tensor | float) -> Tensor:
        a, b, tau = x0.double(), x.double(), rows(tau, x).double()[:, 0]
        toward = self.log(b, a)
        angle = toward.norm(dim=-1).clamp(min=1e-6)
        # minus the slope of log_kernel in the angle, as a share of the angle; 1/a^2 - cot(a)/a is 1/3 at 0
        bend = torch.where(angle < 1e-2, angle.new_tensor(1 / 3), 1 / angle**2 - 1 / (angle * angle.tan()))
        near = (1 / tau - bend / 2)[:, None] * toward
        p, slope = zonal((a * b).sum(-1), tau.clamp(min=self.small), self.degrees)
        far = (slope / p.clamp(min=1e-300))[:, None] * self.tangent(b, a)
        return torch.where(self.is_near(tau, p)[:, None], near, far).to(x.dtype)

    def is_near(self, tau: Tensor, p: Tensor) -> Tensor:
        """Where the asymptotic form serves: at small times, and where the series, p, is lost in rounding."""
        return (tau < self.small) | (p < 1e-9)


@dataclass(frozen=True)
class Torus(Manifold):
    """The flat torus of angles in [-pi, pi)^d."""

    dim: int = 2

    @property
    def ambient(self) -> int:
        return self.dim

    @property
    def volume(self) -> float:
        return (2 * math.pi) ** self.dim

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        return wrapped(x + v)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return wrapped(y - x)

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        return v

    def frame(self, x: Tensor) -> list[Tensor]:
        return [unit.expand_as(x) for unit in torch.eye(self.dim, dtype=x.dtype, device=x.device)]

    def nearest(self, x: Tensor) -> Tensor:
        return wrapped(x)

    def uniform(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return wrapped((2 * torch.rand(n, self.dim, generator=generator) - 1) * math.pi)

    def features(self, x: Tensor) -> Tensor:
        return torch.cat([x.cos(), x.sin()], -1)

    def walk(self, x: Tensor, tau: Tensor | float, steps: int = 100) -> Tensor:
        """Exact: one step of any length."""
        return wrapped(x + rows(tau, x).sqrt() * torch.randn_like(x))

    def log_kernel(self, x0: Tensor, x: Tensor, tau: Tensor | float) -> Tensor:
        return wrapped_normal(x.double() - x0.double(), rows(tau, x).double())[0].sum(-1)

    def kernel_score(self, x0: Tensor, x: Tensor, tau: Tensor | float) -> Tensor:
        return wrapped_normal(x.double() - x0.double(), rows(tau, x).double())[1].to(x.dtype)


def manifold_of(data) -> Manifold:
    """The manifold that data of kind "sphere" or "torus" lie on."""
    return Sphere() if data.kind == "sphere" else Torus(data.shape[0])


def rows(tau: Tensor | float, x: Tensor) -> Tensor:
    """A time, or one a row, as a column (N, 1) in x's dtype and place."""
    return torch.as_tensor(tau).to(x.device, x.dtype).reshape(-1, 1).expand(len(x), 1)


def wrapped(angle: Tensor) -> Tensor:
    """The same angle in [-pi, pi)."""
    angle = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
    return torch.where(angle >= math.pi, angle - 2 * math.pi, angle)


def wrapped_normal(angle: Tensor, variance: Tensor, images: int = 4) -> tuple[Tensor, Tensor]:
    """The log density of a wrapped normal of mean 0 at an angle, and its slope, elementwise. With 4 images on
    either side it is exact to rounding for variances up to 9.
    """
    turns = 2 * math.pi * torch.arange(-images, images + 1, dtype=angle.dtype, device=angle.device)
    place, variance = wrapped(angle)[..., None] + turns, variance[..., None]
    logs = -(place**2) / (2 * variance) - (2 * math.pi * variance).log() / 2
    return logs.logsumexp(-1), -(logs.softmax(-1) * place / variance).sum(-1)


def zonal(
    cosine: Tensor, tau: Tensor, degrees: int, coefficients: Tensor | float = 1.0
) -> tuple[Tensor, Tensor]:
    """The density sum of (2l + 1)/(4 pi) a_l e^{-l(l+1) tau/2} P_l(cosine) over l < degrees, and its slope
    in the cosine: one that is symmetric about an axis, after heat has spread for a time tau. It broadcasts;
    `coefficients` a_l (..., degrees) are 1 for the heat kernel.
    """
    l = torch.arange(degrees, dtype=cosine.dtype, device=cosine.device)
    share = (2 * l + 1) / (4 * math.pi) * torch.exp(-l * (l + 1) / 2 * tau[..., None]) * coefficients
    value, slope = legendre(cosine, degrees)
    return (share * value).sum(-1), (share * slope).sum(-1)


def legendre(x: Tensor, degrees: int) -> tuple[Tensor, Tensor]:
    """The Legendre polynomials P_0 to P_{degrees - 1} at x, and their slopes, along a new last dimension."""
    values, slopes = [torch.ones_like(x), x], [torch.zeros_like(x), torch.ones_like(x)]
    for l in range(1, degrees - 1):
        slopes.append(slopes[-2] + (2 * l + 1) * values[-1])
        values.append(((2 * l + 1) * x * values[-1] - l * values[-2]) / (l + 1))
    return torch.stack(values[:degrees], -1), torch.stack(slopes[:degrees], -1)
