"""The backbones: diffusers' UNet for images, a small residual MLP for vectors. Both are called net(x_in,
lam, labels=None).
"""

import copy

import click
import torch
from torch import Tensor, nn

# Resolution -> channels at each scale and residual blocks per scale: 8 for two minutes on two CPU cores, 28
# for an hour on one, the others for a GPU.
WIDTHS = {8: ((32, 48), 1), 28: ((16, 32, 48), 1), 32: ((64, 128, 128), 2), 64: ((64, 128, 192, 256), 2)}


def image_net(
    shape: tuple[int, int, int], classes: int = 0, channels: int | None = None, widths=None
) -> "UNet":
    """The project's UNet for images of `shape` (C, H, W), sized by resolution; `channels` out (default C)."""
    return UNet(shape, *(widths or widths_of(shape)), classes=classes, channels=channels)


def widths_of(shape: tuple[int, int, int]) -> tuple[tuple[int, ...], int]:
    """The channels at each scale and the residual blocks per scale for images of `shape`."""
    resolution = max(shape[1:])
    known = [size for size in WIDTHS if size >= resolution] or [max(WIDTHS)]
    return WIDTHS[min(known)]


def least_side(widths: tuple[int, ...]) -> int:
    """What the sides of images must be multiples of: every scale but the first halves them."""
    return 2 ** (len(widths) - 1)


def unet2d(
    shape: tuple[int, int, int],
    widths: tuple[int, ...],
    layers: int,
    classes: int = 0,
    channels: int | None = None,
) -> nn.Module:
    """An untrained UNet2DModel of diffusers, with attention at the lowest scale from 28 pixels up, and with
    a label for no class where there are classes; ClickException where it cannot take such images.
    """
    from diffusers import UNet2DModel

    scales = len(widths)
    if any(side % least_side(widths) for side in shape[1:]):
        raise click.ClickException(
            f"the project's network cannot take images of {shape[1]} x {shape[2]} pixels; give sides that "
            "are multiples of 2 up to 8, of 4 up to 32, or of 8 beyond."
        )
    attended = {scales - 1} if shape[1] >= 28 else set()
    return UNet2DModel(
        sample_size=shape[1],
        in_channels=shape[0],
        out_channels=channels or shape[0],
        layers_per_block=layers,
        block_out_channels=widths,
        down_block_types=["AttnDownBlock2D" if i in attended else "DownBlock2D" for i in range(scales)],
        up_block_types=["AttnUpBlock2D" if i in attended else "UpBlock2D" for i in reversed(range(scales))],
        attention_head_dim=16,
        norm_num_groups=8,
        num_class_embeds=classes + 1 if classes else None,
    )


class OfUNet(nn.Module):
    """diffusers' UNet2DModel as a network of (x, lam, labels); a subclass says at what `time` of its own
    it is asked.

    classes: how many it knows, 0 for none; its label `classes`, where it has one more, is that of no class.
    """

    def __init__(self, unet: nn.Module, classes: int = 0):
        super().__init__()
        self.unet, self.classes = unet, classes
        self.width = unet.config.block_out_channels[0]

    @property
    def unlabelled(self) -> bool:
        """Whether it has a reading without labels."""
        return not self.classes or self.unet.config.num_class_embeds > self.classes

    def time(self, lam: Tensor) -> Tensor:
        """The network's own time (N,) at half log-SNRs (N,)."""
        raise NotImplementedError

    def forward(self, x: Tensor, lam: Tensor, labels: Tensor | None = None) -> Tensor:
        """x (N, C, H, W), lam (N,), labels (N,) with -1 for none -> (N, channels, H, W)."""
        return self.answer(x, self.time(lam), labels)

    def answer(self, x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        if not self.classes:
            return self.unet(x, time, return_dict=False)[0]
        labels = torch.full((len(x),), -1, device=x.device) if labels is None else labels
        if not self.unlabelled and bool((labels < 0).any()):
            raise ValueError("this network was trained with labels only and has no reading without them")
        labels = labels % self.unet.config.num_class_embeds
        return self.unet(x, time, class_labels=labels, return_dict=False)[0]

    def features(self, x: Tensor, lam: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The output, and what enters the last block (N, width, H, W), of one pass."""
        seen = []
        last = self.unet.conv_norm_out
        hook = last.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        try:
            return self(x, lam, labels), seen[0]
        finally:
            hook.remove()


class UNet(OfUNet):
    """Our own, told the half log-SNR on the scale of DDPM's thousand steps: 1000 at lambda = -5.1, 0 at
    lambda = 7.
    """

    def __init__(
        self, shape, widths: tuple[int, ...], layers: int, classes: int = 0, channels: int | None = None
    ):
        super().__init__(unet2d(shape, widths, layers, classes, channels), classes)

    def time(self, lam: Tensor) -> Tensor:
        return (7.0 - lam) * (1000 / 12.1)


class MLP(nn.Module):
    """Residual network for vectors (N, D), with Fourier features of the half log-SNR."""

    def __init__(self, dim: int, width: int = 128, blocks: int = 3, out: int | None = None):
        super().__init__()
        self.width = width
        self.register_buffer("frequencies", torch.exp(torch.linspace(-2.0, 2.0, 16)))
        self.enter = nn.Linear(dim + 32, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(blocks)
        )
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, out or dim))

    def forward(self, x: Tensor, lam: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.features(x, lam)[0]

    def features(self, x: Tensor, lam: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The output, and what enters the last block (N, width), of one pass."""
        angle = lam[:, None] * self.frequencies
        h = self.enter(torch.cat([x, angle.sin(), angle.cos()], dim=1))
        for block in self.blocks:
            h = h + block(h)
        return self.leave(h), h


class Headed(nn.Module):
    """A frozen copy of a network with a second head on the features before its last layer, whose output
    follows the network's own as more channels. One pass.
    """

    def __init__(self, net: nn.Module, head: nn.Module):
        super().__init__()
        self.net, self.head = copy.deepcopy(net).requires_grad_(False), head

    def forward(self, x: Tensor, lam: Tensor, labels: Tensor | None = None) -> Tensor:
        more = () if labels is None else (labels,)
        out, features = self.net.features(x, lam, *more)
        return torch.cat([out, self.head(features)], dim=1)


def second_head(width: int, shape: tuple[int, ...], hidden: int = 64) -> nn.Module:
    """From features (N, width, ...) to a value for each coordinate of data of `shape`, 0 before training."""
    if len(shape) == 3:
        enter, leave = nn.Conv2d(width, hidden, 3, padding=1), nn.Conv2d(hidden, shape[0], 3, padding=1)
        inner = [nn.GroupNorm(8, hidden), nn.SiLU(), nn.Conv2d(hidden, hidden, 3, padding=1)]
    else:
        enter, leave = nn.Linear(width, hidden), nn.Linear(hidden, shape[0])
        inner = [nn.SiLU(), nn.Linear(hidden, hidden)]
    nn.init.zeros_(leave.weight)
    nn.init.zeros_(leave.bias)
    return nn.Sequential(enter, *inner, nn.SiLU(), leave)
