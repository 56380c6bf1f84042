"""Bounds on the likelihood in the limit of infinitely many steps, by Monte Carlo over noise levels. All in
nats a row, as densities per unit of x on [-1, 1] (see likelihood.py).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from bench.diffusion.denoiser import Denoiser, Prediction
from bench.diffusion.likelihood import divergence, normal_log_prob, per_row, prior_kl, probes_for


def continuous_bound(
    denoiser: Denoiser,
    x0: Tensor,
    rows: int,
    generator: torch.Generator | None = None,
    levels: int | None = None,
    denoise: Callable[[Tensor, Tensor], Prediction] | None = None,
    implicit: bool = False,
) -> dict[str, Tensor]:
    """The variational bound of -log p(x0) with infinitely many steps, term by term; `rows` rows a sample.

    With lambda half the log-SNR the diffusion term is the integral over lambda of E|eps - eps(x_t)|^2, for
    every schedule alike (Kingma et al. 2021, section 5.1; Song et al. 2021, "Maximum likelihood training",
    theorem 3). It is estimated at `rows` levels a sample, one in each of as many equal parts. levels: of data
    that lies on levels, whose probability p(x0 | x at t_min) is then told; else x0 is continuous, and that
    density is the normal round x / alpha. denoise: (x, t) -> Prediction, in the denoiser's stead. implicit:
    |eps - eps(x_t)|^2 by Stein's identity, with the divergence of eps(x_t) and no eps; one vjp a row.
    """
    schedule, denoise = denoiser.schedule, denoise or denoiser
    total = {"prior": prior_kl(schedule, x0), "diffusion": x0.new_zeros(len(x0), dtype=torch.float64)}
    low, high = (float(schedule.lam(t)) for t in (schedule.t_max, schedule.t_min))
    for part in range(rows):
        place = (part + torch.rand(len(x0), generator=generator, dtype=torch.float64)) / rows
        t = schedule.time(low + (high - low) * place)
        eps = torch.randn(x0.shape, generator=generator).to(x0)
        x = denoiser.noised(x0, t, eps)
        if implicit:
            error = stein(denoise, x, t, schedule.sigma(t))
        else:
            error = per_row((eps - denoise(x, t).eps) ** 2)
        total["diffusion"] += error * (high - low) / rows
    eps = torch.randn(x0.shape, generator=generator).to(x0)
    total["reconstruction"] = reconstruction(denoiser, x0, eps, levels)
    return total


def stein(denoise: Callable[[Tensor, Tensor], Prediction], x: Tensor, t: Tensor, sigma: Tensor) -> Tensor:
    """|eps(x)|^2 - 2 sigma div eps(x) + D of each row, whose mean is that of |eps - eps(x)|^2 (as Huang et
    al. 2021, arXiv:2106.02808, have it); the divergence is Hutchinson's.
    """
    value, trace = divergence(lambda y: denoise(y, t).eps, x, "hutchinson", probes_for(x, "hutchinson", 1)[0])
    return per_row(value.square()) - 2 * sigma.to(x.device) * trace + x[0].numel()


def reconstruction(denoiser: Denoiser, x0: Tensor, eps: Tensor, levels: int | None) -> Tensor:
    """-log p(x0 | x) for x = alpha x0 + sigma eps at t_min, no evaluation: of data on levels by the posterior
    over levels, all as likely before (Kingma et al. 2021, eq. 6), by the bin width; else by the normal.
    """
    alpha, sigma = (f(denoiser.schedule.t_min) for f in (denoiser.schedule.alpha, denoiser.schedule.sigma))
    noise = (sigma / alpha).to(x0.device)  # a learned schedule is differentiated here
    seen = x0.double() + noise * eps.double()
    if levels is None:
        return -normal_log_prob(x0, seen, noise**2)
    value = torch.linspace(-1, 1, levels, dtype=torch.float64, device=x0.device)
    energy = -((seen[..., None] - value) ** 2) / (2 * noise**2)
    own = ((x0.double() + 1) * (levels - 1) / 2).round().long()[..., None]
    log_prob = energy.log_softmax(-1).gather(-1, own)[..., 0]
    return -per_row(log_prob - math.log(2 / (levels - 1)))
