"""Gaussian forward processes: x_t = alpha(t) x0 + sigma(t) eps, with t = 0 at the data.

A process is its two functions alpha and sigma. The half log-SNR lambda(t) = log(alpha / sigma), its inverse,
grids of times, and the coefficients of the SDE dx = f(t) x dt + g(t) dw (Song et al. 2021, arXiv:2011.13456;
in terms of lambda: Kingma et al. 2021) follow from them. Times are float64 scalars or vectors; the tensors
they multiply keep their own dtype.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.diffusion.grids import STRIDES, resampled, strided

SPACINGS = ("lambda", "time", "quadratic", "karras")


def at(t: float | Tensor) -> Tensor:
    """A time as a float64 tensor, on the device it came from."""
    return torch.as_tensor(t, dtype=torch.float64)


class Schedule(ABC):
    """A pair of functions alpha, sigma; everything else about the process follows from them."""

    t_min: float
    t_max: float

    @abstractmethod
    def alpha(self, t: float | Tensor) -> Tensor:
        """Signal scale of the marginal at time t."""

    @abstractmethod
    def sigma(self, t: float | Tensor) -> Tensor:
        """Noise scale of the marginal at time t."""

    def lam(self, t: float | Tensor) -> Tensor:
        """Half log-SNR, log(alpha / sigma); falls as t grows, infinite at t = 0."""
        return torch.log(self.alpha(t)) - torch.log(self.sigma(t))

    def time(self, lam: float | Tensor) -> Tensor:
        """The time at which the half log-SNR is `lam`, by bisection between t_min and t_max (clipped to
        them).
        """
        lam = torch.as_tensor(lam, dtype=torch.float64)
        low = torch.full_like(lam, self.t_min)
        high = torch.full_like(lam, self.t_max)
        # Bisection in log t: t_min may be eight orders of magnitude below t_max.
        low, high = low.log(), high.log()
        for _ in range(60):
            middle = (low + high) / 2
            later = self.lam(middle.exp()) > lam
            low, high = torch.where(later, middle, low), torch.where(later, high, middle)
        return ((low + high) / 2).exp().clamp(self.t_min, self.t_max)

    def drift(self, t: float | Tensor) -> Tensor:
        """f(t) of dx = f x dt + g dw: the slope of log alpha."""
        return slope(lambda s: torch.log(self.alpha(s)), t)

    def diffusion(self, t: float | Tensor) -> Tensor:
        """g(t) of dx = f x dt + g dw: g^2 = -2 sigma^2 dlambda/dt."""
        return torch.sqrt(-2 * self.sigma(t) ** 2 * slope(self.lam, t))

    def narrowed(self, known: tuple[float, float]) -> "Schedule":
        """This schedule between the half log-SNRs `known` = (lowest, highest); itself where it already lies
        between them.
        """
        lowest, highest = known
        start, end = float(self.lam(self.t_max)), float(self.lam(self.t_min))
        if start >= lowest - 1e-9 and end <= highest + 1e-9:
            return self
        narrow = copy.copy(self)
        narrow.t_max = self.t_max if start >= lowest else float(self.time(lowest))
        narrow.t_min = self.t_min if end <= highest else float(self.time(highest))
        return narrow

    def stopped(self, share: float) -> "Schedule":
        """This schedule stopped at a share of its time, where data are not yet all noise."""
        short = copy.copy(self)
        short.t_max = share * self.t_max
        return short

    def begun(self, t_min: float) -> "Schedule":
        """This schedule begun at t_min, or later where it does not reach down to it."""
        late = copy.copy(self)
        late.t_min = max(t_min, self.t_min)
        return late

    def steps(self, n: int, spacing: str | Sequence[float] | Tensor = "lambda", end: str = "t_min") -> Tensor:
        """n + 1 strictly decreasing times from t_max, float64.

        `spacing`: even in "lambda" (DPM-Solver), in "time" (DDPM), in the root of time ("quadratic", DDIM)
        or in the seventh root of sigma/alpha ("karras", EDM eq. 5), or a tensor of half log-SNRs, which is
        resampled by its own spacing to n + 1 points. `end`: "t_min" is the last time; with "zero" the n
        times end at t_min and time 0, where sigma is 0, follows (EDM's Algorithm 1).
        """
        if n < 1:
            raise ValueError(f"a grid needs at least one step, not {n}")
        if end not in ("t_min", "zero"):
            raise ValueError(f"a grid ends at 't_min' or at 'zero', not at {end!r}")
        count = n + 1 if end == "t_min" else n
        ramp = (
            torch.linspace(0, 1, count, dtype=torch.float64)
            if count > 1
            else torch.zeros(1, dtype=torch.float64)
        )
        if not isinstance(spacing, str):
            times = self.time(resampled(torch.as_tensor(spacing, dtype=torch.float64), count))
        elif spacing == "lambda":
            lam = [float(self.lam(self.t_max)), float(self.lam(self.t_min))]
            times = self.time(lam[0] + ramp * (lam[1] - lam[0]))
        elif spacing == "time":
            times = self.t_max + ramp * (self.t_min - self.t_max)
        elif spacing == "quadratic":
            times = (self.t_max**0.5 + ramp * (self.t_min**0.5 - self.t_max**0.5)) ** 2
        elif spacing == "karras":
            r = [float(self.sigma(t) / self.alpha(t)) ** (1 / 7) for t in (self.t_max, self.t_min)]
            times = self.time(-7 * torch.log(r[0] + ramp * (r[1] - r[0])))
        else:
            raise ValueError(f"no spacing {spacing!r}; there are {', '.join(SPACINGS)}")
        times[0] = self.t_max
        if end == "zero":
            return torch.cat([times, times.new_zeros(1)])
        times[-1] = self.t_min
        return times


def slope(f: Callable[[Tensor], Tensor], t: float | Tensor) -> Tensor:
    """df/dt at t, by forward-mode differentiation; elementwise."""
    t = at(t)
    return torch.func.jvp(f, (t,), (torch.ones_like(t),))[1]


class VP(Schedule):
    """Variance preserving with linear beta (Song et al. 2021, eq. 11 and 33): log alpha = -t^2 (beta_1 -
    beta_0)/4 - t beta_0/2.
    """

    def __init__(self, beta_0: float = 0.1, beta_1: float = 20.0, t_min: float = 1e-3):
        self.beta_0, self.beta_1, self.t_min, self.t_max = beta_0, beta_1, t_min, 1.0

    def log_alpha(self, t: Tensor) -> Tensor:
        return -(t**2) * (self.beta_1 - self.beta_0) / 4 - t * self.beta_0 / 2

    def alpha(self, t: float | Tensor) -> Tensor:
        return torch.exp(self.log_alpha(at(t)))

    def sigma(self, t: float | Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(2 * self.log_alpha(at(t))))


class SubVP(VP):
    """Sub-variance preserving (Song et al. 2021, eq. 12 and 34): VP's alpha with sigma = 1 - alpha^2."""

    def sigma(self, t: float | Tensor) -> Tensor:
        return -torch.expm1(2 * self.log_alpha(at(t)))


class VPCosine(Schedule):
    """The cosine schedule (Nichol & Dhariwal 2021, eq. 17), in continuous time: alpha = cos(pi/2 (t + s)/(1
    + s)) / alpha(0).
    """

    def __init__(self, s: float = 0.008, t_min: float = 1e-3):
        self.s, self.t_min = s, t_min
        self.t_max = 1 - 1e-4  # alpha is 0 at t = 1; what the network knows ends it earlier

    def angle(self, t: float | Tensor) -> Tensor:
        return torch.pi / 2 * (at(t) + self.s) / (1 + self.s)

    def alpha(self, t: float | Tensor) -> Tensor:
        start = self.angle(0.0)
        return torch.cos(self.angle(t)) / torch.cos(start)

    def sigma(self, t: float | Tensor) -> Tensor:
        # sin^2 a - sin^2 b = sin(a + b) sin(a - b): no cancellation near t = 0.
        angle, start = self.angle(t), self.angle(0.0)
        return torch.sqrt(torch.sin(angle + start) * torch.sin(angle - start)) / torch.cos(start)


class VE(Schedule):
    """Variance exploding (Song et al. 2021, eq. 30): alpha = 1, sigma geometric between sigma_min and
    sigma_max.
    """

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0, t_min: float = 1e-5):
        self.sigma_min, self.sigma_max, self.t_min, self.t_max = sigma_min, sigma_max, t_min, 1.0

    def alpha(self, t: float | Tensor) -> Tensor:
        return torch.ones_like(at(t))

    def sigma(self, t: float | Tensor) -> Tensor:
        t = at(t)
        # Time 0, where a grid that ends at "zero" ends, is clean data; just above it the noise is sigma_min.
        return torch.where(
            t > 0, self.sigma_min * (self.sigma_max / self.sigma_min) ** t, torch.zeros_like(t)
        )


