"""Small networks of the models that make a sample in one pass: a VAE, a GAN's generator and critic, and the
generator of a denoising diffusion GAN. Images are convolved; vectors, and images of up to 8 pixels a side,
for which it takes a fraction of the time, go through linear layers.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.diffusion.counting import Counted
from bench.diffusion.denoiser import noise_like

FLAT = 8  # pixels up to which an image is taken as a vector
SMALLEST = 7  # pixels at which an image is no longer halved
NOISE = 64  # dimensions of a GAN's latent noise
LEAST = 0.3  # standard deviation of a VAE's decoder: with less, latents drawn from the prior decode badly


def sides(shape: tuple[int, ...]) -> list[int | None]:
    """The side of an image at each scale, the finest first; None for each of three equal scales of what is
    flat.
    """
    if len(shape) == 1 or max(shape[1:]) <= FLAT:
        return [None] * 3
    found = [shape[1]]
    while found[-1] > SMALLEST:
        found.append(found[-1] // 2)
    return found


def widths(shape: tuple[int, ...]) -> list[int]:
    """The channels at each scale."""
    return [128 if side is None else min(32 * 2**i, 128) for i, side in enumerate(sides(shape))]


def channels(shape: tuple[int, ...]) -> int:
    """The channels of a sample; all its numbers, where it is flat."""
    return math.prod(shape) if sides(shape)[0] is None else shape[0]


def layer(side: int | None, a: int, b: int, kernel: int = 3) -> nn.Module:
    """From a channels to b, keeping the variance: a convolution where there is a side, else linear."""
    made = nn.Linear(a, b) if side is None else nn.Conv2d(a, b, kernel, padding=kernel // 2)
    nn.init.kaiming_normal_(made.weight, nonlinearity="relu")
    nn.init.zeros_(made.bias)
    return made


def resized(h: Tensor, side: int | None) -> Tensor:
    """h at another scale: the mean of pixels down, the nearest pixel up."""
    if side is None or h.shape[-1] == side:
        return h
    return functional.avg_pool2d(h, 2) if side < h.shape[-1] else functional.interpolate(h, side)


class Residual(nn.Module):
    """Two layers round which the input is carried, the second's input scaled and shifted by an embedding;
    `norm` is left out in critics.
    """

    def __init__(self, side: int | None, a: int, b: int, embedded: int = 0, norm: bool = True):
        super().__init__()
        self.first, self.second = layer(side, a, b), layer(side, b, b)
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) if norm else nn.Identity() for width in (a, b))
        self.skip = layer(side, a, b, 1) if a != b else nn.Identity()
        self.modulation = nn.Linear(embedded, 2 * b) if embedded else None

    def forward(self, h: Tensor, embedding: Tensor | None = None) -> Tensor:
        inner = self.norms[1](self.first(functional.silu(self.norms[0](h))))
        if self.modulation is not None:
            scale, shift = (
                m.reshape(*m.shape, *[1] * (h.ndim - 2)) for m in self.modulation(embedding).chunk(2, 1)
            )
            inner = inner * (1 + scale) + shift
        return (self.skip(h) + self.second(functional.silu(inner))) / math.sqrt(2)


class Embedding(nn.Module):
    """Half log-SNRs (N, count) and noise (N, noise), either of which may be absent, as one (N, width)."""

    def __init__(self, width: int, count: int = 0, noise: int = 0):
        super().__init__()
        self.register_buffer("frequencies", torch.exp(torch.linspace(-2.0, 2.0, 16)))
        self.enter = nn.Sequential(
            nn.Linear(32 * count + noise, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )

    def forward(self, lam: Tensor | None = None, z: Tensor | None = None) -> Tensor:
        parts = [] if z is None else [z]
        if lam is not None:
            angle = (lam[..., None] * self.frequencies).flatten(1)
            parts += [angle.sin(), angle.cos()]
        return self.enter(torch.cat(parts, 1))


class Leave(nn.Module):
    """From features to a sample (N, *shape), between -1 and 1 where it is bounded."""

    def __init__(self, shape: tuple[int, ...], width: int, bounded: bool = False):
        super().__init__()
        self.shape, self.norm, self.bounded = shape, nn.GroupNorm(8, width), bounded
        self.layer = layer(sides(shape)[0], width, channels(shape))
        nn.init.normal_(self.layer.weight, std=width**-0.5)

    def forward(self, h: Tensor) -> Tensor:
        x = self.layer(functional.silu(self.norm(h))).reshape(-1, *self.shape)
        return x.tanh() if self.bounded else x


class Decoder(nn.Module):
    """From latents (N, latent), which also modulate every block, to samples (N, *shape)."""

    def __init__(self, shape: tuple[int, ...], latent: int, bounded: bool = False):
        super().__init__()
        self.shape, self.sides, width = shape, sides(shape), widths(shape)
        self.start = (width[-1], *([self.sides[-1]] * 2 if self.sides[-1] else []))
        self.embed = Embedding(64, noise=latent)
        self.enter = nn.Linear(latent, math.prod(self.start))
        pairs = zip([width[-1], *width[:0:-1]], width[::-1])
        self.blocks = nn.ModuleList(Residual(self.sides[0], a, b, 64) for a, b in pairs)
        self.leave = Leave(shape, width[0], bounded)

    def forward(self, z: Tensor) -> Tensor:
        h, embedding = self.enter(z).reshape(-1, *self.start), self.embed(z=z)
        for side, block in zip(reversed(self.sides), self.blocks):
            h = block(resized(h, side), embedding)
        return self.leave(h)


class Encoder(nn.Module):
    """From samples, `count` of them side by side as channels, to numbers (N, out), told `levels` half
    log-SNRs (N, levels) where it has any. As a critic it has no norms, and sees how much the samples of a
    group differ (Karras et al. 2018, section 3).
    """

    def __init__(self, shape: tuple[int, ...], out: int, count: int = 1, levels: int = 0, critic=False):
        super().__init__()
        self.sides, width, self.critic = sides(shape), widths(shape), critic
        self.embed = Embedding(64, levels) if levels else None
        self.enter = layer(self.sides[0], count * channels(shape), width[0])
        pairs = zip([width[0], *width[:-1]], width)
        embedded = 64 if levels else 0
        self.blocks = nn.ModuleList(
            Residual(self.sides[0], a, b, embedded, norm=not critic) for a, b in pairs
        )
        flat = width[-1] * (self.sides[-1] or 1) ** 2
        self.leave = nn.Sequential(nn.Linear(flat + critic, 128), nn.SiLU(), nn.Linear(128, out))

    def forward(self, x: Tensor, lam: Tensor | None = None, beside: Tensor | None = None) -> Tensor:
        embedding = None if self.embed is None else self.embed(lam)
        x = x if beside is None else torch.cat([x, beside], 1)
        h = self.enter(x.flatten(1) if self.sides[0] is None else x)
        for side, block in zip(self.sides, self.blocks):
            h = block(resized(h, side), embedding)
        h = functional.silu(h).flatten(1)
        return self.leave(torch.cat([h, spread(h)], 1) if self.critic else h)


def spread(h: Tensor, group: int = 4) -> Tensor:
    """(N, 1): the mean standard deviation of the features over groups of rows; 0 where they do not fit."""
    if len(h) % group:
        return h.new_zeros(len(h), 1)
    deviation = (h.reshape(group, -1, h.shape[1]).var(0, correction=0) + 1e-8).sqrt().mean(1, keepdim=True)
    return deviation.repeat(group, 1)


class Translator(nn.Module):
    """A U-Net from x (N, *shape), a half log-SNR (N,) and noise z (N, noise) to (N, *shape)."""

    def __init__(self, shape: tuple[int, ...], noise: int, bounded: bool = False):
        super().__init__()
        self.noise, self.sides, width = noise, sides(shape), widths(shape)
        self.embed = Embedding(128, 1, noise)
        self.enter = layer(self.sides[0], channels(shape), width[0])
        side, embedded = self.sides[0], 128
        self.down = nn.ModuleList(
            Residual(side, a, b, embedded) for a, b in zip([width[0], *width[:-1]], width)
        )
        self.middle = Residual(side, width[-1], width[-1], embedded)
        coarser = [width[-1], *width[:0:-1]]
        self.up = nn.ModuleList(Residual(side, a + b, b, embedded) for a, b in zip(coarser, width[::-1]))
        self.leave = Leave(shape, width[0], bounded)

    def forward(self, x: Tensor, lam: Tensor, z: Tensor) -> Tensor:
        embedding, kept = self.embed(lam[:, None], z), []
        h = self.enter(x.flatten(1) if self.sides[0] is None else x)
        for side, block in zip(self.sides, self.down):
            h = block(resized(h, side), embedding)
            kept.append(h)
        h = self.middle(h, embedding)
        for side, block in zip(reversed(self.sides), self.up):
            h = block(torch.cat([resized(h, side), kept.pop()], 1), embedding)
        return self.leave(h)


class Sampler(nn.Module):
    """A decoder of unit noise (N, latent) into samples (N, *shape); run once a sample, which is no NFE."""

    def __init__(self, shape: tuple[int, ...], latent: int = NOISE, bounded: bool = False):
        super().__init__()
        self.latent, self.decoder = latent, Counted(Decoder(shape, latent, bounded), role="extra")

    def forward(self, z: Tensor) -> Tensor:
        return self.decoder(z)

    def draw(self, n: int, generator: torch.Generator, device: str | torch.device) -> Tensor:
        """n samples; their noise is drawn on the CPU."""
        return self.decoder(torch.randn(n, self.latent, generator=generator).to(device))


class VAE(Sampler):
    """A variational autoencoder (Kingma & Welling 2014). Its Gaussian decoder has the variance that is best
    for a batch (Rybkin et al. 2021), so that blur and fidelity need no weight between them.
    """

    def __init__(self, shape: tuple[int, ...]):
        super().__init__(shape, min(64, max(2, math.prod(shape) // 4)))
        self.encoder = Encoder(shape, 2 * self.latent)

    def encoded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation (N, latent) of q(z | x)."""
        mean, log_std = self.encoder(x).chunk(2, 1)
        return mean, log_std.clamp(-8, 4)

    def reconstructed(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The decoded mean of a draw from q(z | x)."""
        mean, log_std = self.encoded(x)
        return self.decoder(mean + log_std.exp() * noise_like(mean, generator))

    def loss(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """(N,) nats a dimension: the negative evidence lower bound."""
        mean, log_std = self.encoded(x)
        error = (x - self.decoder(mean + log_std.exp() * noise_like(mean, generator))).square()
        variance = error.detach().mean().clamp(min=LEAST**2)
        surprise = (error / variance + torch.log(2 * math.pi * variance)) / 2
        divergence = (mean**2 + (2 * log_std).exp() - 1) / 2 - log_std
        return (surprise.flatten(1).sum(1) + divergence.sum(1)) / x[0].numel()


class Beside(nn.Module):
    """A network that is shown another sample beside its input, as more channels."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, lam: Tensor, other: Tensor) -> Tensor:
        return self.net(torch.cat([x, other], 1), lam)
