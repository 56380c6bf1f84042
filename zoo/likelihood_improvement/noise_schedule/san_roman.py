"""Noise estimation: a small second network reads off how noisy the sample is, and the remaining steps adjust.

A schedule of n steps has noises beta_1 .. beta_n that rise by equal amounts ("linear") or each by the two
before it ("fibonacci"), with beta_1 given and the rest such that

    (1 - beta_1) ... (1 - beta_n) = bar-alpha,

where bar-alpha is at first that of the schedule's end. After a step the network P estimates the bar-alpha
that x really has, P having learned by least squares on log(1 - bar-alpha), and the steps that remain are
chosen anew for it, each sample's its own.

P is some fifty times cheaper than the denoiser, and the paper counts steps of the latter: P's evaluations,
one a step but the last, are the column of extra evaluations and not NFE.
"""

import torch
from torch import Tensor, nn

from bench.diffusion.counting import Counted
from bench.diffusion.denoiser import Denoiser, noise_like, rowwise
from bench.diffusion.training import fit
from bench.method import Method


def noises(kind: str, first: float, alpha_bar: Tensor, n: int) -> Tensor:
    """beta_1 .. beta_n, (len(alpha_bar), n), whose (1 - beta) multiply to alpha_bar, one a row. beta_1 is
    `first`, or lower where even the least noises that follow from it would take too much.
    """
    if kind not in ("linear", "fibonacci"):
        raise ValueError(f"noises are 'linear' or 'fibonacci', not {kind!r}")
    if n == 1:
        return 1 - alpha_bar[:, None]
    # Both kinds are beta_1 a + y b with y free.
    a, b = [1.0, 1.0], [0.0, 1.0]
    for _ in range(n - 2):
        a.append(a[-1] + a[-2] if kind == "fibonacci" else 1.0)
        b.append(b[-1] + b[-2] if kind == "fibonacci" else b[-1] + 1)
    a, b = alpha_bar.new_tensor(a), alpha_bar.new_tensor(b)

    def at(share: Tensor) -> Tensor:
        """Noises that rise with share: up to 1 it is that of beta_1, beyond it y grows."""
        return first * share.clamp(max=1)[:, None] * a + (share - 1).clamp(min=0)[:, None] * b

    low = torch.zeros_like(alpha_bar)
    high = low + 1 + ((1 - first * a[1:]) / b[1:]).min()
    for _ in range(60):
        middle = (low + high) / 2
        less = (1 - at(middle)).clamp(min=0).prod(1) > alpha_bar
        low, high = torch.where(less, middle, low), torch.where(less, high, middle)
    return at(low)


class NoiseLevel(nn.Module):
    """log(1 - bar-alpha) of noised images (N, C, H, W), one a row."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        widths = (channels, width, 2 * width, 2 * width)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(i, o, 3, stride, 1) for i, o, stride in zip(widths, widths[1:], (1, 2, 2))
        )
        self.leave = nn.Sequential(nn.Linear(2 * width, 2 * width), nn.SiLU(), nn.Linear(2 * width, 1))

    def forward(self, x: Tensor) -> Tensor:
        for convolution in self.convolutions:
            x = nn.functional.silu(convolution(x))
        return -nn.functional.softplus(self.leave(x.mean((2, 3))))[:, 0]


class Guided(nn.Module):
    """The denoiser, frozen, and what estimates its input's noise."""

    def __init__(self, base: Denoiser, width: int):
        super().__init__()
        self.base = base
        self.level = Counted(NoiseLevel(base.shape[0], width), role="extra")

    def prior(self, n: int, generator: torch.Generator | None = None, device="cpu") -> Tensor:
        return self.base.prior(n, generator, device)


class SanRoman(Method):
    """Noise estimation"""

    paper = "arXiv:2104.02600"
    kinds = {"image"}  # of a few numbers nobody can say how noisy they are
    schedules = ("ddpm", "vp", "vp_cosine")
    share = 0.1

    noise: str = "linear"  # | "fibonacci"
    adjust: bool = True  # False keeps the first schedule
    eta: float = 0.0  # of DDIM's steps; 1 is DDPM
    width: int = 16  # of P

    def build(self, base: Denoiser, data, nfe: int) -> Guided:
        return Guided(base, self.width)

    def train(self, model: Guided, base: Denoiser, data, images: int, nfe: int) -> None:
        schedule = base.schedule

        def loss(x0: Tensor, generator: torch.Generator) -> Tensor:
            t = torch.rand(len(x0), generator=generator, device=generator.device, dtype=torch.float64)
            t = schedule.t_min + (schedule.t_max - schedule.t_min) * t
            eps = noise_like(x0, generator)
            aim = 2 * schedule.sigma(t).log().to(x0)
            return (model.level(base.noised(x0, t, eps)) - aim) ** 2

        fit(loss, model.level, data, images, lr=2e-3)

    def sample(self, model: Guided, x: Tensor, nfe: int) -> Tensor:
        schedule, n = model.base.schedule, len(x)
        least, most = (float(schedule.alpha(t)) ** 2 for t in (schedule.t_max, schedule.t_min))
        now = torch.full((n,), least, dtype=torch.float64, device=x.device)
        beta = noises(self.noise, 1 - most, now, nfe)
        for remaining in reversed(range(nfe)):
            out = model.base.at(x, now.sqrt(), (1 - now).sqrt())
            then = (1 - beta[:, :remaining]).prod(1)
            variance = self.eta**2 * beta[:, remaining] * (1 - then) / (1 - now)
            direction = (1 - then - variance).clamp(min=0).sqrt()
            x = rowwise(then.sqrt(), x) * out.x0 + rowwise(direction, x) * out.eps
            if not remaining:
                return x
            x = x + rowwise(variance.sqrt(), x) * torch.randn_like(x)
            now = then
            if self.adjust:
                found = (-model.level(x).double().expm1()).clamp(least, most)
                beta = noises(self.noise, 1 - most, found, remaining)
                now = (1 - beta).prod(1)
        return x
