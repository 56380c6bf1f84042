"""Diffusion in the box [-1, 1]^D that is reflected at its walls: folding, the heat kernel, networks, and
mixtures whose reflected flow is known.

The reflected Brownian motion of a point is the fold of an unreflected one, so its density is a sum over the
point's mirror images; or, in one dimension, a cosine series

    1/2 + sum over n of a_n e^{-(n pi / 2)^2 sigma^2 / 2} cos(n pi (x + 1) / 2),

which is short where sigma is large. `sigma` is the standard deviation without walls, a number or one a row.
"""

import math

import torch
from torch import Tensor, nn

from bench.diffusion.counting import Counted
from bench.diffusion.denoiser import rowwise

IMAGES, TERMS = 2, 6  # boxes on either side, and cosines: each exact to rounding on its side of WIDE
WIDE = 1.0  # the sigma between them


def fold(x: Tensor) -> tuple[Tensor, Tensor]:
    """x reflected into [-1, 1], and the sign by which a slope there turns into one at x."""
    place = torch.remainder(x + 1, 4)
    turned = place > 2
    return torch.where(turned, 3 - place, place - 1).clamp(-1, 1), torch.where(turned, -1.0, 1.0).to(x.dtype)


def kernel_score(x0: Tensor, x: Tensor, sigma: Tensor | float) -> Tensor:
    """The gradient in x of the log density of reflected motion from x0, both (N, *shape) in the box."""
    sigma = rowwise(sigma, x)
    near, far = sigma.clamp(max=WIDE), sigma.clamp(min=WIDE)
    boxes = 4 * torch.arange(-IMAGES, IMAGES + 1, dtype=x.dtype, device=x.device)
    gap = torch.cat([x[..., None] - x0[..., None] + boxes, x[..., None] + x0[..., None] - 2 + boxes], -1)
    share = (-(gap**2) / (2 * near[..., None] ** 2)).softmax(-1)
    by_images = -(share * gap).sum(-1) / near**2
    density, slope = torch.ones_like(x), torch.zeros_like(x)
    for n in range(1, TERMS + 1):
        k = n * math.pi / 2
        decay = 2 * torch.exp(-((k * far) ** 2) / 2) * torch.cos(k * (x0 + 1))
        density = density + decay * torch.cos(k * (x + 1))
        slope = slope - k * decay * torch.sin(k * (x + 1))
    return torch.where(sigma < WIDE, by_images, slope / density)


class BoxScore(nn.Module):
    """A network, counted, for data in a box; calling it at (x, sigma) gives the gradient of the log density
    of data after reflected motion. Outside the box the density is its mirror image.

    The network is net(x, -log sigma), of x's shape. Densities of reflected motion are level at the walls; its
    output is divided by sigma and, nearer to a wall than that, brought to zero.
    """

    def __init__(self, net: nn.Module, shape: tuple[int, ...]):
        super().__init__()
        self.net, self.shape = Counted(net), tuple(shape)

    @property
    def exact(self) -> bool:
        return isinstance(self.net.net, ExactReflection)

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        sigma = torch.as_tensor(sigma, device=x.device).to(x.dtype)
        inside, sign = fold(x)
        out = self.net(inside, -sigma.log().expand(len(x)))
        if self.exact:
            return sign * out
        sigma = rowwise(sigma, x)
        to_wall = torch.cos(inside * math.pi / 2) * (
            2 / math.pi
        )  # smooth, and the distance where it is small
        return sign * torch.tanh(to_wall / sigma.clamp(max=1)) * out / sigma

    def prior(self, n: int, generator: torch.Generator | None = None, device="cpu") -> Tensor:
        """n uniform points of the box, float32, drawn on the CPU."""
        return (2 * torch.rand(n, *self.shape, generator=generator) - 1).to(device)


class ExactReflection(nn.Module):
    """The perfect network of a mixture whose reflected flow is known."""

    def __init__(self, mixture: "TruncatedNormals"):
        super().__init__()
        self.mixture = mixture

    def forward(self, x: Tensor, lam: Tensor) -> Tensor:
        return self.mixture.reflected_score(x, (-lam.double()).exp())


