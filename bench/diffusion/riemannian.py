"""Diffusion on manifolds: the flow of heat dX = sqrt(beta(t)) dB against a clock tau(t), the network that
gives its score, and what the methods share: the implicit loss, the reverse walk, the flow's likelihood.
"""

import copy
import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from bench.diffusion.counting import Counted
from bench.diffusion.heat import HeatMixture
from bench.diffusion.likelihood import per_row
from bench.diffusion.manifold import Manifold, manifold_of, rows
from bench.diffusion.networks import MLP
from bench.diffusion.steps import adams_bashforth

BEND = 0.02  # heat times below it are crossed in even steps, those above in even steps of the logarithm


@dataclass(frozen=True)
class Clock:
    """Heat spreads at the rate beta(t) = beta_0 + (beta_1 - beta_0) t, t from t_min to 1."""

    beta_0: float
    beta_1: float
    t_min: float = 1e-3

    def tau(self, t: Tensor) -> Tensor:
        """The integral of beta up to t: the time that the heat kernel knows."""
        return self.beta_0 * t + (self.beta_1 - self.beta_0) * t**2 / 2

    def rate(self, t: Tensor) -> Tensor:
        return self.beta_0 + (self.beta_1 - self.beta_0) * t

    def grid(self, steps: int) -> Tensor:
        """steps + 1 falling values of tau, even in t, float64."""
        return self.tau(torch.linspace(1, self.t_min, steps + 1, dtype=torch.float64))


class ManifoldScore(nn.Module):
    """A network, counted, on a manifold; calling it at (x, tau) gives the gradient of the log density of data
    after heat has spread for tau, tangent at x. Off the manifold x counts as its nearest point, so that the
    divergence in ambient coordinates is the manifold's.
    """

    def __init__(self, net: nn.Module, manifold: Manifold):
        super().__init__()
        self.net, self.manifold = Counted(net), manifold

    @property
    def exact(self) -> bool:
        return isinstance(self.net.net, ExactHeat)

    def forward(self, x: Tensor, tau: Tensor | float) -> Tensor:
        x = self.manifold.nearest(x)
        return self.manifold.tangent(x, self.net(x, rows(tau, x)[:, 0]))

    def prior(self, n: int, generator: torch.Generator | None = None, device="cpu") -> Tensor:
        """n uniform points."""
        return self.manifold.uniform(n, generator).to(device)


class ExactHeat(nn.Module):
    """The perfect network of a mixture whose heat flow is known."""

    def __init__(self, mixture: HeatMixture):
        super().__init__()
        self.mixture = mixture

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        return self.mixture.score(x, tau)


class ScoreMLP(nn.Module):
    """A residual network shown a point and log tau, whose output is divided by the noise's standard deviation
    sqrt(1 - e^-tau), or by `least` where that is larger.
    """

    def __init__(self, manifold: Manifold, least: float):
        super().__init__()
        self.manifold, self.least = manifold, least
        inputs = manifold.features(torch.zeros(1, manifold.ambient)).shape[1]
        self.inner = MLP(inputs, out=manifold.ambient)

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        out = self.inner(self.manifold.features(x), -tau.log() / 2)
        return out / deviation(tau).clamp(min=self.least)[:, None]


def manifold_score(data, learned: bool = False, least: float = 0.0) -> ManifoldScore:
    """An untrained network for data on a manifold; the exact one where the distribution is known, unless it
    is to be learned.
    """
    manifold = manifold_of(data)
    if data.exact is not None and not learned:
        return ManifoldScore(ExactHeat(copy.deepcopy(data.exact)), manifold)
    return ManifoldScore(ScoreMLP(manifold, least), manifold)


def deviation(tau: Tensor) -> Tensor:
    """sqrt(1 - e^-tau): about the standard deviation of a coordinate after that time."""
    return (-torch.expm1(-tau)).sqrt()


