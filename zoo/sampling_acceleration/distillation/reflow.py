"""Rectified flow: a velocity along straight lines, retrained on its own couplings to straighten its paths.

A pair (x0, x1) of data and noise is joined by x_t = (1 - t) x0 + t x1, and (eq. 1)

    min over u of E over t |(x1 - x0) - u(x_t, t)|^2.

With independent pairs this is 1-rectified flow. Its ODE dx/dt = u couples each noise with one image; the same
regression on such pairs gives 2-rectified flow, whose paths cross less and which Euler's method follows in
few steps (Algorithm 1). The paper counts time from noise to data, here 0 is data.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from bench.diffusion import training
from bench.diffusion.denoiser import Denoiser, noise_like
from bench.diffusion.distillation import drawn, pairs, student_of
from bench.method import Method


class Reflow(Method):
    """Rectified flow"""

    paper = "arXiv:2209.03003"
    entry = "rectified_flow"
    schedules = ("flow",)
    share = 0.6

    rectifications: int = 2
    pair_steps: int = 50  # of Euler's method; the paper solves by RK45
    images_per_pair: int = 20  # each pair is made once and seen so often

    def build(self, base: Denoiser, data, nfe: int) -> nn.Module:
        return student_of(base, data)

    def train(self, model: Denoiser, base: Denoiser, data, images: int, nfe: int) -> None:
        first = images // 4 if self.rectifications > 1 else images
        self.rectify(model, data, first, None)
        for _ in range(self.rectifications - 1):
            part = (images - first) // (self.rectifications - 1)
            count = max(1, part // self.images_per_pair)
            made = pairs(model, lambda x: self.sample(model, x, self.pair_steps), count)
            self.rectify(model, data, part, made)

    def rectify(self, model: Denoiser, data, images: int, made: tuple[Tensor, Tensor] | None) -> None:
        """Fit the velocity on these pairs of noise and data, or on independent ones."""
        first, last = model.schedule.t_min, model.schedule.t_max

        def loss(x0: Tensor, generator: torch.Generator) -> Tensor:
            if made is None:
                x1 = noise_like(x0, generator)
            else:
                start, x0 = drawn(made, len(x0), generator)
                x1 = start / last  # unit noise: sampling starts at t_max
            t = torch.rand(len(x0), generator=generator, device=generator.device).double().cpu()
            t = first + (last - first) * t
            return ((x1 - x0 - velocity(model, model.noised(x0, t, x1), t)) ** 2).flatten(1).mean(1)

        training.fit(loss, model, data, max(1, images), lr=1e-3, decay=1.0)

    def sample(self, model: Denoiser, x: Tensor, nfe: int) -> Tensor:
        times = torch.linspace(1, 0, nfe + 1, dtype=torch.float64) * model.schedule.t_max
        for s, t in pairwise(times):
            x = x + float(t - s) * velocity(model, x, s)
        return x


def velocity(model: Denoiser, x: Tensor, t: Tensor) -> Tensor:
    """dx/dt of the flow: the expected difference of noise and data."""
    out = model(x, t)
    return out.eps - out.x0
