"""What only exact data allows: how far samples lie from the converged solution that starts from the same
noise.
"""

import hashlib
from itertools import pairwise

import torch
from torch import Tensor

from bench.data import Data
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.likelihood import drift
from bench.metrics.computed import cached

STEPS = 128  # Runge-Kutta steps of order 4 over the whole schedule; four rows each, none of them counted


def converged(denoiser: Denoiser, x: Tensor) -> Tensor:
    """The probability flow's solution at t_min from x at t_max, in float64 arithmetic on the network's own
    precision.
    """
    schedule = denoiser.schedule
    grid = -schedule.lam(schedule.steps(STEPS, "lambda"))
    z = x / float(schedule.alpha(schedule.t_max))
    for u, u_next in pairwise(grid):
        h = float(u_next - u)
        k1 = drift(denoiser, z, u)
        k2 = drift(denoiser, z + h / 2 * k1, u + h / 2)
        k3 = drift(denoiser, z + h / 2 * k2, u + h / 2)
        k4 = drift(denoiser, z + h * k3, u_next)
        z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return z * float(schedule.alpha(schedule.t_min))


def distances(
    denoiser: Denoiser, x: Tensor, samples: Tensor, data: Data, base_id: str = ""
) -> dict[str, Tensor]:
    """Distance of each sample to the flow's end, and to the denoised mean there: where a method may end.

    The solutions are kept by what they depend on, the start, the schedule and the base: methods share them.
    """
    x = x[: len(samples)]
    schedule = denoiser.schedule
    ends = [float(f(t)) for f in (schedule.alpha, schedule.sigma) for t in (schedule.t_max, schedule.t_min)]
    start = hashlib.sha256(x.cpu().contiguous().numpy().tobytes()).hexdigest()

    def compute() -> dict[str, Tensor]:
        with torch.no_grad():
            end = converged(denoiser, x)
            return {"end": end.cpu(), "denoised": denoiser(end, schedule.t_min).x0.cpu()}

    exact = base_id in ("", f"exact:{data.fingerprint[:16]}")
    of = (data.fingerprint, start, repr(ends), *(() if exact else (base_id,)))
    found = cached("converged", of, compute)
    return {f"distance/{name}": gap(samples, target) for name, target in found.items()}


def gap(samples: Tensor, target: Tensor) -> Tensor:
    """The root mean square over dimensions, one a row."""
    return ((samples - target).double() ** 2).flatten(1).mean(1).sqrt()
