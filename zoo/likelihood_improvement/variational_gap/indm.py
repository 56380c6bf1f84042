"""INDM: a normalising flow before a linear diffusion, trained together, so that the diffusion of the data is
nonlinear.

With z = f(x) of an invertible f, and a diffusion of z with its score network, the model's density is that of
z times f's Jacobian, and both are trained on the variational bound (section 4)

    -log p(x) <= -log |df/dx| + cross entropy of z by the diffusion (likelihood weighted).

Where f is the identity (`couplings` = 0) it is the linear diffusion trained for its likelihood, whose gap
between the bound and the flow's likelihood f can close. The paper's f is a residual flow; here it is one of
affine couplings. `nll` integrates the probability flow of z; `bound` is the bound. Samples are DDIM's of z,
brought back by f's inverse, which is no NFE.
"""

import torch
from torch import Tensor, nn

from bench.diffusion.bounds import continuous_bound
from bench.diffusion.couplings import Flow
from bench.diffusion.denoiser import Denoiser, untrained
from bench.diffusion.latents import cross_entropy
from bench.diffusion.likelihood import flow_nll
from bench.diffusion.schedule import SCHEDULES
from bench.diffusion.steps import ancestral, generalised
from bench.diffusion.training import fit
from bench.method import Method


class FlowDiffusion(nn.Module):
    """A flow and a denoiser of what it makes of data, which is where sampling starts."""

    def __init__(self, flow: Flow, denoiser: Denoiser):
        super().__init__()
        self.flow, self.denoiser = flow, denoiser

    def prior(self, n: int, generator: torch.Generator | None = None, device="cpu") -> Tensor:
        return self.denoiser.prior(n, generator, device)


class INDM(Method):
    """INDM"""

    paper = "arXiv:2205.13699"
    base = None
    schedules = ("vp", "ve", "subvp", "vp_cosine", "edm", "flow")
    least = 4
    likelihood = "ode"

    couplings: int = 4  # of the flow; 0 leaves the diffusion linear
    width: int = 64  # of a coupling's network
    lr: float = 1e-3
    trace: str = "hutchinson"  # "exact" costs one derivative per dimension
    eta: float = 0.0  # 1 is DDPM with the posterior variance
    spacing: str = "time"

    def build(self, base: None, data, nfe: int) -> FlowDiffusion:
        denoiser = untrained(data, schedule=SCHEDULES[self.schedule or self.schedules[0]]())
        return FlowDiffusion(Flow(data.shape, self.couplings, self.width), denoiser)

    def train(self, model: FlowDiffusion, base: None, data, images: int, nfe: int) -> None:
        def loss(x0: Tensor, generator: torch.Generator) -> Tensor:
            if data.levels:
                noise = torch.rand(x0.shape, generator=generator, device=generator.device).to(x0)
                x0 = x0 + (2 * noise - 1) / (data.levels - 1)
            z, logdet = model.flow(x0)
            return (cross_entropy(model.denoiser, z, generator) - logdet) / data.dim

        fit(loss, model, data, images, batch=128, lr=self.lr)

    def sample(self, model: FlowDiffusion, x: Tensor, nfe: int) -> Tensor:
        times = model.denoiser.schedule.steps(nfe, self.spacing, end="zero")
        return model.flow.inverse(ancestral(x, times, generalised(model.denoiser, self.eta)))[0]

    def nll(self, model: FlowDiffusion, x: Tensor, nfe: int) -> dict[str, Tensor]:
        z, logdet = model.flow(x)
        times = model.denoiser.schedule.steps(nfe // 4, "lambda").flip(0)
        return {"flow": -logdet.double(), "diffusion": flow_nll(model.denoiser, z, times, self.trace)}

    def bound(self, model: FlowDiffusion, x: Tensor, nfe: int) -> dict[str, Tensor]:
        z, logdet = model.flow(x)
        return {"flow": -logdet.double()} | continuous_bound(model.denoiser, z, nfe)
