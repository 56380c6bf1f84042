"""ES-DDPM: stop the diffusion early, at T' < T, and begin the reverse there from diffused samples of a VAE.

q(x_T') is no longer normal, yet near what the process makes of another model's samples

    x_T' = alpha_T' x0 + sigma_T' eps,    x0 = decoder(z),    z ~ N(0, I),

from which the same pretrained denoiser goes on: the noise hides what is wrong with the sample's details, and
keeps what is right at large. T' trades the one against the other. Its steps may be any sampler's; here they
are DDIM's, as where the paper takes few. The VAE is not in the NFE.
"""

import torch
from torch import Tensor, nn

from bench.diffusion.denoiser import Denoiser
from bench.diffusion.steps import ancestral, generalised
from bench.method import Method


class ESDDPM(Method):
    """ES-DDPM"""

    paper = "arXiv:2205.12524"
    also = ("vae",)
    schedules = ("ddpm", "vp", "vp_cosine", "subvp", "flow")

    stop: float = 0.2  # T' / T; its authors' examples take 0.1
    eta: float = 0.0  # 1 is DDPM with the posterior variance
    spacing: str = "time"

    def start(self, model: nn.Module, n: int, generator: torch.Generator, device: str = "cpu") -> Tensor:
        stopped = self.stopped(model)
        noise = torch.randn(n, *stopped.shape, generator=generator).to(device)
        return stopped.noised(model["vae"].draw(n, generator, device), stopped.schedule.t_max, noise)

    def sample(self, model: nn.Module, x: Tensor, nfe: int) -> Tensor:
        stopped = self.stopped(model)
        return ancestral(
            x, stopped.schedule.steps(nfe, self.spacing, end="zero"), generalised(stopped, self.eta)
        )

    def stopped(self, model: nn.Module) -> Denoiser:
        return model["denoiser"].under(model["denoiser"].schedule.stopped(self.stop))
