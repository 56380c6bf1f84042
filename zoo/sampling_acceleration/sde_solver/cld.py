"""CLD: data is diffused through a velocity that alone receives noise, and sampled by symmetric splitting.

Backwards in time the process is (tau = T - t, u = (x, v), s the score in v)

    dx = -(beta / M) v dtau,    dv = (beta x - (beta Gamma / M) v + 2 Gamma beta (s + v / M)) dtau
                                     + sqrt(2 Gamma beta) dw.

SSCS (Algorithm 1) takes the part without the last bracket, which is the forward process with
the sign of v turned, exactly for half a step, the bracket by Euler's rule for a whole one, and the first part
again for half a step. At t_min a step of Euler's rule without its noise ends at 0; the authors spend an
evaluation on it, but x needs no score in it, so that here all go into steps.
"""

from itertools import pairwise

import torch
from torch import Tensor

from bench.diffusion.cld import CLD as Process
from bench.diffusion.cld import AugmentedDenoiser, applied, lower
from bench.method import Method

TURN = torch.tensor([[1.0, 0.0], [0.0, -1.0]], dtype=torch.float64)
SAMPLERS = ("sscs", "em")


class CLD(Method):
    """CLD (SSCS)"""

    paper = "arXiv:2112.07068"
    base = "cld"
    schedules = ("vp",)  # none is read: the process is its own

    sampler: str = "sscs"  # or "em", Euler-Maruyama
    # Times are t_min + (t_max - t_min) (k / n)^stride: 2 is "quadratic striding", with which the paper's best
    # results come (appendix E.2.3), 1 is even, its authors' code's default.
    stride: float = 2.0
    denoise: bool = True  # from t_min to 0 at the end

    def start(
        self, model: AugmentedDenoiser, n: int, generator: torch.Generator, device: str = "cpu"
    ) -> Tensor:
        return model.prior(n, generator, device)

    def sample(self, model: AugmentedDenoiser, u: Tensor, nfe: int) -> Tensor:
        if self.sampler not in SAMPLERS:
            raise ValueError(f"no sampler {self.sampler!r}; there are {', '.join(SAMPLERS)}")
        process = model.process
        ramp = torch.linspace(1, 0, nfe + 1, dtype=torch.float64) ** self.stride
        times = process.t_min + (process.t_max - process.t_min) * ramp
        step = sscs if self.sampler == "sscs" else euler_maruyama
        for s, t in pairwise(times):
            u = step(model, u, s, s - t)
        x, v = u.chunk(2, 1)
        return x - process.t_min * process.beta / process.mass * v if self.denoise else x


def sscs(model: AugmentedDenoiser, u: Tensor, s: Tensor, h: Tensor) -> Tensor:
    u = ornstein_uhlenbeck(model.process, u, h / 2)
    x, v = u.chunk(2, 1)
    u = torch.cat([x, v + h * force(model, u, s)], 1)
    return ornstein_uhlenbeck(model.process, u, h / 2)


def ornstein_uhlenbeck(process: Process, u: Tensor, h: Tensor) -> Tensor:
    """The exact part of a backward step of length h, with its noise."""
    noise = lower(TURN @ process.noise(h) @ TURN)
    return applied(TURN @ process.transition(h) @ TURN, u) + applied(noise, torch.randn_like(u))


def force(model: AugmentedDenoiser, u: Tensor, t: Tensor) -> Tensor:
    """2 Gamma beta (s + v / M)."""
    process = model.process
    score, v = (part.chunk(2, 1)[1] for part in (model(u, t).score, u))
    return 2 * process.friction * process.beta * (score + v / process.mass)


def euler_maruyama(model: AugmentedDenoiser, u: Tensor, s: Tensor, h: Tensor) -> Tensor:
    process = model.process
    x, v = u.chunk(2, 1)
    pull = process.beta * (x - process.friction / process.mass * v) + force(model, u, s)
    noise = (2 * process.friction * process.beta * h).sqrt() * torch.randn_like(v)
    return torch.cat([x - h * process.beta / process.mass * v, v + h * pull + noise], 1)
