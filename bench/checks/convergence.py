"""Does a sampler come to the truth, and at the order it claims?"""

import math
from functools import lru_cache

import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from bench.checks import Skip, Wrong
from bench.checks.subject import Asked, Subject, again, drawn, exact, perfect, start
from bench.diffusion.likelihood import drift
from bench.diffusion.training import seeded
from bench.metrics.ngrams import runs

STARTS = 16  # solutions followed for the order
NEAR = 0.25  # of the claimed order
FLOOR = 1e-10  # errors below are rounding
SETTLED = 0.03  # slopes of two doublings that differ by less are one
BUDGETS = (48, 96, 192, 384, 768, 1536, 3072)  # multiples of 2, 3 and 4: singlestep methods spend all of each


@lru_cache
def flow_end(schedule: str, n: int = STARTS) -> tuple[Tensor, Tensor]:
    """Where the probability flow from seed 0's start is at t_min, and the denoised mean there; float64."""
    base = perfect("vector", schedule, torch.float64)
    first, last = base.schedule.t_max, base.schedule.t_min
    z = base.prior(n, seeded(0, 0)).double() / base.schedule.alpha(first)

    def slope(u, z):
        with torch.no_grad():
            return drift(base, torch.from_numpy(z).reshape(n, -1), torch.tensor(u).double()).flatten().numpy()

    span = [-float(base.schedule.lam(t)) for t in (first, last)]
    found = solve_ivp(slope, span, z.flatten().numpy(), method="DOP853", rtol=1e-11, atol=1e-13)
    end = torch.from_numpy(found.y[:, -1]).reshape(n, -1) * base.schedule.alpha(last)
    with torch.no_grad():
        return end, base(end, last).x0


def errors(asked: Asked, schedule: str, nfe: int, x: Tensor) -> Tensor:
    """(2, n): each sample's distance to the flow's end and to its denoised mean."""
    samples = drawn(asked, nfe, x=x).samples
    targets = torch.stack(flow_end(schedule, len(x)))
    return (samples.double() - targets).square().mean(-1).sqrt()


def order(subject: Subject) -> str:
    """The order it claims is the one measured, under each schedule it claims it for."""
    claims = subject.cls.order
    subject.needs("sample")
    if claims is None:
        raise Skip("it claims no order")
    if "vector" not in subject.kinds:
        raise Skip("its order is measured on vectors, which it is not for")
    if not isinstance(claims, dict):
        claims = dict.fromkeys(subject.schedules, claims)
    measured = {}
    for schedule, claim in claims.items():
        if schedule not in subject.schedules:
            raise Wrong(f"it claims an order under {schedule}, which is none of its schedules.")
        measured[schedule] = slope(subject, schedule)
        if abs(measured[schedule] - claim) > NEAR:
            raise Wrong(
                f"it claims order {claim} and has {measured[schedule]:.2f} under {schedule}: say so, or mend."
            )
    return ", ".join(f"{value:.2f} under {name}" for name, value in measured.items())


def slope(subject: Subject, schedule: str) -> float:
    """The order measured: how fast the samples of n and of 2n evaluations approach each other as n doubles.

    The median sample's slope, at the first doubling where it has settled, or the last before rounding.
    Nothing is assumed of where a method ends (at t_min, or denoised): `nearer` holds that it is the truth.
    """
    asked = subject.asked("vector", schedule, dtype=torch.float64)
    x = start(asked, STARTS).double()
    samples: Tensor | None = None
    gaps: list[Tensor] = []
    slopes: list[float] = []
    for nfe in BUDGETS:
        before, samples = samples, drawn(asked, nfe, x=x).samples.double()
        if before is None:
            continue
        gaps.append((samples - before).square().mean(-1).sqrt())
        if float(gaps[-1].median()) < FLOOR:
            break
        if len(gaps) > 1:
            slopes.append(float((gaps[-2] / gaps[-1]).log2().median()))
        if len(slopes) > 1 and settled(*slopes[-2:]):
            break
    if not slopes:
        raise Wrong(f"more evaluations change nothing under {schedule}: what does it sample?")
    return slopes[-1]


