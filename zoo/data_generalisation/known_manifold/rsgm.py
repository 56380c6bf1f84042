"""RSGM: score-based generative modelling on a manifold, with Brownian motion as the noise.

The forward process dX = sqrt(beta(t)) dB_M forgets the data for the uniform distribution, and its time
reversal has the drift beta grad log p_t. Both are simulated by geodesic random walks,

    x <- exp_x(h score(x, t) + sqrt(h) z),        z normal in the tangent space at x,

h being the heat time that a step takes. The score is learned by denoising score matching with the heat
kernel, its eigenfunctions at large times, its asymptotic form at small ones; or by the implicit loss, which
needs no kernel. The likelihood is the probability flow's, on the manifold. The settings are those of the
authors' code, oxcsml/riemannian-score-sde.
"""

import torch
from torch import Tensor

from bench.diffusion.riemannian import (
    Clock,
    ManifoldScore,
    deviation,
    flow_nll,
    implicit,
    manifold_score,
    reverse_walk,
)
from bench.diffusion.training import fit, stratified
from bench.method import Method


class RSGM(Method):
    """RSGM"""

    paper = "arXiv:2202.02763"
    base = None
    kinds = {"sphere", "torus"}
    schedules = ()
    least = 2
    likelihood = "ode"
    dequantise = "none"
    share = 0.25

    beta_0: float = 0.001
    beta_1: float = 0.0  # 0 is the manifold's own: 5 on the sphere, 15 on the torus, which is wider
    t_min: float = 1e-3  # of time, which ends at 1
    loss: str = "heat_kernel"  # or "implicit"
    draws: int = 8  # times for each point of a batch, as a point costs little
    walk: int = 16  # steps of the forward walk, where it is not exact; of second order, so that few do
    trace: str = "exact"  # "hutchinson" costs one derivative however many dimensions
    learned: bool = False  # a network where the exact score is known

    def build(self, base: None, data, nfe: int) -> ManifoldScore:
        if self.loss not in ("heat_kernel", "implicit"):
            raise ValueError(f"the loss is 'heat_kernel' or 'implicit', not {self.loss!r}")
        model = manifold_score(data, self.learned, least=0.1 if self.loss == "implicit" else 0.0)
        model.clock = Clock(self.beta_0, self.beta_1 or (5.0 if data.kind == "sphere" else 15.0), self.t_min)
        return model

    def train(self, model: ManifoldScore, base: None, data, images: int, nfe: int) -> None:
        def loss(x0: Tensor, generator: torch.Generator) -> Tensor:
            x0 = x0.repeat(self.draws, 1)
            tau = model.clock.tau(self.t_min + (1 - self.t_min) * stratified(x0))
            x = model.manifold.walk(x0, tau, self.walk)
            if self.loss == "implicit":
                return deviation(tau) ** 2 * implicit(model, x, tau, self.trace, True).float()
            gap = model(x, tau) - model.manifold.kernel_score(x0, x, tau)
            return (deviation(tau)[:, None] * gap).square().sum(1)

        if not model.exact:
            fit(loss, model, data, images, lr=2e-3)

    def sample(self, model: ManifoldScore, x: Tensor, nfe: int) -> Tensor:
        return reverse_walk(model, x, model.clock.grid(nfe))

    def nll(self, model: ManifoldScore, x: Tensor, nfe: int) -> Tensor:
        return flow_nll(model, x, model.clock, nfe, self.trace)
