"""What `--base` takes, read as text: PLACE[:setting=value]..., the settings being those of guidance.

A place is a recipe with a budget of training or without (`denoiser`, `conditional@IMAGES`), a checkpoint
folder of ours, `diffusers:FOLDER` or `diffusers:OWNER/NAME`, or `module.py:make`. `guided` is the denoiser
under a classifier's guidance.
"""

import difflib
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import click

CONDITIONAL, GUIDED = "conditional", "guided"
SETTINGS = {"guidance": "of a base with classes, without a classifier", "scale": f"of {GUIDED}"}


@dataclass(frozen=True)
class Spec:
    """A base as it was asked for."""

    kind: str  # "recipe" | "folder" | "diffusers" | "python"
    place: str
    images: int | None = None  # training budget of a recipe
    guidance: float | None = None  # 1 is the labelled reading, two rows a call
    scale: float = 1.0  # of a classifier's guidance

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
    if "scale" in values and not spec.classifier:
        raise click.BadParameter(f"scale is {SETTINGS['scale']}; {spec.place} may have guidance=....")
    if "guidance" in values and spec.classifier:
        raise click.BadParameter(f"{GUIDED} has scale=..., and guidance is {SETTINGS['guidance']}.")
    return spec


def where(place: str, recipes: Collection[str] | None) -> Spec:
    """The place of a base."""
    first, _, rest = place.partition(":")
    if first == "diffusers":
        return Spec("diffusers", rest)
    if first.endswith(".py"):
        return Spec("python", place)
    if Path(place).is_dir():
        return Spec("folder", place)
    name, at, budget = place.partition("@")
    if (recipes is not None and name not in (*recipes, GUIDED)) or (at and not budget.isdigit()):
        known = ", ".join((*(recipes or ()), GUIDED))
        raise click.BadParameter(
            f"there is no base {place!r}: give {known} [@IMAGES], a checkpoint folder, diffusers:FOLDER or "
            "module.py:make."
        )
    return Spec("recipe", name, int(budget) if at else None)


def read(setting: str, text: str) -> tuple[str, float]:
    name, _, value = setting.partition("=")
    if name not in SETTINGS:
        near = difflib.get_close_matches(name, SETTINGS, 1, 0.4)
        hint = f"did you mean {near[0]}?" if near else f"there are {' and '.join(SETTINGS)}."
        raise click.BadParameter(f"no base has a setting {name!r}, as {text!r} says; {hint}")
    try:
        return name, float(value)
    except ValueError:
        raise click.BadParameter(f"{name} is a number, which {value!r} in {text!r} is not.") from None