def settled(before: float, now: float) -> bool:
    """Whether two successive slopes are one number, or close in on a whole one."""
    whole = round(now)
    return abs(now - before) < SETTLED or (abs(now - whole) < 0.1 and abs(before - whole) < 0.15)


def nearer(subject: Subject) -> str:
    """More evaluations come nearer the truth: the flow's end where the start decides the sample, else the
    distribution.
    """
    subject.needs("sample")
    if not set(subject.kinds) - {"image"}:
        raise Skip("it is measured on all but images, and is for no other")
    if any(p.requires_grad for p in subject.asked().model.parameters()):
        raise Skip("its network is trained, and a check has no time to train it well")
    if subject.cls.adaptive:
        return tighter(subject)
    few, many = max(6, subject.plugin.least), max(96, 8 * subject.plugin.least)
    if "vector" not in subject.kinds:
        kind = next(kind for kind in subject.kinds if kind != "image")
        apart = pairs if kind == "tokens" else lambda samples: sliced(samples, kind)
        rows = 512 if kind == "tokens" else 1024
        a, b = (apart(drawn(subject.asked(kind, nfe=n), n, rows).samples) for n in (few, many))
        return judged(a, b, "distribution", f"{few} evaluations", f"{many}")
    coarse, fine = (subject.asked("vector", nfe=nfe) for nfe in (few, many))
    distance, sort = measure(subject, fine, many)  # with few, a sampler may have no room for its noise
    a, b = distance(coarse, few), distance(fine, many)
    return judged(a, b, sort, f"{few} evaluations", f"{many}")


def tighter(subject: Subject) -> str:
    """The same for an adaptive method, by its tolerance."""
    asked = subject.asked("vector")
    distance, sort = measure(subject, asked, 100)
    tight = asked.method.tolerance
    a, b = (distance(again(asked, tolerance=value), 100) for value in (100 * tight, tight))
    return judged(a, b, sort, f"tolerance {100 * tight:g}", f"{tight:g}")


def judged(a: float, b: float, sort: str, few: str, many: str) -> str:
    share, noise = (0.75, 0.08) if sort == "distribution" else (0.4, 0.005)
    if not b < max(share * a, noise):
        raise Wrong(
            f"from {few} to {many} its distance to the true {sort} goes from {a:.3g} to {b:.3g}: it does not "
            "converge."
        )
    return f"its distance to the true {sort} goes from {a:.3g} at {few} to {b:.3g} at {many}"


def measure(subject: Subject, asked: Asked, nfe: int):
    """How far samples are from the truth, by the measure that fits the method, and what that is."""
    x = start(asked, STARTS)
    draws = [drawn(asked, nfe, seed=s, x=x).samples for s in (1, 2)]
    target = flow_end(subject.schedules[0])
    if torch.equal(*draws) and x.shape == target[0].shape:
        return lambda a, n: float(errors(a, subject.schedules[0], n, x).median(1).values.min()), "solution"
    return lambda a, n: sliced(drawn(a, n, 1024).samples), "distribution"


def sliced(samples: Tensor, kind: str = "vector") -> float:
    """The Wasserstein-1 distance to exact draws, the mean over 32 directions; angles by cosine and sine."""
    truth = exact(kind).test[: len(samples)]
    a, b = (torch.cat([s.cos(), s.sin()], 1) if kind == "torus" else s for s in (samples, truth))
    angles = torch.arange(32, dtype=torch.float64) * math.pi / 32
    directions = torch.stack([angles.cos(), angles.sin()])
    if a.shape[1] > 2:
        directions = torch.randn(a.shape[1], 32, generator=seeded(0, 0), dtype=torch.float64)
        directions = directions / directions.norm(dim=0)
    a, b = ((s.double() @ directions).sort(0).values for s in (a, b))
    return float((a - b).abs().mean())


def pairs(samples: Tensor) -> float:
    """The total variation between the pairs of neighbouring tokens and the true ones."""
    chain = exact("tokens").exact
    seen = torch.bincount(runs(samples, chain.levels, 2).flatten(), minlength=chain.levels**2)
    return float((seen / seen.sum() - chain.ngrams(2)).abs().sum() / 2)
