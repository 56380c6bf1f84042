"""The backbones: diffusers' UNet for images, a small residual MLP for vectors. Both are called net(x_in,
lam, labels=None).
"""

import torch
from torch import Tensor, nn

# Resolution -> channels at each scale and residual blocks per scale. The smallest is tuned for two minutes
# on two CPU cores.
WIDTHS = {8: ((32, 48), 1), 28: ((32, 64, 96), 1), 32: ((64, 128, 128), 2), 64: ((64, 128, 192, 256), 2)}


def image_net(
    shape: tuple[int, int, int], classes: int = 0, channels: int | None = None, widths=None
) -> "UNet":
    """The project's UNet for images of `shape` (C, H, W), sized by resolution; `channels` out (default C)."""
    resolution = max(shape[1:])
    known = [size for size in WIDTHS if size >= resolution] or [max(WIDTHS)]
    return UNet(shape, *(widths or WIDTHS[min(known)]), classes=classes, channels=channels)


class UNet(nn.Module):
    """diffusers' UNet2DModel, told the half log-SNR on the scale of DDPM's thousand steps: 1000 at lambda =
    -5.1, 0 at lambda = 7.
    """

    def __init__(
        self, shape, widths: tuple[int, ...], layers: int, classes: int = 0, channels: int | None = None
    ):
        super().__init__()
        from diffusers import UNet2DModel

        scales = len(widths)
        attended = {scales - 1} if shape[1] >= 28 else set()
        self.unet = UNet2DModel(
            sample_size=shape[1],
            in_channels=shape[0],
            out_channels=channels or shape[0],
            layers_per_block=layers,
            block_out_channels=widths,
            down_block_types=["AttnDownBlock2D" if i in attended else "DownBlock2D" for i in range(scales)],
            up_block_types=[
                "AttnUpBlock2D" if i in attended else "UpBlock2D" for i in reversed(range(scales))
            ],
            attention_head_dim=16,
            norm_num_groups=8,
            num_class_embeds=classes + 1 if classes else None,
        )
        self.classes = classes

    def forward(self, x: Tensor, lam: Tensor, labels: Tensor | None = None) -> Tensor:
        """x (N, C, H, W), lam (N,), labels (N,) with -1 for none -> (N, channels, H, W)."""
        step = (7.0 - lam) * (1000 / 12.1)
        if not self.classes:
            return self.unet(x, step, return_dict=False)[0]
        labels = torch.full((len(x),), -1, device=x.device) if labels is None else labels
        return self.unet(x, step, class_labels=labels % (self.classes + 1), return_dict=False)[0]


class MLP(nn.Module):
    """Residual network for vectors (N, D), with Fourier features of the half log-SNR."""

    def __init__(self, dim: int, width: int = 128, blocks: int = 3, out: int | None = None):
        super().__init__()
        self.register_buffer("frequencies", torch.exp(torch.linspace(-2.0, 2.0, 16)))
        self.enter = nn.Linear(dim + 32, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(blocks)
        )
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, out or dim))

    def forward(self, x: Tensor, lam: Tensor, labels: Tensor | None = None) -> Tensor:
        angle = lam[:, None] * self.frequencies
        h = self.enter(torch.cat([x, angle.sin(), angle.cos()], dim=1))
        for block in self.blocks:
            h = h + block(h)
        return self.leave(h)
