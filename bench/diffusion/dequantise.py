"""From data on levels to densities: ways to spread a level over its bin, and the bound each of them costs.

With u = x + noise from q(u | x) inside x's bin, of width w, a density p tells of a level's probability P

    -log P(x) / w^D <= E_q[-log p(u) + log q(u | x) w^D]

(Ho et al. 2019, arXiv:1902.00275), in nats a row as densities per unit of x on [-1, 1] like all of ours.
A dequantiser is called as dequantiser(x, generator) -> (u, log q(u | x) w^D), the second (N,) and 0 where
noise is uniform. A training passes its step's generator: torch's own begins each step on the same numbers.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from bench.diffusion.couplings import Flow
from bench.diffusion.likelihood import normal_log_prob, per_row


def drawn(draw: Callable[..., Tensor], x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Numbers of x's shape by torch.rand or torch.randn, on the CPU where no generator says otherwise."""
    return draw(x.shape, generator=generator, device=generator.device if generator else "cpu")


class Continuous(nn.Module):
    """Data without levels stay as they are."""

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        return x, x.new_zeros(len(x), dtype=torch.float64)


class Uniform(nn.Module):
    """Noise uniform over the bin, no part of which is preferred."""

    def __init__(self, levels: int):
        super().__init__()
        self.half = 1 / (levels - 1)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        u = x + self.half * (2 * drawn(torch.rand, x, generator).to(x) - 1)
        return u, x.new_zeros(len(x), dtype=torch.float64)


class Variational(nn.Module):
    """Noise that a small conditional flow has learned: normal noise through couplings told x, then a sigmoid
    onto the bin. One extra pass a sample.
    """

    def __init__(self, shape: tuple[int, ...], levels: int, couplings: int = 4, width: int = 32):
        super().__init__()
        self.half = 1 / (levels - 1)
        self.flow = Flow(shape, couplings, width, context=shape[0])
        # Where the sigmoid of a normal is most nearly uniform, training starts: there log q w^D is near 0.
        self.log_scale = nn.Parameter(torch.tensor(math.log(1.6)))

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        noise = drawn(torch.randn, x, generator).to(x)
        moved, logdet = self.flow(noise, x)
        moved = moved * self.log_scale.exp()
        u = x + self.half * (2 * torch.sigmoid(moved) - 1)
        slopes = per_row(logsigmoid(moved) + logsigmoid(-moved)) + x[0].numel() * self.log_scale
        return u, normal_log_prob(noise, 0.0, 1.0) - logdet - slopes


class TruncatedNormal(nn.Module):
    """The noise that the process itself has at t_min, cut to the bin: what the network met in training, so
    nothing is fitted (Zheng et al. 2023, arXiv:2305.03935). `deviation`: sigma / alpha at t_min.
    """

    def __init__(self, levels: int, deviation: float):
        super().__init__()
        self.half, self.deviation = 1 / (levels - 1), deviation

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        tau = self.half / self.deviation
        inside = math.erf(tau / math.sqrt(2))
        # log q is replaced by its mean, which is known: minus the entropy of the truncated normal.
        edge = tau * math.exp(-(tau**2) / 2) / (math.sqrt(2 * math.pi) * inside)
        mean = edge - math.log(2 * math.pi * math.e * self.deviation**2) / 2 - math.log(inside)
        place = inside * (2 * drawn(torch.rand, x, generator).double() - 1)
        noise = math.sqrt(2) * torch.special.erfinv(place)
        u = x + self.deviation * noise.to(x).clamp(-tau, tau)
        return u, x.new_full((len(x),), x[0].numel() * (mean + math.log(2 * self.half)), dtype=torch.float64)


def dequantiser(name: str, data, deviation: float = 0.0) -> nn.Module:
    """The dequantiser of that name for `data`: "uniform", "variational" or "truncated_normal", which takes
    the process's `deviation` at t_min. Data without levels need none.
    """
    makers = {
        "uniform": lambda: Uniform(data.levels),
        "variational": lambda: Variational(data.shape, data.levels),
        "truncated_normal": lambda: TruncatedNormal(data.levels, deviation),
    }
    if name not in makers:
        raise ValueError(f"no dequantisation {name!r}; there are {', '.join(makers)}")
    return makers[name]() if data.levels else Continuous()
