"""What `--base` takes, read as text: PLACE[:setting=value]..., the settings being guidance, scale and clip.

A place is a recipe with a budget of training or without (`denoiser`, `conditional@IMAGES`), a checkpoint
folder of ours, `diffusers:FOLDER` or `diffusers:OWNER/NAME`, or `module.py:make`. `guided` is the denoiser
under a classifier's guidance.
"""

import difflib
import math
import os
import re
from collections.abc import Collection
from dataclasses import dataclass, replace

import click

CONDITIONAL, GUIDED = "conditional", "guided"
DENOISERS = ("denoiser", "ddpm", CONDITIONAL)  # the recipes that can be a base; others are shared models
MOST = 10**12  # images of a training
SETTINGS = {
    "guidance": "of a base with classes, without a classifier",
    "scale": f"of {GUIDED}",
    "clip": "of a pipeline of diffusers",
}


@dataclass(frozen=True)
class Spec:
    """A base as it was asked for."""

    kind: str  # "recipe" | "folder" | "diffusers" | "python"
    place: str
    images: int | None = None  # training budget of a recipe
    guidance: float | None = None  # 1 is the labelled reading, two rows a call
    scale: float = 1.0  # of a classifier's guidance
    clip: float = 0.0  # of a pipeline: at 1, x0 as its scheduler clips it; x0 and eps are then of no one flow

    @property
    def classifier(self) -> bool:
        """Whether a classifier guides it."""
        return self.kind == "recipe" and self.place == GUIDED

    @property
    def steered(self) -> bool:
        """Whether it is under guidance, so that it has no likelihood."""
        return self.classifier or self.guidance is not None

    @property
    def told(self) -> bool:
        """Whether its text says that it is told classes; a folder's may be as well."""
        return self.steered or (self.kind == "recipe" and self.place == CONDITIONAL)

    def unfit(self, name: str, abilities: Collection[str], ask: str) -> str | None:
        """Why a method of this name cannot be asked this on it, in words; None where it can."""
        if self.told and "train" in abilities:
            return f"{name} trains on its base, which cannot be one with classes"
        if self.steered and ask != "sample":
            return f"{name} has no likelihood under guidance"
        if self.clip and "train" in abilities:
            return f"{name} trains on its base, which cannot be one with clip=1"
        if self.clip and ask != "sample":
            return f"{name} has no likelihood with clip=1"
        return None

    @property
    def rows(self) -> int:
        """Rows of the network that one evaluation of the base takes."""
        return 1 if self.guidance is None else 2

    def of(self, recipe: str) -> "Spec":
        """The recipe alone, in the budget that was given to this one."""
        return replace(self, place=recipe, guidance=None, scale=1.0)


def parsed(text: str, recipes: Collection[str] | None = None) -> Spec:
    """A base's text read; click.BadParameter where it says what cannot be. `recipes` are those there are."""
    place, *settings = re.split(r":(?=[a-z_]+=)", text)
    values = dict(read(setting, text) for setting in settings)
    spec = replace(where(place, recipes), **values)
    if "clip" in values and (spec.kind != "diffusers" or spec.clip != 1):
        raise click.BadParameter(f"clip is {SETTINGS['clip']}, and it is 1 or left out, unlike in {text!r}.")
    if "scale" in values and not spec.classifier:
        raise click.BadParameter(f"scale is {SETTINGS['scale']}; {spec.place} may have guidance=....")
    if "guidance" in values and spec.classifier:
        raise click.BadParameter(f"{GUIDED} has scale=..., and guidance is {SETTINGS['guidance']}.")
    if "guidance" in values and spec.kind == "recipe" and spec.place != CONDITIONAL:
        raise unguidable(spec.place)
    return spec


def unguidable(place: str) -> click.BadParameter:
    """That what stands at a place cannot have guidance=...."""
    return click.BadParameter(
        f"{place} has no labels or knows nothing without them, and cannot be guided; "
        f"give {CONDITIONAL}:guidance=..., or {GUIDED}:scale=..., which asks a classifier."
    )


def where(place: str, recipes: Collection[str] | None) -> Spec:
    """The place of a base."""
    first, _, rest = place.partition(":")
    if first == "diffusers":
        return Spec("diffusers", rest)
    if first.endswith(".py"):
        return Spec("python", place)
    if os.path.isdir(place):
        return Spec("folder", place)
    name, at, budget = place.partition("@")
    if at and budget.isdigit() and not (budget.isdecimal() and len(budget) < 15 and 1 <= int(budget) <= MOST):
        raise click.BadParameter(f"the budget of {place!r} is no number of images from 1 to 10^12.")
    if (recipes is not None and name not in (*recipes, GUIDED)) or (at and not budget.isdigit()):
        if os.path.exists(place):
            raise click.BadParameter(
                f"a base is a folder, or a file of Python with a function (module.py:make), and {place} is "
                "neither; single files of weights are not taken."
            )
        known = ", ".join((*DENOISERS, GUIDED))
        raise click.BadParameter(
            f"there is no base {place!r}: give {known} [@IMAGES], a checkpoint folder, diffusers:FOLDER or "
            "module.py:make."
        )
    return Spec("recipe", name, int(budget) if at else None)


def read(setting: str, text: str) -> tuple[str, float]:
    name, _, value = setting.partition("=")
    if name not in SETTINGS:
        near = difflib.get_close_matches(name, SETTINGS, 1, 0.4)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(SETTINGS)}."
        raise click.BadParameter(f"no base has a setting {name!r}, as {text!r} says; {hint}")
    try:
        number = float(value)
    except ValueError:
        raise click.BadParameter(f"{name} is a number, which {value!r} in {text!r} is not.") from None
    if not math.isfinite(number):
        raise click.BadParameter(f"{name} is a finite number, which {value!r} in {text!r} is not.")
    return name, number
