"""Where diffusion runs in fewer dimensions than the data: autoencoders with a diffusion in their latent
space, their joint variational bound, and linear subspaces of the data's own space.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.diffusion.bounds import continuous_bound
from bench.diffusion.counting import Counted
from bench.diffusion.denoiser import Denoiser, noise_like, rowwise
from bench.diffusion.generators import FLAT, Residual, channels, layer, resized
from bench.diffusion.likelihood import bin_log_density, normal_log_prob, prior_kl
from bench.diffusion.networks import MLP, UNet
from bench.diffusion.schedule import Schedule
from bench.diffusion.steps import ancestral, generalised

SIDE = 14  # pixels at which the latents of an image are no longer halved
ROWS = 512  # images encoded at once
MOST = 10_000  # training rows from which moments are taken


def latent_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of data of `shape`: a quarter of its numbers for what is flat, 2 to 128; else a smaller image of up to
    four channels and a quarter of the numbers.
    """
    if len(shape) == 1 or max(shape[1:]) <= FLAT:
        return (min(128, max(2, math.prod(shape) // 4)),)
    side = sides(shape)[-1]
    return (max(1, min(4, math.prod(shape) // (4 * side**2))), side, side)


def sides(shape: tuple[int, ...]) -> list[int | None]:
    """The side at each scale from the image to its latents; None three times for what is flat."""
    if len(shape) == 1 or max(shape[1:]) <= FLAT:
        return [None] * 3
    found = [shape[1]]
    while found[-1] > SIDE and found[-1] % 2 == 0:
        found.append(found[-1] // 2)
    return found


def net_of(shape: tuple[int, ...]) -> nn.Module:
    """A denoising network for vectors or small images: a U-Net with a scale for each halving of the side."""
    if len(shape) == 1:
        return MLP(shape[0], width=256, blocks=4)
    halvings = next(i for i in range(9) if shape[1] % 2 ** (i + 1) or i == 2)
    return UNet(shape, (32, 48, 64)[: halvings + 1], 1)


class Pyramid(nn.Module):
    """From `a` channels at the first of some sides to `b` at the last, through a residual block at each."""

    def __init__(self, scales: list[int | None], a: int, b: int):
        super().__init__()
        self.scales, width = scales, 256 if scales[0] is None else 64
        self.enter = layer(scales[0], a, width)
        self.blocks = nn.ModuleList(Residual(side, width, width) for side in scales)
        self.norm, self.leave = nn.GroupNorm(8, width), layer(scales[-1], width, b)
        self.leave.weight.data.mul_(0.1)  # both deviations begin near 1, that of an untaught decoder's error

    def forward(self, h: Tensor) -> Tensor:
        h = self.enter(h)
        for side, block in zip(self.scales, self.blocks):
            h = block(resized(h, side))
        return self.leave(functional.silu(self.norm(h)))


class Autoencoder(nn.Module):
    """A normal q(z | x) and a decoder, each run once a sample at either end. `outputs`: numbers told of each
    of the data's, the first the mean.
    """

    def __init__(self, shape: tuple[int, ...], outputs: int = 1):
        super().__init__()
        self.shape, self.latent, self.outputs = tuple(shape), latent_shape(shape), outputs
        scales, size = sides(shape), channels(shape)
        self.encoder = Counted(Pyramid(scales, size, 2 * self.latent[0]), role="extra")
        self.decoder = Counted(Pyramid(scales[::-1], self.latent[0], outputs * size), role="extra")
        ones = torch.ones(self.latent[0], *[1] * (len(self.latent) - 1))
        self.register_buffer("mean", torch.zeros_like(ones))
        self.register_buffer("deviation", ones)  # of the latents, which are standardised by both

    def encoded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation (N, *latent) of q(z | x)."""
        flat = len(self.latent) == 1
        mean, log_std = self.encoder(x.flatten(1) if flat else x).chunk(2, 1)
        return (mean - self.mean) / self.deviation, log_std.clamp(-8, 2) - self.deviation.log()

    def drawn(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """z (N, *latent) of q(z | x)."""
        mean, log_std = self.encoded(x)
        return mean + log_std.exp() * noise_like(mean, generator)

    def decoded(self, z: Tensor) -> Tensor:
        """The means (N, *shape) of p(x | z)."""
        return self.told(z)[0]

    def told(self, z: Tensor) -> list[Tensor]:
        """Each of `outputs` (N, *shape)."""
        out = self.decoder(z * self.deviation + self.mean)
        return [part.reshape(-1, *self.shape) for part in out.chunk(self.outputs, 1)]

    def loss(self, x: Tensor, generator: torch.Generator, weight: float = 1e-3) -> Tensor:
        """(N,): the squared error a number of the data, and the divergence of q(z | x) from unit normal noise
        with a small weight (Rombach et al. 2022, section 3.1).
        """
        mean, log_std = self.encoded(x)
        error = (x - self.decoded(mean + log_std.exp() * noise_like(mean, generator))).square()
        return (error.flatten(1).sum(1) + weight * divergence(mean, log_std)) / x[0].numel()

    @torch.no_grad()
    def standardise(self, data) -> None:
        """Set the mean and deviation of the latents' channels to those of the training data."""
        x = data.scale(data.train[: 16 * ROWS]).to(self.mean.device)
        means = [self.encoded(rows)[0] * self.deviation + self.mean for rows in x.split(ROWS)]
        z = torch.cat(means).double().transpose(0, 1).flatten(1)
        self.mean.copy_(z.mean(1).view_as(self.mean))
        self.deviation.copy_(z.std(1).clamp(min=1e-3).view_as(self.deviation))


def divergence(mean: Tensor, log_std: Tensor) -> Tensor:
    """(N,): KL of N(mean, e^{2 log_std}) from unit normal noise."""
    return ((mean**2 + (2 * log_std).exp() - 1) / 2 - log_std).flatten(1).sum(1)


class LatentDiffusion(nn.Module):
    """An autoencoder and a denoiser of its latents, which are where sampling starts. `levels` of the data."""

    def __init__(self, autoencoder: Autoencoder, denoiser: Denoiser, levels: int | None = None):
        super().__init__()
        self.autoencoder, self.denoiser, self.levels = autoencoder, denoiser, levels

    def prior(self, n: int, generator: torch.Generator | None = None, device="cpu") -> Tensor:
        """(n, *latent)."""
        return self.denoiser.prior(n, generator, device)

    def sampled(self, z: Tensor, nfe: int, eta: float, spacing: str) -> Tensor:
        """DDIM's samples in the latent space from z (N, *latent), decoded."""
        times = self.denoiser.schedule.steps(nfe, spacing, end="zero")
        return self.autoencoder.decoded(ancestral(z, times, generalised(self.denoiser, eta)))


class Mixed(nn.Module):
    """LSGM's mixed score (Vahdat et al. 2021, section 3.2): eps = (1 - a) sigma z + a net(z), whose first
    part is right for unit normal latents where variance is preserved. `a`, one a channel, is learned.
    """

    def __init__(self, net: nn.Module, shape: tuple[int, ...], logit: float = -3.0):
        super().__init__()
        self.net = net
        self.logit = nn.Parameter(torch.full((shape[0], *[1] * (len(shape) - 1)), logit))

    def forward(self, z: Tensor, lam: Tensor) -> Tensor:
        share = self.logit.sigmoid()
        return (1 - share) * rowwise(torch.sigmoid(-2 * lam).sqrt(), z) * z + share * self.net(z, lam)


def latent_denoiser(shape: tuple[int, ...], schedule: Schedule, mixed: bool = False) -> Denoiser:
    """A new denoiser of standardised latents."""
    net = net_of(shape)
    return Denoiser(Mixed(net, shape) if mixed else net, schedule, shape, "eps" if mixed else "F", 1.0)


def variational(data, schedule: Schedule) -> LatentDiffusion:
    """LSGM's networks before training: an autoencoder that tells its spread, and a mixed prior."""
    autoencoder = Autoencoder(data.shape, outputs=2)
    denoiser = latent_denoiser(autoencoder.latent, schedule, mixed=True)
    return LatentDiffusion(autoencoder, denoiser, data.levels)


def cross_entropy(denoiser: Denoiser, z: Tensor, generator: torch.Generator) -> Tensor:
    """(N,) nats: an estimate of the variational bound of -log p(z) that training can descend, in z too, from
    one noise level a row, the rows' spread evenly over the half log-SNRs: the likelihood weighting with the
    times that give it the least variance.
    """
    schedule = denoiser.schedule
    low, high = (float(schedule.lam(t)) for t in (schedule.t_max, schedule.t_min))
    place = torch.arange(len(z)) + torch.rand(len(z), generator=generator, device=generator.device).cpu()
    lam = low + (high - low) * place.double() / len(z)
    alpha, sigma = torch.sigmoid(2 * lam).sqrt(), torch.sigmoid(-2 * lam).sqrt()
    eps = noise_like(z, generator)
    found = denoiser.at(rowwise(alpha, z) * z + rowwise(sigma, z) * eps, alpha, sigma).eps
    end = z[0].numel() / 2 * (math.log(2 * math.pi * math.e) - 2 * high)
    return (high - low) * (eps - found).square().flatten(1).sum(1) + prior_kl(schedule, z).to(z) + end


def negative_entropy(log_std: Tensor) -> Tensor:
    """(N,): of a normal with these deviations."""
    return -(log_std + math.log(2 * math.pi * math.e) / 2).flatten(1).sum(1)


def surprise(autoencoder: Autoencoder, x: Tensor, z: Tensor, levels: int | None) -> Tensor:
    """(N,): -log p(x | z) by a decoder of two outputs, mean and log standard deviation; of data with levels
    the bin's probability over its width.
    """
    mean, log_std = autoencoder.told(z)
    variance = (2 * log_std.clamp(-6, 2)).exp()
    if levels:
        return -bin_log_density(x, mean, variance, levels)
    return -normal_log_prob(x, mean.double(), variance.double())


def latent_bound(model: LatentDiffusion, x: Tensor, rows: int) -> dict[str, Tensor]:
    """The variational bound of -log p(x), term by term, with `rows` evaluations of the prior a sample (Vahdat
    et al. 2021, section 3): reconstruction, cross entropy of q(z | x) to the diffusion, less q's entropy.
    """
    autoencoder = model.autoencoder
    mean, log_std = autoencoder.encoded(x)
    z = mean + log_std.exp() * torch.randn_like(mean)
    prior = continuous_bound(model.denoiser, z, rows)
    return {
        "reconstruction": surprise(autoencoder, x, z, model.levels),
        "prior": prior["prior"],
        "diffusion": prior["diffusion"],
        "entropy": prior["reconstruction"] + negative_entropy(log_std.double()),
    }


def elbo(model: LatentDiffusion, x: Tensor, generator: torch.Generator) -> Tensor:
    """(N,) nats a number of the data: the negative evidence lower bound with a unit normal prior."""
    mean, log_std = model.autoencoder.encoded(x)
    z = mean + log_std.exp() * noise_like(mean, generator)
    found = surprise(model.autoencoder, x, z, model.levels).float() + divergence(mean, log_std)
    return found / x[0].numel()


def joint_loss(model: LatentDiffusion, x: Tensor, generator: torch.Generator) -> Tensor:
    """(N,) nats a number of the data: an estimate of `latent_bound` that the autoencoder and the prior can
    descend together, from one noise level a row.
    """
    mean, log_std = model.autoencoder.encoded(x)
    z = mean + log_std.exp() * noise_like(mean, generator)
    found = surprise(model.autoencoder, x, z, model.levels).float() + negative_entropy(log_std)
    return (found + cross_entropy(model.denoiser, z, generator)) / x[0].numel()


class Subspace(nn.Module):
    """A linear subspace of a data set's space with coordinates of shape `sub` in an orthonormal basis: means
    over squares of `factor` pixels of an image, times `factor`; principal directions of vectors. Of what is
    orthogonal to it, `offset` is the data's mean and `variance` that of a coordinate round it.
    """

    def __init__(self, data, keep: float):
        super().__init__()
        self.whole, self.factor = tuple(data.shape), 1
        x = data.scale(data.train[:MOST]).double()
        if len(self.whole) == 3:
            self.factor = round(keep**-0.5)
            if any(side % self.factor for side in self.whole[1:]):
                raise ValueError(f"images of {self.whole[1:]} pixels have no squares of {self.factor} a side")
            self.sub = (self.whole[0], *(side // self.factor for side in self.whole[1:]))
        else:
            self.sub = (max(1, round(keep * self.whole[0])),)
            centred = x - x.mean(0)
            basis = torch.linalg.eigh(centred.T @ centred)[1].flip(1)[:, : self.sub[0]]
            sign = basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()
            self.register_buffer("basis", (basis * sign).float())
        rest = self.across(x.float()).double()
        offset, dims = rest.mean(0), math.prod(self.whole) - math.prod(self.sub)
        self.register_buffer("offset", offset.float())
        self.register_buffer("variance", ((rest - offset) ** 2).flatten(1).sum(1).mean() / max(1, dims))

    def down(self, x: Tensor) -> Tensor:
        """The coordinates (N, *sub) of x (N, *whole); unit noise becomes unit noise."""
        if len(self.whole) == 3:
            return functional.avg_pool2d(x, self.factor) * self.factor
        return x @ self.basis

    def up(self, y: Tensor) -> Tensor:
        """The point of the subspace that has these coordinates."""
        if len(self.whole) == 3:
            return y.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3) / self.factor
        return y @ self.basis.T

    def across(self, x: Tensor) -> Tensor:
        """What of x is orthogonal to the subspace."""
        return x - self.up(self.down(x))

    def lifted(self, y: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """x (N, *whole) of coordinates y, what is orthogonal drawn by unit noise (N, *whole) from the normal
        that the data noised to alpha and sigma nearly have there.
        """
        deviation = torch.sqrt(alpha**2 * self.variance + sigma**2)
        return self.up(y) + rowwise(alpha, y) * self.offset + rowwise(deviation, y) * self.across(noise)
