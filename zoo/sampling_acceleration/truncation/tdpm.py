"""TDPM: truncate the diffusion chain at T_trunc, and learn where it ends by a GAN.

The chain's prior is no normal but an implicit distribution, trained adversarially to match the diffused
data:

    x_trunc = alpha_trunc G(z) + sigma_trunc eps,    min_G max_D  E log D(q(x_trunc)) + E log(1 - D(x_trunc)).

From there the denoiser takes the chain's few steps. The paper trains both from nothing and together, and
gives the generator's output as it is; here the denoiser is the shared one, which knows every noise level, and
G is the shared GAN, diffused and trained further so that what its critic sees is the diffused distribution.
The generator's one pass is not in the NFE; the paper's tables count it.
"""

import copy

import torch
from torch import Tensor, nn

from bench.diffusion.adversarial import fit_sampler
from bench.diffusion.denoiser import Denoiser, noise_like
from bench.diffusion.steps import ancestral, generalised
from bench.method import Method


class TDPM(Method):
    """TDPM"""

    paper = "arXiv:2202.09671"
    also = ("gan",)
    schedules = ("ddpm", "vp", "vp_cosine", "subvp", "flow")
    share = 0.25
    version = 2

    stop: float = 0.1  # T_trunc / T; the paper takes 99, 49 and 4 of 1000 steps
    eta: float = 0.0  # 1 is DDPM with the posterior variance
    spacing: str = "time"

    def build(self, base: nn.Module, data, nfe: int) -> nn.Module:
        generator = copy.deepcopy(base["gan"]).requires_grad_(True)
        return nn.ModuleDict({"denoiser": base["denoiser"], "generator": generator})

    def train(self, model: nn.Module, base: nn.Module, data, images: int, nfe: int) -> None:
        stopped = self.stopped(model)

        def diffused(x0: Tensor, generator: torch.Generator) -> Tensor:
            return stopped.noised(x0, stopped.schedule.t_max, noise_like(x0, generator))

        fit_sampler(model["generator"], data, images, diffused)

    def start(self, model: nn.Module, n: int, generator: torch.Generator, device: str = "cpu") -> Tensor:
        stopped = self.stopped(model)
        noise = torch.randn(n, *stopped.shape, generator=generator).to(device)
        return stopped.noised(model["generator"].draw(n, generator, device), stopped.schedule.t_max, noise)

    def sample(self, model: nn.Module, x: Tensor, nfe: int) -> Tensor:
        stopped = self.stopped(model)
        return ancestral(
            x, stopped.schedule.steps(nfe, self.spacing, end="zero"), generalised(stopped, self.eta)
        )

    def stopped(self, model: nn.Module) -> Denoiser:
        return model["denoiser"].under(model["denoiser"].schedule.stopped(self.stop))
