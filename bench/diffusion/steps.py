"""Step formulas that several plugins share: the exact transitions of a Gaussian process between two of its
times, s > t, the steps of exponential integrators in log-SNR, and linear multistep formulas.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import factorial
from typing import NamedTuple

import torch
from torch import Tensor

from bench.diffusion.denoiser import Denoiser, rowwise
from bench.diffusion.schedule import Schedule


class Posterior(NamedTuple):
    """q(x_t | x_s, x0) = N(on_x x_s + on_x0 x0, variance), and q(x_s | x_t)'s variance `forward` (DDPM's
    beta).
    """

    on_x: Tensor
    on_x0: Tensor
    variance: Tensor
    forward: Tensor


def posterior(schedule: Schedule, s: Tensor, t: Tensor) -> Posterior:
    """The reverse transition from s to t < s given x0 (Ho et al. 2020, eq. 6-7; Kingma et al. 2021
    for any two times).
    """
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
    """The mean of DDIM's step to t: alpha_t x0 + sqrt(sigma_t^2 - variance) eps (Song et al. 2021, eq. 12);
    arrives anywhere, t = 0 too.
    """
    direction = torch.sqrt((schedule.sigma(t) ** 2 - variance).clamp(min=0))
    return schedule.alpha(t) * x0 + direction * eps


def ancestral(
    x: Tensor,
    times: Tensor,
    reverse: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    last_deviation: float | None = None,
) -> Tensor:
    """x at times[-1] = 0 by draws from p(x_t | x_s) = N(reverse(x, s, t)), mean and variance; at 0 the mean.
    `last_deviation`: the most that the noise drawn last may have.
    """
    for s, t in pairwise(times):
        mean, variance = reverse(x, s, t)
        if t == 0:
            return mean
        if last_deviation is not None and t == times[-2]:
            variance = variance.clamp(max=last_deviation**2)
        x = mean + variance.sqrt() * torch.randn_like(x)
    return x


def generalised(denoiser: Denoiser, eta: float) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """DDIM's reverse for `ancestral` (Song et al. 2021, eq. 12 and 16): eta = 0 is deterministic, eta = 1
    DDPM with the posterior variance.
    """

    def reverse(x: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        out = denoiser(x, s)
        variance = eta**2 * posterior(denoiser.schedule, s, t).variance
        return ddim(denoiser.schedule, out.x0, out.eps, t, variance), variance

    return reverse


def clipped(x0: Tensor, bound: float | None) -> Tensor:
    """x0 clipped to [-bound, bound], as DDPM-style samplers do with images; None leaves it alone."""
    return x0 if bound is None else x0.clamp(-bound, bound)


def moment(k: int, h: Tensor) -> Tensor:
    """The integral of e^(h - u) u^k / k! over u from 0 to h, h of either sign: h^(k + 1) phi_{k + 1}(h) of
    the exponential integrators (Hochbruck & Ostermann 2010).
    """
    if k == 0:
        return h.expm1()
    if abs(float(h)) < 1:  # the recursion would subtract nearly equal numbers
        return sum(h ** (k + 1 + j) / float(factorial(k + 1 + j)) for j in range(18))
    return moment(k - 1, h) - h**k / factorial(k)


def by_eps(schedule: Schedule, x: Tensor, s: Tensor, t: Tensor, *derivatives: Tensor) -> Tensor:
    """x at t > 0 from x at s, if eps were the polynomial in lambda that has these derivatives at s, the
    zeroth first (Lu et al. 2022, arXiv:2206.00927, eq. 3.6). With eps alone it is DDIM's step.
    """
    h = schedule.lam(t) - schedule.lam(s)
    x = schedule.alpha(t) / schedule.alpha(s) * x
    for k, derivative in enumerate(derivatives):
        x = x - schedule.sigma(t) * moment(k, h) * derivative
    return x


def by_x0(schedule: Schedule, x: Tensor, s: Tensor, t: Tensor, *derivatives: Tensor) -> Tensor:
    """The same if x0 were the polynomial (Lu et al. 2022, arXiv:2211.01095)."""
    h = schedule.lam(t) - schedule.lam(s)
    x = schedule.sigma(t) / schedule.sigma(s) * x
    for k, derivative in enumerate(derivatives):
        x = x + (-1) ** (k + 1) * schedule.alpha(t) * moment(k, -h) * derivative
    return x


ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def adams_bashforth(slopes: Sequence[Tensor]) -> Tensor:
    """The mean slope over the next of even steps, from the last one to four slopes, the latest last (Hairer,
    Norsett & Wanner 1993, III.1).
    """
    return sum(c * slope for c, slope in zip(ADAMS_BASHFORTH[len(slopes) - 1], reversed(slopes)))


def heun(denoiser: Denoiser, z: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """Heun's step of the probability flow from s to t in z = x / alpha against r = sigma / alpha, where its
    slope is eps (Karras et al. 2022, Algorithm 1). Two evaluations; one, Euler's, where t is 0.
    """
    alpha, sigma = denoiser.schedule.alpha, denoiser.schedule.sigma
    h = sigma(t) / alpha(t) - sigma(s) / alpha(s)
    slope = denoiser(alpha(s) * z, s).eps
    ahead = z + h * slope
    if t == 0:
        return ahead
    return z + h * (slope + denoiser(alpha(t) * ahead, t).eps) / 2


def reverse_diffusion(denoiser: Denoiser, x: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the reverse-diffusion predictor's step from s to t (Song et al. 2021, eq. 46):
    where x_s = ratio x_t + sqrt(v) noise forwards, (2 - ratio) x + v score and v backwards. Their Algorithms
    2 and 3 are it for the VE and the VP chain.
    """
    alpha = denoiser.schedule.alpha
    v = posterior(denoiser.schedule, s, t).forward
    return (2 - alpha(s) / alpha(t)) * x + v * denoiser(x, s).score, v


def langevin(
    denoiser: Denoiser, x: Tensor, s: Tensor, t: Tensor, snr: float, per_sample: bool = False
) -> Tensor:
    """One Langevin step of the density at s, before the predictor's step to t (Song et al. 2021, Algorithms 4
    and 5). Its size is 2 (alpha_s / alpha_t)^2 (snr |noise| / |score|)^2, the lengths being means over the
    batch, or each sample's own.
    """
    score, noise = denoiser(x, s).score, torch.randn_like(x)
    lengths = [a.flatten(1).norm(dim=1) for a in (noise, score)]
    of_noise, of_score = lengths if per_sample else [length.mean() for length in lengths]
    shrink = float(denoiser.schedule.alpha(s) / denoiser.schedule.alpha(t))
    step = rowwise(2 * (shrink * snr * of_noise / of_score) ** 2, x)
    return x + step * score + (2 * step).sqrt() * noise
