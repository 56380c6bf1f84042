"""Step formulas that several plugins share: the exact transitions of a Gaussian process between two of its times, s > t."""

from typing import NamedTuple

import torch
from torch import Tensor

from bench.diffusion.schedule import Schedule


class Posterior(NamedTuple):
    """q(x_t | x_s, x0) = N(on_x x_s + on_x0 x0, variance), and q(x_s | x_t)'s variance `forward` (DDPM's beta)."""

    on_x: Tensor
    on_x0: Tensor
    variance: Tensor
    forward: Tensor


def posterior(schedule: Schedule, s: Tensor, t: Tensor) -> Posterior:
    """The reverse transition from s to t < s given x0 (Ho et al. 2020, eq. 6-7; Kingma et al. 2021, eq. 25-27 for any two times)."""
    alpha_s, alpha_t, var_s, var_t = (
        schedule.alpha(s),
        schedule.alpha(t),
        schedule.sigma(s) ** 2,
        schedule.sigma(t) ** 2,
    )
    ratio = alpha_s / alpha_t
    # 1 - e^{2 (lambda_s - lambda_t)} without cancellation; it is 1 where t is 0.
    share = -torch.expm1(2 * (schedule.lam(s) - schedule.lam(t)))
    forward = var_s * share
    return Posterior(ratio * var_t / var_s, alpha_t * share, forward * var_t / var_s, forward)


def ddim(schedule: Schedule, x0: Tensor, eps: Tensor, t: Tensor, variance: Tensor | float = 0.0) -> Tensor:
    """The mean of DDIM's step to t: alpha_t x0 + sqrt(sigma_t^2 - variance) eps (Song et al. 2021, eq. 12); arrives anywhere, t = 0 too."""
    direction = torch.sqrt((schedule.sigma(t) ** 2 - variance).clamp(min=0))
    return schedule.alpha(t) * x0 + direction * eps


def clipped(x0: Tensor, bound: float | None) -> Tensor:
    """x0 clipped to [-bound, bound], as DDPM-style samplers do with images; None leaves it alone."""
    return x0 if bound is None else x0.clamp(-bound, bound)
