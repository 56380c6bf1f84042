"""Is a likelihood what it should be: the exact one where it is exact, above it where it is a bound?"""

import copy
import dataclasses
import math
from functools import lru_cache

import torch
from torch import Tensor

from bench.checks import Skip, Wrong
from bench.checks.subject import EXACT, Asked, Subject, exact, make
from bench.data import Data
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.exact import ExactNetwork, GaussianMixture
from bench.diffusion.schedule import EDM, SCHEDULES
from bench.diffusion.training import seeded

LEVELS, HALF = 256, 0.5  # the levelled data: the mixture at half its size, in the middle of [-1, 1]
TEST = 200
MANY = 200  # evaluations at which a bound is nearly tight
FLOW = {
    True: (96, 0.01),
    False: (48, 0.1),
}  # first schedule or not -> an integral's evaluations and tolerance


def asked_nats(asked: Asked, x: Tensor, nfe: int) -> Tensor:
    """-log p (n,) of rows on the [-1, 1] scale, as a worker asks for it."""
    generator = seeded(0, 0)
    torch.manual_seed(1)
    if asked.data.levels and asked.method.dequantise == "uniform":
        x = x + (torch.rand(x.shape, generator=generator) * 2 - 1) / (asked.data.levels - 1)
    with torch.no_grad():
        found = asked.method.nll(asked.model, x, nfe)
    terms = found if isinstance(found, dict) else {"nll": found}
    total = sum(term for name, term in terms.items() if name != "stderr")
    if not isinstance(total, Tensor) or total.shape != (len(x),):
        raise Wrong(
            f"nll gives {tuple(getattr(total, 'shape', ()))} for {len(x)} rows: it owes one number a row."
        )
    if bool(total.isnan().any()):
        raise Wrong(f"its likelihood is not a number at {nfe} NFE.")
    return total.double()


def fields_of(subject: Subject) -> dict:
    """The exact trace, where the method leaves the choice."""
    return {"trace": "exact"} if "trace" in subject.plugin.parameters else {}


def likelihood(subject: Subject) -> str:
    """On continuous data, under every schedule it claims."""
    subject.needs("nll")
    kind = subject.kind
    if trained(subject):
        raise Skip("its network is trained, and a check has no time to train it well")
    data = exact(kind)
    x = data.scale(data.test[: 32 if kind == "image" else TEST])
    said, bounds = [], subject.cls.likelihood == "elbo"
    for schedule in subject.schedules:
        asked = subject.asked(kind, schedule, **fields_of(subject))
        base = subject.base(kind, schedule)
        truths = [-data.exact.log_prob(x.double())]
        if base is not None and not bounds:
            truths.append(at_end(base, data.exact, x.double()))
        nfe, tolerance = FLOW[schedule == subject.schedules[0]] if not bounds else (MANY, 0.0)
        nats = asked_nats(asked, x, nfe)
        said.append(
            held(
                subject,
                [nats - truth for truth in truths],
                f"on {EXACT[kind]}" + (f" under {schedule}" if schedule else ""),
                tolerance,
            )
        )
    if bounds:
        nfe = max(10, subject.plugin.least)
        few = asked_nats(subject.asked(kind), x, nfe)
        held(subject, [few + data.exact.log_prob(x.double())], f"at {nfe} NFE")
    return "; ".join(said)


def at_end(base: Denoiser, mixture: GaussianMixture, x: Tensor) -> Tensor:
    """-log density of x at t_min, where an integral that takes x for data there ends."""
    alpha, sigma = (float(f(base.schedule.t_min)) for f in (base.schedule.alpha, base.schedule.sigma))
    return -mixture.log_prob(x / alpha, sigma / alpha) + x[0].numel() * math.log(alpha)


def held(subject: Subject, gaps: list[Tensor], where: str, tolerance: float = 0.0) -> str:
    """The mean gap to the nearest of the truths, against its standard error."""
    gap, error = min(
        ((float(g.mean()), float(g.std() / len(g) ** 0.5)) for g in gaps), key=lambda g: abs(g[0])
    )
    if subject.cls.likelihood == "elbo":
        if gap < -3 * error - 1e-3:
            raise Wrong(f"{where} its bound lies {-gap:.3g} nats below the exact value: a term is too small.")
    elif abs(gap) > tolerance + (0.0 if fields_of(subject) else 3 * error):
        raise Wrong(f"{where} its likelihood is {gap:+.3g} nats from the exact one: look for a wrong sign.")
    return f"{where} {gap:+.2g} nats"


def trained(subject: Subject) -> bool:
    return "train" in subject.plugin.abilities and any(
        p.requires_grad for p in subject.asked().model.parameters()
    )


def levels(subject: Subject) -> str:
    """On data with levels a likelihood is still a density: a level's probability over its bin's width."""
    subject.needs("nll")
    if "vector" not in subject.kinds or not subject.plugin.base:
        raise Skip("it is not for the levelled vectors that are exact here")
    if trained(subject):
        raise Skip("its network is trained, and a check has no time to train it well")
    data, mixture = levelled()
    schedule = subject.schedules[0]
    net = ExactNetwork(copy.deepcopy(mixture), data.shape, data.sigma_data).float()
    base = Denoiser(net, EDM(), data.shape, "x0", data.sigma_data).under(SCHEDULES[schedule]())
    base.levels = LEVELS
    asked = make(subject.cls, base, data, MANY, schedule, fields_of(subject))
    x = data.scale(data.test[:TEST])
    gap = asked_nats(asked, x, 96 if subject.cls.likelihood == "ode" else MANY) + mixture.log_prob(x.double())
    mean, error = float(gap.mean()), float(gap.std() / len(gap) ** 0.5)
    offset = data.dim * math.log((LEVELS - 1) / 2)
    if mean < -3 * error - 0.05 or mean > offset / 4:
        raise Wrong(
            f"on data of {LEVELS} levels it is {mean:+.3g} nats from the exact one, a bin's log width being "
            f"{-offset:.3g}: give densities per unit of x, a level's probability divided by 2/(L-1)."
        )
    return f"on data of {LEVELS} levels {mean:+.2g} nats"


@lru_cache
def levelled() -> tuple[Data, GaussianMixture]:
    """mixture2d at half its size and rounded to levels, and the density whose levels they are."""
    whole = exact("vector").exact
    mixture = GaussianMixture(
        whole.weights, whole.means * HALF, whole.basis, whole.excess * HALF**2, whole.floor * HALF**2
    )
    plain = Data("levelled", "vector", (2,), torch.zeros(0, 2), torch.zeros(0, 2), LEVELS)
    parts = [plain.quantise(mixture.sample(n, torch.Generator().manual_seed(n))) for n in (512, TEST)]
    return dataclasses.replace(plain, train=parts[0], test=parts[1]), mixture
