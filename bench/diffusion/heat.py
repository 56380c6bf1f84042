"""Distributions on manifolds whose marginal under the flow of heat is known at every time: mixtures of von
Mises-Fisher distributions on the sphere, and of wrapped normals on the torus.

A zonal density keeps its shape of a Legendre series, whose terms decay as e^{-l(l+1) tau/2}; a wrapped
normal stays one, and its variance grows by tau. Everything is computed in float64, whatever the precision of
the parameters.
"""

import math

import torch
from torch import Tensor, nn

from bench.diffusion.manifold import Sphere, wrapped, wrapped_normal, zonal

DEGREES = 80  # of the series: at a concentration of 50 what is left out is below 1e-20


class HeatMixture(nn.Module):
    """A mixture of K components; `weights` (K,) need not sum to 1. A subclass gives `components`."""

    def __init__(self, weights: Tensor, means: Tensor):
        super().__init__()
        self.register_buffer("weights", weights / weights.sum())
        self.register_buffer("means", means)

    def log_prob(self, x: Tensor) -> Tensor:
        """(N,) nats, with respect to the surface measure."""
        return self._joint(x).logsumexp(-1)

    def responsibilities(self, x: Tensor) -> Tensor:
        """(N, K): the posterior probability of each component at x."""
        return self._joint(x).softmax(-1)

    def _joint(self, x: Tensor) -> Tensor:
        return self.weights.double().log() + self.log_components(x.double())

    def choice(self, n: int, generator: torch.Generator | None) -> Tensor:
        return torch.multinomial(self.weights.double().cpu(), n, replacement=True, generator=generator)


class VonMisesFisher(HeatMixture):
    """A mixture of von Mises-Fisher distributions: means (K, 3) are made unit vectors, concentrations (K,)
    lie between 0 and some 50, beyond which the series is too short.
    """

    def __init__(self, weights: Tensor, means: Tensor, concentrations: Tensor):
        super().__init__(weights, Sphere().nearest(means))
        self.register_buffer("concentrations", concentrations)

    def log_components(self, x: Tensor) -> Tensor:
        """(N, K): the log density of each component."""
        k = self.concentrations.double()
        log_norm = (k / (2 * math.pi)).log() - torch.log(-torch.expm1(-2 * k))
        return log_norm + k * (x @ self.means.double().T - 1)

    def heat(self, x: Tensor, tau: Tensor | float) -> tuple[Tensor, Tensor]:
        """The density (N,) after a time tau, a number or (N,), and its gradient along the sphere (N, 3)."""
        x, means, weights = x.double(), self.means.double(), self.weights.double()
        tau = torch.as_tensor(tau, dtype=torch.float64, device=x.device).expand(len(x))
        least = float(tau.min())
        # terms that have died out at the least of the times are left out
        degrees = min(DEGREES, 3 + math.ceil(math.sqrt(80 / least))) if least > 0 else DEGREES
        f, slope = zonal(x @ means.T, tau[:, None], degrees, self.coefficients(degrees))
        return f @ weights, Sphere().tangent(x, (slope * weights) @ means)

    def score(self, x: Tensor, tau: Tensor | float) -> Tensor:
        """The gradient of the log density after a time tau, in x's dtype."""
        p, gradient = self.heat(x, tau)
        return (gradient / p[:, None]).to(x.dtype)

    def coefficients(self, degrees: int) -> Tensor:
        """(K, degrees) a_l = I_{l+1/2}(k) / I_{1/2}(k), by the downward recurrence of successive ratios."""
        k = self.concentrations.double()
        ratio, ratios = torch.zeros_like(k), []
        for l in range(degrees + 60, 0, -1):
            ratio = 1 / ((2 * l + 1) / k + ratio)
            ratios.append(ratio)
        return torch.stack([torch.ones_like(k), *ratios[::-1]], -1)[:, :degrees].cumprod(-1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """(n, 3) exact draws in float64, made on the CPU: the cosine by inversion, the direction uniform."""
        which = self.choice(n, generator)
        k, mean = self.concentrations.double().cpu()[which], self.means.double().cpu()[which]
        u = torch.rand(n, generator=generator, dtype=torch.float64)
        cosine = 1 + torch.log(u + (1 - u) * torch.exp(-2 * k)) / k
        sphere = Sphere()
        across = sphere.nearest(
            sphere.tangent(mean, torch.randn(n, 3, generator=generator, dtype=torch.float64))
        )
        sine = (1 - cosine**2).clamp(min=0).sqrt()
        return sphere.nearest(cosine[:, None] * mean + sine[:, None] * across)


class WrappedNormals(HeatMixture):
    """A mixture of wrapped normals: means and standard deviations (K, d), independent angles."""

    def __init__(self, weights: Tensor, means: Tensor, deviations: Tensor):
        super().__init__(weights, means)
        self.register_buffer("deviations", deviations)

    def log_components(self, x: Tensor) -> Tensor:
        return self._at(x, 0.0)[0]

    def _at(self, x: Tensor, tau: Tensor | float) -> tuple[Tensor, Tensor]:
        """(N, K) log densities of the components after a time tau, and their gradients (N, K, d)."""
        tau = torch.as_tensor(tau, dtype=torch.float64, device=x.device).reshape(-1, 1, 1)
        logs, slopes = wrapped_normal(
            x.double()[:, None] - self.means.double(), self.deviations.double() ** 2 + tau
        )
        return logs.sum(-1), slopes

    def heat(self, x: Tensor, tau: Tensor | float) -> tuple[Tensor, Tensor]:
        """The density (N,) after a time tau, a number or (N,), and its gradient (N, d)."""
        logs, slopes = self._at(x, tau)
        p = self.weights.double() * logs.exp()
        return p.sum(-1), (p[..., None] * slopes).sum(1)

    def score(self, x: Tensor, tau: Tensor | float) -> Tensor:
        """The gradient of the log density after a time tau, in x's dtype."""
        logs, slopes = self._at(x, tau)
        share = (self.weights.double().log() + logs).softmax(-1)
        return (share[..., None] * slopes).sum(1).to(x.dtype)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """(n, d) exact draws in float64, made on the CPU."""
        which = self.choice(n, generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64)
        return wrapped(self.means.double().cpu()[which] + self.deviations.double().cpu()[which] * noise)
