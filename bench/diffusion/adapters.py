"""Networks that were trained in other terms than half log-SNRs, made to answer what a Denoiser asks.

All but `Preconditioned`, whose sigma_data is its own, are fed the unit-variance input of sigma_data = 1,
x / alpha / sqrt(1 + (sigma / alpha)^2), which for a process that preserves variance is its x itself.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.diffusion.denoiser import Denoiser, noise_like, rowwise
from bench.diffusion.networks import OfUNet, unet2d, widths_of
from bench.diffusion.schedule import Table, ddpm_table

SAME_STEP = 1e-3  # steps this close are one: lambda comes in float32, which places the last of 1000 to 1e-5


class Discrete(OfUNet):
    """A UNet2DModel of the steps 0 to N - 1 of a discrete process, asked at any half log-SNR between theirs.

    Between two steps it is told a fraction of a step, log bar-alpha being linear there as in `Table`; one
    that embeds whole steps only is asked at the nearest.
    """

    def __init__(self, unet: nn.Module, table: Table, classes: int = 0):
        super().__init__(unet, classes)
        self.register_buffer("log_alpha_bar", table.log_alpha_bar.clone())
        self.whole = unet.config.time_embedding_type == "learned"

    @property
    def known(self) -> tuple[float, float]:
        """The half log-SNRs of its last and of its first step."""
        knots = self.log_alpha_bar[[-1, 1]]
        return tuple((knots / 2 - torch.log(-torch.expm1(knots)) / 2).tolist())

    def time(self, lam: Tensor) -> Tensor:
        place = -F.softplus(-2 * lam.double())  # log bar-alpha
        knots = self.log_alpha_bar
        right = torch.searchsorted(-knots, -place.detach()).clamp(1, len(knots) - 1)
        left = right - 1
        step = (left + (place - knots[left]) / (knots[right] - knots[left]) - 1).clamp(0, len(knots) - 2)
        nearest = step.detach().round()
        snapped = self.whole | ((step.detach() - nearest).abs() < SAME_STEP)
        step = step + torch.where(snapped, nearest - step.detach(), 0.0)  # with the slope between steps
        return step.round().long() if self.whole else step.to(lam.dtype)


class Exploding(OfUNet):
    """A UNet2DModel that gives the score of images in [0, 1] under noise of standard deviation sigma, its
    time, as ScoreSdeVePipeline asks it; here the images lie in [-1, 1] and the noise eps is answered.
    """

    def time(self, lam: Tensor) -> Tensor:
        return torch.exp(-lam) / 2  # an image in [0, 1] and its noise are half as wide

    def forward(self, x: Tensor, lam: Tensor, labels: Tensor | None = None) -> Tensor:
        sigma = self.time(lam)
        z = rowwise(torch.sqrt(1 + 4 * sigma**2), x) * x
        return -rowwise(sigma, x) * self.answer((z + 1) / 2, sigma, labels)


class Preconditioned(OfUNet):
    """A UNet2DModel that gives EDM's F, told c_noise = ln(sigma) / 4 (Karras et al. 2022, table 1); `sign` is
    -1 where diffusers' "v_prediction" has it the other way round.
    """

    def __init__(self, unet: nn.Module, classes: int = 0, sign: float = 1.0):
        super().__init__(unet, classes)
        self.sign = sign

    def time(self, lam: Tensor) -> Tensor:
        return -lam / 4

    def forward(self, x: Tensor, lam: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.sign * super().forward(x, lam, labels)


def untrained_ddpm(shape: tuple[int, int, int], widths=None, levels: int | None = None) -> Denoiser:
    """DDPM's own model of images of `shape`: eps at the whole steps of its linear table (Ho et al. 2020,
    section 4), on a network of the project's widths; random weights from torch's generator.
    """
    table = ddpm_table()
    net = Discrete(unet2d(shape, *(widths or widths_of(shape))), table)
    model = Denoiser(net, table, shape, "eps", 1.0, net.known)
    model.levels = levels
    return model


def simple_loss(model: Denoiser, x0: Tensor, generator: torch.Generator) -> Tensor:
    """DDPM's L_simple (Ho et al. 2020, section 3.4), one number a row: the squared error of eps at steps
    drawn evenly.
    """
    table = model.schedule
    step = torch.randint(1, table.n + 1, (len(x0),), generator=generator, device=generator.device)
    eps = noise_like(x0, generator)
    out = model(model.noised(x0, step.double() / table.n, eps), step.double() / table.n).eps
    return ((out - eps) ** 2).flatten(1).mean(1)
