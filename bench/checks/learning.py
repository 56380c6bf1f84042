"""Does training do something: lower its loss, change its model, keep to its budget?"""

from itertools import pairwise
from statistics import median

import torch
from torch import nn

from bench.checks import Wrong
from bench.checks.subject import Subject, exact, make
from bench.data import Data
from bench.diffusion.schedule import SCHEDULES
from bench.models import kept, recipes

STEPS, BATCH = 200, 128


def training(subject: Subject) -> str:
    """A short training from a small fresh network: some loop's loss falls, all is finite, tensors change."""
    subject.needs("train")
    kind, schedule, nfe = subject.kind, subject.schedules[0], max(4, subject.plugin.least)
    data = exact(kind)
    base = fresh(subject, data, schedule)
    images = STEPS * BATCH
    # where the truth stands in for a network, the network itself
    fields = {"learned": True} if "learned" in subject.plugin.parameters else {}
    before = make(subject.cls, base, data, nfe, schedule, fields, trained=False)
    tensors = kept.tensors_of(before.model)
    after = make(subject.cls, base, data, nfe, schedule, fields, images=images, every=1)
    changed = kept.tensors_of(after.model)
    broken = [name for name, t in changed.items() if t.is_floating_point() and bool(t.isnan().any())]
    if broken:
        raise Wrong(f"after training, {broken[0]} is not a number in places.")
    if all(torch.equal(tensors[name], t) for name, t in changed.items() if name in tensors):
        raise Wrong("training changes no parameter and no buffer of the model: fit it in place.")
    if after.session.images > images + 4 * BATCH:
        raise Wrong(f"it was given {images:,} images to train on and took {after.session.images:,}.")
    falls = [fall(loop) for loop in loops(after.session.curve) if len(loop) >= 8]
    if falls and min(falls) >= 1:
        raise Wrong(
            f"its loss does not fall: at its best it ends {min(falls):.2f} times as high as it begins."
        )
    return f"its loss falls to {min(falls):.2f} of what it was" if falls else "it estimates without a loss"


def fresh(subject: Subject, data: Data, schedule: str) -> nn.Module | None:
    """The shared models it is given, untrained: there is something to learn, and nothing to wait for."""
    found = {
        name: recipes.new_denoiser(data).under(SCHEDULES[schedule]())
        if name == "denoiser"
        else recipes.seeded_build(recipes.RECIPES[name], data, 0)
        for name in subject.plugin.recipes
    }
    return nn.ModuleDict(found) if len(found) > 1 else next(iter(found.values()), None)


def loops(curve: list[tuple[int, float]]) -> list[list[float]]:
    """The losses of each loop of a session's curve; images seen begin anew with each."""
    found = [[curve[0][1]]] if curve else []
    for (seen, _), (now, loss) in pairwise(curve):
        if now <= seen:
            found.append([])
        found[-1].append(loss)
    return found


def fall(losses: list[float]) -> float:
    """The median of the last quarter as a share of the first's, in absolute terms above the least."""
    quarter = max(2, len(losses) // 4)
    first, last = median(losses[:quarter]), median(losses[-quarter:])
    return last / first if first > 0 else 1 + (last - first)