class TruncatedNormals(nn.Module):
    """A mixture of K normals in D independent dimensions, each cut to the box [-1, 1]^D; `weights` (K,) are
    those after the cut and need not sum to 1, means and deviations (K, D). Computes in float64.
    """

    TERMS = 400  # of the cosine series, for sigma from 0.02 up

    def __init__(self, weights: Tensor, means: Tensor, deviations: Tensor):
        super().__init__()
        self.register_buffer("weights", weights / weights.sum())
        self.register_buffer("means", means)
        self.register_buffer("deviations", deviations)
        self.register_buffer("series", None, persistent=False)

    @property
    def dim(self) -> int:
        return self.means.shape[1]

    def log_prob(self, x: Tensor) -> Tensor:
        """(N,) nats; -inf outside the box."""
        inside = (x.abs() <= 1).all(-1)
        return torch.where(inside, self._joint(x.double()).logsumexp(-1), -torch.inf)

    def responsibilities(self, x: Tensor) -> Tensor:
        """(N, K): the posterior probability of each component at x."""
        return self._joint(x.double()).softmax(-1)

    def _joint(self, x: Tensor) -> Tensor:
        m, s = self.means.double(), self.deviations.double()
        logs = -(((x[:, None] - m) / s) ** 2) / 2 - (2 * math.pi * s**2).log() / 2 - mass(m, s).log()
        return self.weights.double().log() + logs.sum(-1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """(n, D) exact draws in float64, made on the CPU, by inversion."""
        weights, m, s = (a.double().cpu() for a in (self.weights, self.means, self.deviations))
        which = torch.multinomial(weights, n, replacement=True, generator=generator)
        m, s = m[which], s[which]
        u = torch.rand(n, self.dim, generator=generator, dtype=torch.float64)
        low = torch.special.ndtr((-1 - m) / s)
        return (m + s * torch.special.ndtri(low + u * mass(m, s))).clamp(-1, 1)

    def mean(self) -> Tensor:
        """(D,)"""
        return self.weights.double() @ truncated_mean(self.means.double(), self.deviations.double())

    def variance(self) -> Tensor:
        """The total variance, a scalar, by the quadrature that serves the series."""
        x, share = self._quadrature()
        return (self.weights.double()[:, None] * ((x - self.mean()[:, None]) ** 2 * share).sum(-1)).sum()

    def denoise(self, z: Tensor, r: Tensor | float) -> Tensor:
        """E[x0 | z = x0 + r eps] without walls, in the shape and the dtype of z: of each component it is the
        mean of a normal cut to the box.
        """
        m, v = self.means.double(), self.deviations.double() ** 2
        r = torch.as_tensor(r, dtype=torch.float64, device=z.device).reshape(-1, 1, 1)
        total = v + r**2
        place = z.double()[:, None]
        centre, spread = (place * v + m * r**2) / total, (v * r**2 / total).sqrt()
        logs = -((place - m) ** 2) / (2 * total) - total.log() / 2 - mass(m, v.sqrt()).log()
        logs = logs + mass(centre, spread).clamp(min=1e-300).log()
        share = (self.weights.double().log() + logs.sum(-1)).softmax(-1)
        return (share[..., None] * truncated_mean(centre, spread)).sum(1).to(z.dtype)

    def reflected_score(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """The gradient of the log density after reflected motion, x (N, D) in the box, in x's dtype."""
        sigma = torch.as_tensor(sigma, dtype=torch.float64, device=x.device).reshape(-1, 1, 1)
        terms = min(self.TERMS, 2 + math.ceil(6 / float(sigma.min())))  # the rest has died out
        k = torch.arange(terms, dtype=torch.float64, device=x.device) * (math.pi / 2)
        angle, decay = k * (x.double()[..., None] + 1), torch.exp(-((k * sigma) ** 2) / 2)
        series = self.coefficients()[..., :terms]
        p = torch.einsum("ndt,kdt->nkd", decay * angle.cos(), series).clamp(min=1e-30)
        slope = torch.einsum("ndt,kdt->nkd", -k * decay * angle.sin(), series)
        joint = self.weights.double() * p.prod(-1)
        return ((joint[..., None] * slope / p).sum(1) / joint.sum(-1, keepdim=True)).to(x.dtype)

    def coefficients(self) -> Tensor:
        """(K, D, TERMS) of the cosine series, by quadrature."""
        if self.series is None:
            x, share = self._quadrature()
            n = torch.arange(self.TERMS, dtype=torch.float64, device=x.device)
            self.series = share @ torch.cos(n * math.pi / 2 * (x[:, None] + 1)) / (1 + (n == 0))
        return self.series

    def _quadrature(self) -> tuple[Tensor, Tensor]:
        """Points of the interval, and what of each component's each dimension lies at each (K, D, points)."""
        import numpy

        x, w = (
            torch.from_numpy(a).to(self.means.device)
            for a in numpy.polynomial.legendre.leggauss(2 * self.TERMS)
        )
        m, s = self.means.double()[..., None], self.deviations.double()[..., None]
        return x, w * torch.exp(-(((x - m) / s) ** 2) / 2) / (math.sqrt(2 * math.pi) * s * mass(m, s))


def mass(mean: Tensor, deviation: Tensor) -> Tensor:
    """The probability of [-1, 1] under a normal, elementwise, in whichever tail it is."""
    low, high = (-1 - mean) / deviation, (1 - mean) / deviation
    flip = low > 0
    low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
    return torch.special.ndtr(high) - torch.special.ndtr(low)


def truncated_mean(mean: Tensor, deviation: Tensor) -> Tensor:
    """The mean of a normal cut to [-1, 1], elementwise; of one that lies far outside, the wall."""
    low, high = (-1 - mean) / deviation, (1 - mean) / deviation
    edge = torch.exp(-(low**2) / 2) - torch.exp(-(high**2) / 2)
    found = mean + deviation * edge / math.sqrt(2 * math.pi) / mass(mean, deviation).clamp(min=1e-300)
    outside = (mean.abs() - 1) / deviation > 30
    return torch.where(outside, mean.sign(), found).clamp(-1, 1)