class EDM(Schedule):
    """Karras et al. 2022: alpha = 1, sigma = t."""

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0):
        self.t_min, self.t_max = sigma_min, sigma_max

    def alpha(self, t: float | Tensor) -> Tensor:
        return torch.ones_like(at(t))

    def sigma(self, t: float | Tensor) -> Tensor:
        return at(t).clone()


class Flow(Schedule):
    """The straight path of flow matching and rectified flow (Liu et al. 2022): alpha = 1 - t, sigma = t."""

    def __init__(self, t_min: float = 1e-3, t_max: float = 1 - 1e-4):
        self.t_min, self.t_max = t_min, t_max

    def alpha(self, t: float | Tensor) -> Tensor:
        return 1 - at(t)

    def sigma(self, t: float | Tensor) -> Tensor:
        return at(t).clone()


class Table(Schedule):
    """A discrete process given by its bar-alpha_1 .. bar-alpha_N (our alpha^2), log-linear between them; t =
    n / N is its step n.

    offset, last: of `strided`, diffusers' steps_offset and, where its set_alpha_to_one is false, 1.
    """

    def __init__(self, alpha_bar: Sequence[float] | Tensor, offset: int = 0, last: int = 0):
        alpha_bar = torch.as_tensor(alpha_bar, dtype=torch.float64)
        if alpha_bar.ndim != 1 or not bool(
            ((alpha_bar > 0) & (alpha_bar < 1)).all() and (alpha_bar.diff() < 0).all()
        ):
            raise ValueError("a table's bar-alpha must be one falling list of numbers between 0 and 1")
        if offset < 0:
            raise ValueError(f"steps_offset is {offset}")
        self.n, self.offset, self.last = len(alpha_bar), offset, last
        self.log_alpha_bar = torch.cat([alpha_bar.new_zeros(1), alpha_bar.log()])
        self.t_min, self.t_max = 1 / self.n, 1.0

    def steps(self, n: int, spacing: str | Sequence[float] | Tensor = "lambda", end: str = "t_min") -> Tensor:
        """As for every schedule, and besides at whole steps as diffusers chooses them: see `strided`."""
        if isinstance(spacing, str) and spacing in STRIDES:
            return strided(self.n, n, spacing, end, self.offset, self.last)
        return super().steps(n, spacing, end)

    def log_alpha(self, t: float | Tensor) -> Tensor:
        place = at(t).clamp(0, 1) * self.n
        knots = self.log_alpha_bar.to(place.device)
        left = place.detach().long().clamp(max=self.n - 1)
        return (knots[left] + (place - left) * (knots[left + 1] - knots[left])) / 2

    def alpha(self, t: float | Tensor) -> Tensor:
        return torch.exp(self.log_alpha(t))

    def sigma(self, t: float | Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(2 * self.log_alpha(t)))


def ddpm_betas(n: int = 1000, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """DDPM's linear betas (Ho et al. 2020, section 4), float64."""
    return torch.linspace(first, last, n, dtype=torch.float64)


def ddpm_table(n: int = 1000) -> Table:
    """DDPM's own discrete process."""
    return Table(torch.cumprod(1 - ddpm_betas(n), 0))


def linear_table(n: int = 1000) -> Table:
    """DDPM's process in n steps, the betas scaled so that it ends with as little signal (Nichol & Dhariwal
    2021, whose code does so for 4000).
    """
    return Table(torch.cumprod(1 - ddpm_betas(n, 0.1 / n, 20 / n), 0))


def cosine_table(n: int = 4000, s: float = 0.008) -> Table:
    """The cosine schedule in n discrete steps (Nichol & Dhariwal 2021, eq. 17), no beta above 0.999."""
    alpha_bar = VPCosine(s).alpha(torch.arange(n + 1, dtype=torch.float64) / n) ** 2
    betas = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
    return Table(torch.cumprod(1 - betas, 0))


SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "vp": VP,
    "vp_cosine": VPCosine,
    "subvp": SubVP,
    "ve": VE,
    "edm": EDM,
    "flow": Flow,
    "ddpm": ddpm_table,
}
