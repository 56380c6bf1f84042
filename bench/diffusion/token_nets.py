"""Networks of tokens: of pixels, letters and codes. All are called net(x, t) with whole numbers x (N,
*shape), of which the last may be a mask, and times t (N,), and return logits (N, *shape, levels).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.diffusion.networks import image_net, least_side, widths_of


class ImageTokens(nn.Module):
    """The project's UNet on pixels as tokens: shown their levels as numbers on [-1, 1] and, where there is
    a mask, where that is.

    `logistic`: each pixel's distribution is a logistic one, cut to its levels' bins, whose place starts from
    the pixel shown (Austin et al. 2021, appendix A.8); else any at all, to which the pixel shown is added.
    """

    def __init__(self, shape: tuple[int, int, int], levels: int, masks: bool, logistic: bool):
        super().__init__()
        self.shape, self.levels, self.masks, self.logistic = shape, levels, masks, logistic
        inputs = shape[0] * (1 + masks)
        outputs = shape[0] * (2 if logistic else levels)
        self.net = image_net((inputs, *shape[1:]), channels=outputs)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        masked = x == self.levels
        shown = torch.where(masked, 0.0, x.float() * (2 / (self.levels - 1)) - 1)
        inputs = torch.cat([shown, masked.float()], 1) if self.masks else shown
        out = self.net(inputs, lam_of(t)).unflatten(1, (self.shape[0], -1)).movedim(2, -1)
        if self.logistic:
            return logistic(torch.tanh(out[..., 0] + shown), out[..., 1], self.levels)
        own = functional.one_hot(x.clamp(max=self.levels - 1), self.levels)
        return out + own * ~masked[..., None]


class Sequence(nn.Module):
    """A residual convolutional network along a sequence: (N, inputs, L) and times (N,) to (N, outputs, L)."""

    def __init__(self, inputs: int, outputs: int, width: int = 96, blocks: int = 6):
        super().__init__()
        self.enter = nn.Conv1d(inputs, width, 1)
        self.register_buffer("frequencies", torch.exp(torch.linspace(0.0, 4.0, 16)))
        self.time = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width * blocks))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(8, width),
                nn.Conv1d(width, width, 3, padding=2**place, dilation=2**place),
                nn.SiLU(),
                nn.Conv1d(width, width, 1),
            )
            for place in (i % 3 for i in range(blocks))
        )
        self.leave = nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv1d(width, outputs, 1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angle = t[:, None] * self.frequencies
        shifts = self.time(torch.cat([angle.sin(), angle.cos()], 1)).chunk(len(self.blocks), 1)
        h = self.enter(x)
        for block, shift in zip(self.blocks, shifts):
            h = h + block(h + shift[..., None])
        return self.leave(h)


class TextTokens(nn.Module):
    """A network on sequences of letters."""

    def __init__(self, levels: int, masks: bool):
        super().__init__()
        self.states = levels + masks
        self.net = Sequence(self.states, levels)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(functional.one_hot(x, self.states).mT.float(), t).mT


class CodeTokens(nn.Module):
    """The project's UNet on grids of codes (N, H, W), which have no order; with a margin of nothing where it
    cannot halve the grid as often as it has to.
    """

    def __init__(self, side: int, levels: int, masks: bool):
        super().__init__()
        self.states, self.side = levels + masks, side
        widths, _ = widths_of((self.states, side, side))
        self.margin = -side % least_side(widths)
        whole = side + self.margin
        self.net = image_net((self.states, whole, whole), channels=levels)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        shown = functional.one_hot(x, self.states).movedim(-1, 1).float()
        shown = functional.pad(shown, (0, self.margin, 0, self.margin))
        return self.net(shown, lam_of(t))[..., : self.side, : self.side].movedim(1, -1)


def lam_of(t: Tensor) -> Tensor:
    """A time between 0 and 1 on the UNet's own scale of noise levels, 7 down to -5.1."""
    return 7 - 12.1 * t


def token_net(data, masks: bool, logistic: bool = False) -> nn.Module:
    """An untrained network for these tokens: of images, or of sequences."""
    if len(data.shape) == 3:
        return ImageTokens(data.shape, data.levels, masks, logistic)
    return TextTokens(data.levels, masks)


def logistic(place: Tensor, width: Tensor, levels: int) -> Tensor:
    """(*, levels) logits of a logistic distribution about `place` on [-1, 1], of log scale `width` - 2."""
    centres = torch.linspace(-1, 1, levels, device=place.device) - place[..., None]
    sharp = torch.exp(2 - width)[..., None]
    low, high = (sharp * (centres + side / (levels - 1)) for side in (-1, 1))
    # log(sigmoid(high) - sigmoid(low)), without the cancellation on either side
    return torch.log(-torch.expm1(low - high) + 1e-6) - functional.softplus(-high) - functional.softplus(low)
