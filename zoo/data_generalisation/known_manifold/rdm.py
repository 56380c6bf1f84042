"""RDM: diffusion on a manifold as a variational model, trained and measured by its continuous-time bound.

With Brownian motion dX = sqrt(beta) P dB as the inference process, P the projection to the tangent space, and
a uniform prior, the bound (Theorem 2, simplified by Proposition 2) is

    -log p(x) <= log volume + integral of beta E[|s|^2 / 2 + div s](X_t, t) dt,        X_0 = x,

whose divergence is the trace of the ambient Jacobian between projections (Proposition 1). The integral is
estimated at random times, drawn from a proposal that is trained for the least second moment of the estimate.
Sampling is by the Stratonovich-Heun method with a projection after each step. The clock beta(t) is RSGM's;
the proposal corrects for it.
"""

import math

import torch
from torch import Tensor, nn

from bench.diffusion.riemannian import Clock, ManifoldScore, implicit, manifold_score, reverse_heun
from bench.diffusion.training import fit, stratified
from bench.method import Method


class RDM(Method):
    """RDM"""

    paper = "arXiv:2208.07949"
    base = None
    kinds = {"sphere", "torus"}
    schedules = ()
    least = 2
    likelihood = "elbo"
    dequantise = "none"
    share = 0.25

    beta_0: float = 0.001
    beta_1: float = 0.0  # 0 is the manifold's own: 5 on the sphere, 15 on the torus
    t_min: float = 1e-3  # of time, which ends at 1
    draws: int = 8  # times for each point of a batch, as a point costs little
    walk: int = 16  # steps of the inference process, where it is not exact
    trace: str = "exact"  # "hutchinson" costs one derivative however many dimensions
    learned: bool = False  # a network where the exact score is known

    def build(self, base: None, data, nfe: int) -> ManifoldScore:
        model = manifold_score(data, self.learned, least=0.1)
        model.clock = Clock(self.beta_0, self.beta_1 or (5.0 if data.kind == "sphere" else 15.0), self.t_min)
        model.proposal = Proposal(self.t_min).requires_grad_(not model.exact)
        return model

    def train(self, model: ManifoldScore, base: None, data, images: int, nfe: int) -> None:
        def loss(x0: Tensor, generator: torch.Generator) -> Tensor:
            x0 = x0.repeat(self.draws, 1)
            t, density = model.proposal(stratified(x0))
            cost = self.integrand(model, x0, t.detach(), True).float() / density.detach()
            # The bound's gradient in the proposal is zero on average; that of its second moment is this.
            second = (cost.detach() ** 2 / (cost.detach() ** 2).mean()).clamp(max=100)
            return cost - second * density.log()

        if not model.exact:
            fit(loss, model, data, images, lr=2e-3)

    def sample(self, model: ManifoldScore, x: Tensor, nfe: int) -> Tensor:
        return reverse_heun(model, x, model.clock.grid(nfe // 2))

    def nll(self, model: ManifoldScore, x: Tensor, nfe: int) -> dict[str, Tensor]:
        path = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for part in range(nfe):
            t, density = model.proposal(((part + torch.rand(len(x))) / nfe).to(x))
            path += self.integrand(model, x, t) / density.double() / nfe
        volume = torch.full_like(path, math.log(model.manifold.volume))
        return {"prior": volume, "diffusion": path}

    def integrand(self, model: ManifoldScore, x0: Tensor, t: Tensor, differentiable: bool = False) -> Tensor:
        """(N,) nats per unit of time at one draw of X_t for each row."""
        tau = model.clock.tau(t)
        x = model.manifold.walk(x0, tau, self.walk)
        return model.clock.rate(t) * implicit(model, x, tau, self.trace, differentiable)


class Proposal(nn.Module):
    """A density of times in [t_min, 1]: a monotone piecewise linear map of uniform numbers."""

    def __init__(self, t_min: float, pieces: int = 32):
        super().__init__()
        self.t_min = t_min
        self.logits = nn.Parameter(torch.zeros(pieces))

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The times of uniform numbers (N,), and the density there."""
        share = self.logits.softmax(0)
        ends = share.cumsum(0).detach()
        piece = torch.searchsorted(ends, u.clamp(max=1 - 1e-6)).clamp(max=len(share) - 1)
        inside = 1 - (ends[piece] - u) / share[piece].detach()
        width = (1 - self.t_min) / len(share)
        return self.t_min + width * (piece + inside.clamp(0, 1)), share[piece] / width