def probes(manifold: Manifold, x: Tensor, trace: str, ambient: Tensor | None = None) -> list[Tensor]:
    """Tangent vectors v at x with which the sum of v.(J v) is the trace of a Jacobian J in the tangent space:
    an orthonormal frame ("exact"), or a normal draw, with which it is so on average ("hutchinson"): that of
    `ambient` coordinates, projected, or a new one.
    """
    if trace not in ("exact", "hutchinson"):
        raise ValueError(f"no trace {trace!r} on a manifold; there are exact and hutchinson")
    x = manifold.nearest(x)
    if trace == "exact":
        return manifold.frame(x)
    return [manifold.tangent(x, torch.randn_like(x) if ambient is None else ambient)]


def divergence(
    model: ManifoldScore, x: Tensor, tau: Tensor | float, probes: list[Tensor], differentiable: bool = False
) -> tuple[Tensor, Tensor]:
    """The score at x and its divergence along the manifold, float64, by a derivative for each probe.
    `differentiable`: in the network's parameters, for a loss that is made of them.
    """
    with torch.enable_grad():
        y = x.detach().requires_grad_()
        value, total = model(y, tau), 0.0
        for v in probes:
            (cotangent,) = torch.autograd.grad(value, y, v, retain_graph=True, create_graph=differentiable)
            total = total + per_row(cotangent * v)
    return value if differentiable else value.detach(), total


def implicit(
    model: ManifoldScore, x: Tensor, tau: Tensor | float, trace: str, differentiable: bool = False
) -> Tensor:
    """|s|^2 / 2 + div s of each row, float64: by Stein's identity its mean is that of |s - score|^2 / 2, less
    what no network changes.
    """
    s, div = divergence(model, x, tau, probes(model.manifold, x, trace), differentiable)
    return per_row(s.square()) / 2 + div


def flow_nll(model: ManifoldScore, x: Tensor, clock: Clock, steps: int, trace: str) -> Tensor:
    """-log p(x) in nats with respect to the surface measure, by the probability flow dx/dtau = -score / 2
    from data to a uniform distribution: Adams-Bashforth of order 2 in log(tau + BEND), each step followed by
    the projection to the nearest point. One row a step.
    """
    ends = clock.tau(torch.tensor([clock.t_min, 1.0], dtype=torch.float64)) + BEND
    places = torch.linspace(*ends.log().tolist(), steps + 1, dtype=torch.float64)
    h, change = float(places[1] - places[0]), torch.zeros(len(x), dtype=torch.float64, device=x.device)
    ambient = torch.randn_like(x) if trace == "hutchinson" else None  # one probe for the whole way
    moves, spreads = [], []
    for place in places[:-1].exp():
        along = probes(model.manifold, x, trace, ambient)
        score, div = divergence(model, x, place - BEND, along)
        moves, spreads = [*moves[-1:], float(-place / 2) * score], [*spreads[-1:], float(-place / 2) * div]
        x = model.manifold.nearest(x + h * adams_bashforth(moves))
        change = change + h * adams_bashforth(spreads)
    return math.log(model.manifold.volume) - change


def reverse_walk(model: ManifoldScore, x: Tensor, taus: Tensor) -> Tensor:
    """A geodesic random walk back in time: steps along geodesics, normal about the score. One row a step."""
    manifold = model.manifold
    for s, t in pairwise(taus):
        h = float(s - t)
        x = manifold.exp(x, h * model(x, s) + math.sqrt(h) * manifold.noise(x))
    return x


def reverse_heun(model: ManifoldScore, x: Tensor, taus: Tensor) -> Tensor:
    """The same in ambient coordinates by the Stratonovich-Heun method, each step followed by the projection
    to the nearest point. Two rows a step.
    """
    manifold = model.manifold
    for s, t in pairwise(taus):
        h, noise = float(s - t), torch.randn_like(x)
        first = h * model(x, s) + math.sqrt(h) * manifold.tangent(x, noise)
        ahead = manifold.nearest(x + first)
        second = h * model(ahead, t) + math.sqrt(h) * manifold.tangent(ahead, noise)
        x = manifold.nearest(x + (first + second) / 2)
    return x
