"""Likelihood tools: the flow's density by the instantaneous change of variables, and the terms of K-step
bounds. All in nats a row.

Densities are per unit of x on [-1, 1]. For data of L levels, a level's probability divided by its bin width
2/(L-1) is such a density, so that both kinds turn into bits/dim by the one formula of
bench.metrics.likelihood.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.diffusion.denoiser import Denoiser, rowwise
from bench.diffusion.schedule import Schedule
from bench.diffusion.steps import posterior

TRACES = ("exact", "hutchinson", "hutch++")


def per_row(x: Tensor) -> Tensor:
    """Sum over all but the first dimension, in float64."""
    return x.double().flatten(1).sum(1)


def normal_log_prob(x: Tensor, mean: Tensor | float, variance: Tensor | float) -> Tensor:
    """log N(x; mean, variance I) of each row."""
    variance = torch.as_tensor(variance, dtype=torch.float64, device=x.device)
    scaled = per_row((x.double() - mean) ** 2 / variance)
    dims = x[0].numel()
    log_det = (
        dims * torch.log(variance) if variance.ndim == 0 else per_row(torch.log(variance).expand(x.shape))
    )
    return -(scaled + log_det + dims * math.log(2 * math.pi)) / 2


def bin_log_density(x: Tensor, mean: Tensor, variance: Tensor | float, levels: int) -> Tensor:
    """log of the normal's probability of x's bin over the bin's width; the end bins are open (Ho et al.
    2020, eq. 13).
    """
    half = 1 / (levels - 1)
    deviation = torch.as_tensor(variance, dtype=torch.float64, device=x.device).sqrt()
    x, mean = x.double(), mean.double()
    upper, lower = (x - mean + half) / deviation, (x - mean - half) / deviation
    upper = torch.where(x > 1 - half, torch.inf, upper)
    lower = torch.where(x < -1 + half, -torch.inf, lower)
    # In the upper tail the difference of two numbers near 1 is lost; by symmetry it is taken in the lower.
    flip = lower > 0
    upper, lower = torch.where(flip, -lower, upper), torch.where(flip, -upper, lower)
    high, low = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    log_prob = high + torch.log(-torch.expm1((low - high).clamp(max=-1e-30)))
    return per_row(log_prob - math.log(2 * half))


def normal_kl(
    mean_q: Tensor, variance_q: Tensor | float, mean_p: Tensor, variance_p: Tensor | float
) -> Tensor:
    """KL(N(mean_q, variance_q) || N(mean_p, variance_p)) of each row; variances: scalars or of x's shape."""
    variance_q = torch.as_tensor(variance_q, dtype=torch.float64, device=mean_q.device)
    variance_p = torch.as_tensor(variance_p, dtype=torch.float64, device=mean_q.device)
    ratio = variance_q / variance_p
    gap = (mean_q.double() - mean_p.double()) ** 2 / variance_p
    return per_row((gap + ratio - 1 - torch.log(ratio)).expand(mean_q.shape)) / 2


def prior_kl(schedule: Schedule, x0: Tensor) -> Tensor:
    """KL(q(x_T | x0) || N(0, sigma_T^2 I)): what the start of sampling gets wrong."""
    alpha, sigma = schedule.alpha(schedule.t_max), schedule.sigma(schedule.t_max)
    return normal_kl(alpha * x0.double(), sigma**2, torch.zeros_like(x0), sigma**2)


