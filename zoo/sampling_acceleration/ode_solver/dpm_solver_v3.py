"""DPM-Solver-v3: an exponential integrator with coefficients estimated on the model.

In z = x / alpha the flow is dz/dlambda = -l z - f with f = (1 - l) z - x0, whatever l(lambda) is, one
number a dimension. Over a step from s, what is extrapolated is g = e^{-S} f - B, where S is the integral of
s(lambda) from lambda_s on and B that of e^{-S} b (eq. 8 and 9; L is that of l):

    z_t = e^{-L} (z_s - integral of e^{L + S} (g + B) dlambda).

l makes f depend on z as little as possible, and s and b make g change as little as possible: l is the mean
diagonal of the Jacobian of z - x0 (eq. 58), s and b the regression of df/dlambda along the flow on f (eq.
60, 61), found by forward-mode derivatives on noised data. g is the polynomial in lambda through its last
three values; a corrector of the same order repeats the step with the newest among them (Algorithm 2),
without evaluations of its own. With l = 1 and s = b = 0 it is DPM-Solver++ (appendix A).

A network that is told its time in sines and cosines ripples in lambda, ours with a period of 0.08, and where
the noise is great its ripple is most of df/dlambda. Knots 0.1 apart would sample s at whatever phase they
meet; so what stands at a knot is the statistic of data noised over a little more than that period.
"""

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.diffusion.denoiser import Denoiser, rowwise
from bench.method import Method

PIECES, ROWS = 256, 256  # of the trapezoidal rule over one step; differentiated at once
FEWEST = 64  # noised data at a knot; a budget that has not as many for all has statistics at fewer knots
ROUGHEST = 8  # knots; a budget that has not as many has no statistics


