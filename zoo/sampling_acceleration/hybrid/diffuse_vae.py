"""DiffuseVAE: a VAE draws the sample at large, and a diffusion model that is shown it draws the rest.

In the paper's formulation 1 the forward process is as ever, and the denoiser is given the VAE's
reconstruction beside x, as more channels:

    x0(x_t, t, decoder(z)),    z ~ q(z | x0) in training, z ~ N(0, I) in sampling.

The VAE is trained first and then kept as it is. Steps are DDIM's with eta = 1, which is DDPM with the
posterior variance; the VAE is not in the NFE.
"""

import torch
from torch import Tensor, nn

from bench.diffusion.denoiser import Denoiser
from bench.diffusion.generators import Beside
from bench.diffusion.networks import MLP, image_net
from bench.diffusion.schedule import SCHEDULES
from bench.diffusion.steps import ancestral, generalised
from bench.diffusion.training import denoising_loss, fit
from bench.method import Method


class DiffuseVAE(Method):
    """DiffuseVAE"""

    paper = "arXiv:2201.00308"
    entry = "diffusevae"
    base = "vae"
    schedules = ("ddpm", "vp", "vp_cosine", "subvp", "ve", "edm", "flow")

    eta: float = 1.0  # 0 is DDIM; its authors' code has DDPM with the upper variance for CIFAR-10
    spacing: str = "time"

    def build(self, base: nn.Module, data, nfe: int) -> nn.Module:
        doubled = (2 * data.shape[0], *data.shape[1:])
        image = data.kind == "image"
        net = image_net(doubled, channels=data.shape[0]) if image else MLP(2 * data.dim, out=data.dim)
        schedule = SCHEDULES[self.schedule or self.schedules[0]]()
        return nn.ModuleDict(
            {"denoiser": Denoiser(Beside(net), schedule, data.shape, "F", data.sigma_data), "vae": base}
        )

    def train(self, model: nn.Module, base: nn.Module, data, images: int, nfe: int) -> None:
        denoiser, vae = model["denoiser"], model["vae"]

        def loss(x0: Tensor, generator: torch.Generator) -> Tensor:
            with torch.no_grad():
                shown = vae.reconstructed(x0, generator)
            return denoising_loss(denoiser.given(shown), x0, generator)

        fit(loss, denoiser, data, images, batch=128, lr=2e-3)

    def start(self, model: nn.Module, n: int, generator: torch.Generator, device: str = "cpu") -> Tensor:
        """(n, 2 channels, ...): where the diffusion starts, and beside it the VAE's sample."""
        x = model["denoiser"].prior(n, generator, device)
        return torch.cat([x, model["vae"].draw(n, generator, device)], 1)

    def sample(self, model: nn.Module, x: Tensor, nfe: int) -> Tensor:
        x, shown = x.chunk(2, 1)
        denoiser = model["denoiser"].given(shown)
        return ancestral(
            x, denoiser.schedule.steps(nfe, self.spacing, end="zero"), generalised(denoiser, self.eta)
        )
