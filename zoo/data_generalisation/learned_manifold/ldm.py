"""LDM: an autoencoder first, then a diffusion of what its encoder says, in fewer dimensions than the data.

The autoencoder is trained for its squared error with a slight pull of q(z | x) towards unit normal noise,
and kept as it is (section 3.1); the denoiser learns from standardised draws of q(z | x), by the loss that it
has in pixel space (section 3.2). Sampling is DDIM's in the latent space, then one pass of the decoder, which
is no NFE. An evaluation here costs less than one of a network of the data's size: see the seconds.
"""

import torch
from torch import Tensor

from bench.diffusion.latents import Autoencoder, LatentDiffusion, latent_denoiser
from bench.diffusion.schedule import SCHEDULES
from bench.diffusion.training import denoising_loss, fit
from bench.method import Method


class LDM(Method):
    """LDM"""

    paper = "arXiv:2112.10752"
    base = "autoencoder"
    schedules = ("ddpm", "vp", "vp_cosine", "subvp", "ve", "edm", "flow")

    eta: float = 0.0  # 1 is DDPM with the posterior variance
    spacing: str = "time"

    def build(self, base: Autoencoder, data, nfe: int) -> LatentDiffusion:
        return LatentDiffusion(base, latent_denoiser(base.latent, SCHEDULES[self.schedule or "ddpm"]()))

    def train(self, model: LatentDiffusion, base: Autoencoder, data, images: int, nfe: int) -> None:
        def loss(x0: Tensor, generator: torch.Generator) -> Tensor:
            with torch.no_grad():
                z = model.autoencoder.drawn(x0, generator)
            return denoising_loss(model.denoiser, z, generator)

        fit(loss, model.denoiser, data, images, batch=128, lr=2e-3)

    def sample(self, model: LatentDiffusion, x: Tensor, nfe: int) -> Tensor:
        return model.sampled(x, nfe, self.eta, self.spacing)