class DPMSolverV3(Method):
    """DPM-Solver-v3"""

    paper = "arXiv:2310.13268"
    # No order is claimed: the tables of statistics are estimates, linear between knots.
    version = 2

    p: int = 3
    spacing: str = "lambda"
    corrector: bool = True  # with EDM's network the paper has it up to 6 evaluations only
    lower_order_final: bool = True  # its authors' code's default; Algorithm 2 does not lower it
    knots: int = 120  # where the statistics are taken, even in lambda; the paper takes 120 to 1200
    spread: float = 0.1  # in lambda, of the data's noise about a knot; the paper has the knot's for all
    points: int = 1024  # noised data at each, where the budget has so many; the paper takes 1024 to 4096

    def build(self, base: Denoiser, data, nfe: int) -> nn.Module:
        return Statistics(base, self.knots)

    @torch.no_grad()
    def train(self, model: nn.Module, base: Denoiser, data, images: int, nfe: int) -> None:
        generator = torch.Generator().manual_seed(0)
        knots = min(len(model.lam), images // min(FEWEST, self.points))
        if knots < ROUGHEST:
            return  # the tables stay DPM-Solver++'s
        points = min(self.points, images // knots)
        chosen = torch.randperm(len(data.train), generator=generator)[:points]
        x0 = data.scale(data.train[chosen.sort().values])
        fitted = model if knots == len(model.lam) else Statistics(base, knots - 1).to(model.lam.device)
        found = [moments(model, lams, x0, generator) for lams in self.places(fitted.lam, len(x0), generator)]
        mean, covariance, k = (torch.stack(part) for part in zip(*found))
        # f = k z - x0 and, as dz/dlambda = x0 - z, df/dlambda = k' z + k (x0 - z) - dx0/dlambda; k = 1 - l
        rate = torch.gradient(k, spacing=(fitted.lam,), dim=0)[0]
        one = torch.ones_like(k)
        f, change = torch.stack([-one, k, 0 * k], 1), torch.stack([k, rate - k, -one], 1)
        with_f = torch.einsum("ja...,jab...->jb...", f, covariance)
        fitted.l.copy_(1 - k)
        # Where f hardly varies, as at great noise, s is undetermined and of no use: it is drawn to 0 there.
        ridge = 1e-6 * base.sigma_data**2
        fitted.s.copy_((with_f * change).sum(1) / ((with_f * f).sum(1) + ridge))
        fitted.b.copy_((change * mean).sum(1) - fitted.s * (f * mean).sum(1))
        if fitted is not model:
            for table, values in zip((model.l, model.s, model.b), fitted.at(model.lam)):
                table.copy_(values)

    def places(self, knots: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """(knots, n) lambdas at which the data of each knot are noised."""
        inside = torch.rand(len(knots), n, dtype=torch.float64, generator=generator).to(knots.device)
        low = (knots - self.spread / 2).clamp(min=knots[0])
        high = (knots + self.spread / 2).clamp(max=knots[-1])
        return low[:, None] + (high - low)[:, None] * inside

    def sample(self, model: nn.Module, x: Tensor, nfe: int) -> Tensor:
        schedule, times = model.base.schedule, model.base.schedule.steps(nfe, self.spacing)
        lam, z = schedule.lam(times), x / schedule.alpha(times[0])
        known = [(lam[0], model.f(z, times[0]))]  # (lambda, g) at the latest times, the latest last
        for i in range(nfe):
            p = min(self.p, i + 1, nfe - i if self.lower_order_final else self.p)
            step, points = model.integrals(lam[i], lam[i + 1], x), known[: -p - 1 : -1]
            ahead = advanced(z, step, points, pseudo=nfe <= 5)  # appendix D.1
            if i == nfe - 1:
                return schedule.alpha(times[-1]) * ahead
            f, scale, bias = model.f(ahead, times[i + 1]), step["scale"], step["bias"]
            if self.corrector and p > 1:
                newest = (lam[i + 1], f / scale - bias)
                ahead = advanced(z, step, [points[0], newest, *points[1:-1]], pseudo=False)
            z = ahead
            # the next step has g from its own start on, where g is f; the corrector leaves f as it is
            known = [*((at, scale * (g + bias)) for at, g in known[1 - self.p :]), (lam[i + 1], f)]


class Statistics(nn.Module):
    """A denoiser with l, s, b (knots + 1, *shape), even in lambda; untrained, they are DPM-Solver++'s."""

    def __init__(self, base: Denoiser, knots: int):
        super().__init__()
        self.base = base
        first, last = (float(base.schedule.lam(t)) for t in (base.schedule.t_max, base.schedule.t_min))
        self.register_buffer("lam", torch.linspace(first, last, knots + 1, dtype=torch.float64))
        for name, value in (("l", 1.0), ("s", 0.0), ("b", 0.0)):
            self.register_buffer(name, torch.full((knots + 1, *base.shape), value, dtype=torch.float64))

    def prior(self, n: int, generator: torch.Generator | None = None, device="cpu") -> Tensor:
        return self.base.prior(n, generator, device)

    def at(self, lam: Tensor) -> list[Tensor]:
        """l, s and b at lambdas (m,), linear between knots: (m, *shape) float64 each."""
        last = len(self.lam) - 1
        place = (lam.to(self.lam.device) - self.lam[0]) / (self.lam[-1] - self.lam[0]) * last
        left = place.long().clamp(0, last - 1)
        weight = (place - left).reshape(-1, *[1] * (self.l.ndim - 1))
        return [table[left].lerp(table[left + 1], weight) for table in (self.l, self.s, self.b)]

    def f(self, z: Tensor, t: Tensor) -> Tensor:
        """(1 - l) z - x0 at z = x / alpha; one evaluation."""
        l = self.at(self.base.schedule.lam(t)[None])[0][0].to(z)
        return (1 - l) * z - self.base(self.base.schedule.alpha(t) * z, t).x0

    def integrals(self, start: Tensor, end: Tensor, x: Tensor) -> dict[str, Tensor]:
        """Of one step: "decay" e^{-L}, "scale" e^S, "bias" B; "drift", the integral of e^{L + S} B; "powers",
        those of e^{L + S} (lambda - start)^j, j = 0 to 3. Each (*shape), of x's precision and device.
        """
        u = (end - start) * torch.linspace(0, 1, PIECES + 1, dtype=torch.float64)
        l, s, b = self.at(start + u)
        u = u.to(l.device).reshape(-1, *[1] * (l.ndim - 1))
        rising = lambda y: torch.cat([0 * y[:1], ((y[1:] + y[:-1]) / 2 * u.diff(dim=0)).cumsum(0)])
        L, S = rising(l), rising(s)
        B, E = rising((-S).exp() * b), (L + S).exp()
        powers = torch.stack([rising(E * u**j)[-1] for j in range(4)])
        ends = {"decay": (-L[-1]).exp(), "scale": S[-1].exp(), "bias": B[-1], "drift": rising(E * B)[-1]}
        return {name: value.to(x) for name, value in (ends | {"powers": powers}).items()}


def moments(model: Statistics, lams: Tensor, x0: Tensor, generator) -> tuple[Tensor, Tensor, Tensor]:
    """Means (3, *shape) and covariances (3, 3, *shape) of x0's prediction, z and the prediction's rate along
    the flow, x0 (N, *shape) being noised at lambdas (N,); and the mean diagonal (*shape) of its Jacobian in
    z. Two derivatives a row.
    """
    predicted = lambda z, lam: model.base.at(z, torch.ones_like(lam), (-lam).exp()).x0
    first, second, diagonal = 0.0, 0.0, 0.0
    for rows, lam in zip(x0.split(ROWS), lams.split(ROWS)):
        probe = (torch.randint(0, 2, rows.shape, generator=generator) * 2 - 1).to(lam.device, rows.dtype)
        noise = torch.randn(rows.shape, generator=generator).to(lam.device)
        z = rows.to(lam.device) + rowwise((-lam).exp(), noise) * noise
        with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels have no forward-mode derivative
            out, column = torch.func.jvp(predicted, (z, lam), (probe, torch.zeros_like(lam)))
            rate = torch.func.jvp(predicted, (z, lam), (out - z, torch.ones_like(lam)))[1]
        features = torch.stack([out, z, rate]).double()
        first = first + features.sum(1)
        second = second + torch.einsum("an...,bn...->ab...", features, features)
        diagonal = diagonal + (probe * column).double().sum(0)
    mean = first / len(x0)
    return mean, second / len(x0) - mean[:, None] * mean[None], diagonal / len(x0)


def advanced(z: Tensor, step: dict[str, Tensor], points: list[tuple[Tensor, Tensor]], pseudo: bool) -> Tensor:
    """z at the step's end for g the polynomial through the points (lambda, g), the start first (eq. 14);
    pseudo: with its coefficient of u^j from the first j + 1 points alone (eq. 15).
    """
    (start, g_s), others = points[0], points[1:]
    total = step["drift"] + step["powers"][0] * g_s
    for j in range(1, len(points)):
        used = others[:j] if pseudo else others
        places = torch.stack([at - start for at, _ in used])
        weights = torch.linalg.inv(torch.stack([places**k for k in range(1, len(used) + 1)], 1))[j - 1]
        total = total + step["powers"][j] * sum(w * (g - g_s) for w, (_, g) in zip(weights, used))
    return step["decay"] * (z - total)