def step_bound(
    denoiser: Denoiser,
    x0: Tensor,
    times: Tensor,
    mean_and_variance: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """The K-step variational bound of -log p(x0) (Ho et al. 2020, eq. 5), term by term; K = len(times) - 1
    rows a sample.

    times: falling, the last one 0. mean_and_variance(x_s, s, t): the model's reverse step p(x_t | x_s). Each
    term is estimated with one draw of x_s from q(x_s | x0). The last step's term is the bin's probability
    where the data has levels, else the normal's density.
    """
    schedule = denoiser.schedule
    total = {"prior": prior_kl(schedule, x0), "diffusion": x0.new_zeros(len(x0), dtype=torch.float64)}
    for s, t in pairwise(times):
        noise = torch.randn(x0.shape, generator=generator).to(x0)
        x = denoiser.noised(x0, s, noise)
        mean, variance = mean_and_variance(x, s, t)
        if t > 0:
            q = posterior(schedule, s, t)
            total["diffusion"] += normal_kl(
                q.on_x * x.double() + q.on_x0 * x0.double(), q.variance, mean, variance
            )
        elif denoiser.levels:
            total["reconstruction"] = -bin_log_density(x0, mean, variance, denoiser.levels)
        else:
            total["reconstruction"] = -normal_log_prob(x0, mean.double(), variance)
    return total


class Jacobian:
    """The Jacobian of f at z as products with vectors, row by row: with its transpose by one evaluation and a
    cotangent each (mode "reverse"), with itself by a tangent and an evaluation each ("forward").

    `value` is f(z), known after the first product where the mode is forward.
    """

    def __init__(self, f: Callable[[Tensor], Tensor], z: Tensor, mode: str = "reverse"):
        self.f, self.mode = f, mode
        with torch.enable_grad():
            self.z = z if mode == "forward" else z.detach().requires_grad_()
            self.value = None if mode == "forward" else f(self.z)

    def __call__(self, v: Tensor) -> Tensor:
        if self.mode == "forward":
            with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels have no forward-mode derivative
                self.value, product = torch.func.jvp(self.f, (self.z,), (v,))
            return product
        return torch.autograd.grad(self.value, self.z, v, retain_graph=True)[0]


def traces(
    f: Callable[[Tensor], Tensor], z: Tensor, trace: str, probes: Tensor | None, mode: str = "reverse"
) -> tuple[Tensor, Tensor]:
    """f(z) and (M, N) estimates of the trace of its Jacobian, row by row, whose mean is to be taken.

    "exact" by D derivatives, one number; "hutchinson" by one for each of the probes (P, N, ...); "hutch++"
    (Meyer et al. 2021, arXiv:2010.09649) by P = 3k of them: exactly on what k products span, and
    by k probes on the rest.
    """
    if trace not in TRACES:
        raise ValueError(f"no trace {trace!r}; there are {', '.join(TRACES)}")
    jacobian, rest = Jacobian(f, z, mode), probes
    basis = units(z) if trace == "exact" else ()
    if trace == "hutch++":
        basis = sketched(jacobian, probes)
        rest = [outside(g, basis) for g in probes[2 * len(probes) // 3 :]]
    known = z.new_zeros(len(z), dtype=torch.float64)
    for q in basis:
        known = known + per_row(jacobian(q) * q)
    found = known[None] if trace == "exact" else torch.stack([known + per_row(jacobian(g) * g) for g in rest])
    return jacobian.value.detach(), found


def sketched(jacobian: Jacobian, probes: Tensor) -> Tensor:
    """(k, N, ...), orthonormal in each row: what the Jacobian makes of the first third of the probes."""
    seen = torch.stack([jacobian(s).flatten(1) for s in probes[: len(probes) // 3]], 2)
    basis = torch.linalg.qr(seen)[0]
    return basis.permute(2, 0, 1).reshape(-1, *probes.shape[1:])


def outside(g: Tensor, basis: Tensor) -> Tensor:
    """What of g (N, ...) is orthogonal to the basis (k, N, ...) in each row."""
    for q in basis:
        g = g - rowwise((g * q).flatten(1).sum(1), g) * q
    return g


def probes_for(x: Tensor, trace: str, count: int, generator: torch.Generator | None = None) -> Tensor | None:
    """Rademacher probes (count, *x.shape), of which "hutch++" wants three or a multiple, "exact" none."""
    if trace == "exact":
        return None
    if count < 1 or (trace == "hutch++" and count % 3):
        raise ValueError(f"{trace} takes {'3, 6, 9, ...' if trace == 'hutch++' else '1, 2, ...'} probes")
    signs = [torch.randint(0, 2, x.shape, generator=generator) * 2 - 1 for _ in range(count)]
    return torch.stack(signs).to(x)


def divergence(
    f: Callable[[Tensor], Tensor], z: Tensor, trace: str, probe: Tensor | None = None, mode: str = "reverse"
) -> tuple[Tensor, Tensor]:
    """f(z) and the trace of its Jacobian, row by row; "hutchinson" by one probe of z's shape."""
    value, found = traces(f, z, trace, None if probe is None else probe[None], mode)
    return value, found.mean(0)


def units(z: Tensor) -> list[Tensor]:
    """The D unit vectors, each for every row."""
    basis = torch.eye(z[0].numel(), dtype=z.dtype, device=z.device)
    return [unit.view(1, *z.shape[1:]).expand_as(z) for unit in basis]


def drift(denoiser: Denoiser, z: Tensor, u: Tensor) -> Tensor:
    """dz/du of the probability flow in z = x / alpha against u = log(sigma / alpha): z - x0, one ODE for
    every schedule.
    """
    r = torch.exp(u)
    return z - denoiser.at(z, torch.ones_like(r), r).x0


def transported(
    slope: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], z: Tensor, grid: Tensor
) -> tuple[Tensor, Tensor]:
    """Where the flow takes z over the given values of u, and the integral of its divergence (N,), by the
    classical Runge-Kutta method. slope: (z, u) -> dz/du and its divergence, or (M, N) estimates of it; four
    times a step.
    """
    change = z.new_zeros(len(z), dtype=torch.float64)
    for u, u_next in pairwise(grid):
        h = float(u_next - u)
        k1, d1 = slope(z, u)
        k2, d2 = slope(z + h / 2 * k1, u + h / 2)
        k3, d3 = slope(z + h / 2 * k2, u + h / 2)
        k4, d4 = slope(z + h * k3, u_next)
        z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        change = change + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
    return z, change


def flow_nll(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    trace: str = "hutchinson",
    generator: torch.Generator | None = None,
) -> Tensor:
    """-log p(x) in nats by the probability flow (Song et al. 2021, app. D.2), classical Runge-Kutta over the
    given rising times; the mean of `flow_estimates` with as few probes as the trace takes.
    """
    probes = 3 if trace == "hutch++" else 1
    return flow_estimates(denoiser, x, times, trace, probes, generator).mean(0)


def flow_estimates(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    trace: str = "hutchinson",
    count: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """(M, N): independent estimates of -log p(x) along one trajectory, one for each of Hutchinson's `count`
    probes or of the last third of Hutch++'s; one where the trace is exact.

    x is taken to be z = x_t / alpha_t at times[0]: what is found is the density of data with that much noise
    (the paper takes it to be x_t itself, which adds the shrinking by alpha_t to the truncation). 4
    (len(times) - 1) rows a sample; the derivatives are the counter's vjps.
    """
    schedule = denoiser.schedule
    grid = -schedule.lam(times)
    probes = probes_for(x, trace, count, generator)

    def slope(z: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        return traces(lambda y: drift(denoiser, y, u), z, trace, probes)

    z, change = transported(slope, x, grid)
    alpha, sigma = schedule.alpha(times[-1]), schedule.sigma(times[-1])
    log_prior = normal_log_prob(rowwise(alpha, x) * z, 0.0, sigma**2) + x[0].numel() * torch.log(alpha)
    return -(log_prior + change)
