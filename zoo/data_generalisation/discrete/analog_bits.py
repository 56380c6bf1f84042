"""Analog bits: tokens written as bits, diffused as the real numbers -1 and 1 and rounded at the end.

The denoiser is shown its last estimate of x_0 beside x (self-conditioning), nothing at first; in training,
for half of the rows, an estimate of its own from a first look without one, through which no gradient passes.
It is fitted by the mean squared error of x_0 at even times of the cosine schedule. Steps are DDIM's or
DDPM's, and with asymmetric time intervals each goes `ahead` steps further than the time that the next look is
told (Algorithms 1 and 2 of the paper). The sample is the last estimate.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from bench.diffusion.denoiser import Denoiser, noise_like
from bench.diffusion.exact_bits import ExactBits, bits_of, codes, tokens_of
from bench.diffusion.generators import Beside
from bench.diffusion.networks import image_net
from bench.diffusion.schedule import SCHEDULES, at
from bench.diffusion.steps import ddim, posterior
from bench.diffusion.token_nets import Sequence
from bench.diffusion.training import fit
from bench.method import Method


class AnalogBits(Method):
    """Analog bits"""

    paper = "arXiv:2208.04202"
    base = None
    kinds = {"tokens"}
    schedules = ("vp_cosine", "vp")
    share = 0.35

    steps: str = "ddim"  # | "ddpm"
    ahead: float = 0.0  # the paper's td
    rate: float = 0.5  # of the rows trained with an estimate of their own
    learned: bool = False  # a network where the exact denoiser is known

    def build(self, base: None, data, nfe: int) -> Denoiser:
        table = codes(data.levels)
        shape = (data.shape[0] * table.shape[1], *data.shape[1:])
        if len(data.shape) == 1:
            shape = (table.shape[1], *data.shape)
        if data.exact is not None and not self.learned:
            net = ExactBits(type(data.exact)(data.exact.matrix, data.exact.length))
        else:
            net = Beside(BitNet(shape))
        model = Denoiser(net, self.process(), shape, "x0")
        model.register_buffer("table", table)
        return model

    def train(self, model: Denoiser, base: None, data, images: int, nfe: int) -> None:
        schedule = model.schedule

        def loss(x0: Tensor, generator: torch.Generator) -> Tensor:
            bits = bits_of(x0, model.table)
            u = torch.rand(len(bits), generator=generator, device=generator.device).cpu().double()
            t = schedule.t_min + u * (schedule.t_max - schedule.t_min)
            x = model.noised(bits, t, noise_like(bits, generator))
            shown = torch.zeros_like(x)
            own = int(self.rate * len(x))
            with torch.no_grad():
                if own:
                    shown[:own] = model.given(shown[:own])(x[:own], t[:own]).x0.clamp(-1, 1)
            return (model.given(shown)(x, t).x0 - bits).square().flatten(1).mean(1)

        if not isinstance(model.net.net, ExactBits):
            fit(loss, model, data, images, lr=2e-3)

    def sample(self, model: Denoiser, x: Tensor, nfe: int) -> Tensor:
        times = model.schedule.steps(nfe, "time", end="zero")
        step = float(times[0] - times[1]) if nfe > 1 else 0.0
        shown = torch.zeros_like(x)
        for s, t in pairwise(times):
            out = model.given(shown)(x, s)
            shown = out.x0.clamp(-1, 1)
            if t == 0:
                break
            further = at(t - self.ahead * step).clamp(min=model.schedule.t_min)
            x = self.moved(model, x, shown, s, further)
        return tokens_of(shown, model.table)

    def moved(self, model: Denoiser, x: Tensor, x0: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """From time s to t, as if x_0 were what was estimated."""
        alpha, sigma = (float(f(s)) for f in (model.schedule.alpha, model.schedule.sigma))
        q = posterior(model.schedule, s, t)
        if self.steps == "ddpm":
            return q.on_x * x + q.on_x0 * x0 + q.forward.sqrt() * torch.randn_like(x)
        return ddim(model.schedule, x0, (x - alpha * x0) / sigma, t)

    def process(self):
        return SCHEDULES[self.schedule or self.schedules[0]]()


class BitNet(nn.Module):
    """A network on bits and another estimate of them as channels: of images the UNet."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.image = len(shape) == 3
        doubled = (2 * shape[0], *shape[1:])
        self.net = image_net(doubled, channels=shape[0]) if self.image else Sequence(doubled[0], shape[0])

    def forward(self, x: Tensor, lam: Tensor) -> Tensor:
        return self.net(x, lam if self.image else (7 - lam) / 12.1)
