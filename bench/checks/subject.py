"""What the checks ask: a plugin on data whose truth is known, built and trained as a worker would, nothing
cached on disk.
"""

import copy
import importlib.util
import sys
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import torch
from torch import Tensor, nn

from bench.checks import Skip, Wrong
from bench.data import Data, load
from bench.diffusion import training
from bench.diffusion.counting import counting
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.exact import ExactNetwork
from bench.diffusion.schedule import EDM, SCHEDULES
from bench.diffusion.training import seeded
from bench.method import Method
from bench.models import recipes
from bench.registry import Plugin
from bench.running.worker import built

# kind -> the data whose truth is known
EXACT = {
    "vector": "mixture2d",
    "image": "mixture-digits",
    "tokens": "markov",
    "sphere": "vmf",
    "torus": "wrapped",
    "box": "box2d",
}
ROWS = {"vector": 64, "image": 16, "tokens": 16, "sphere": 64, "torus": 64, "box": 64}
IMAGES = 512  # training budget here: enough to set every tensor, not to learn
# training rows shown: searches and estimates are paid by the row
STORED = {"vector": 512, "image": 64, "tokens": 512, "sphere": 512, "torus": 512, "box": 512}
TOLERANCE = 1e-3  # of adaptive methods, or ten times their own, where the budget is not the question


@dataclass(frozen=True)
class Asked:
    """A method with its model on some data, and what its training cost."""

    method: Method
    model: nn.Module
    data: Data
    session: training.Session


@dataclass(frozen=True)
class Drawn:
    """Samples (n, *shape), the start they were drawn from, and the rows the networks were asked."""

    samples: Tensor
    x: Tensor
    rows: int
    extra: int


@dataclass
class Subject:
    """A plugin under examination; models are made when first asked for, and kept."""

    plugin: Plugin
    made: dict = field(default_factory=dict)

    @cached_property
    def cls(self) -> type[Method]:
        return fresh_class(self.plugin, "checked")

    @property
    def schedules(self) -> tuple[str, ...]:
        return tuple(self.cls.schedules) or ("",)

    @cached_property
    def kinds(self) -> list[str]:
        """The kinds it declares for which there is exact data, the cheapest first."""
        return [kind for kind in EXACT if kind in self.plugin.kinds]

    @property
    def kind(self) -> str:
        if not self.kinds:
            raise Skip(f"there is no exact data of kind {' or '.join(self.plugin.kinds)} to hold it to yet")
        return self.kinds[0]

    def needs(self, ability: str) -> None:
        if ability not in self.plugin.abilities:
            raise Skip(f"it has no {ability}")

    def asked(
        self,
        kind: str | None = None,
        schedule: str | None = None,
        nfe: int | None = None,
        dtype=torch.float32,
        **fields,
    ) -> Asked:
        """The method under a schedule (default: its first) with its model trained for `nfe` where that
        matters.
        """
        kind, schedule = kind or self.kind, schedule or self.schedules[0]
        nfe = max(nfe or 10, self.plugin.least)
        key = (kind, schedule, nfe if self.cls.per_nfe else None, dtype, tuple(sorted(fields.items())))
        if key not in self.made:
            self.made[key] = make(
                self.cls, self.base(kind, schedule, dtype), exact(kind), nfe, schedule, fields
            )
        return self.made[key]

    def base(self, kind: str, schedule: str, dtype=torch.float32) -> nn.Module | None:
        """The shared models it is given, as a worker gives them; the denoiser is the exact one."""
        found = {
            name: perfect(kind, schedule, dtype) if name == "denoiser" else shared(name, kind)
            for name in self.plugin.recipes
        }
        return nn.ModuleDict(found) if len(found) > 1 else next(iter(found.values()), None)


def make(
    cls: type[Method],
    base: nn.Module | None,
    data: Data,
    nfe: int,
    schedule: str,
    fields: dict,
    trained: bool = True,
    images: int = IMAGES,
    every: int = 50,
) -> Asked:
    """Build and train as a worker does, without its cache; `every`: steps between two points of the curve."""
    if cls.adaptive:
        fields = {"tolerance": max(TOLERANCE, 10 * cls.tolerance)} | fields
    method = cls(schedule=schedule, **fields)
    model = built(method, base, data, nfe, seed=0)
    if not isinstance(model, nn.Module):
        raise Wrong(f"build returned a {type(model).__name__}; let it return an nn.Module.")
    with training.session(seed=0, every=every) as session:
        if trained and "train" in vars(cls):
            torch.manual_seed(0)
            method.train(model, base, data, images, nfe)
    return Asked(method, model.eval(), data, session)


def start(asked: Asked, n: int, seed: int = 0) -> Tensor:
    return asked.method.start(asked.model, n, seeded(seed, 0), "cpu")


def drawn(
    asked: Asked,
    nfe: int,
    n: int | None = None,
    seed: int = 0,
    *,
    x: Tensor | None = None,
    micro_batch: int | None = None,
    most: float = 4.0,
) -> Drawn:
    """n samples within `nfe` evaluations each, stopped at `most` times that (an adaptive method much later).
    x: where to start, if not from `start`.
    """
    n = len(x) if x is not None else n or ROWS[asked.data.kind]
    allowed = int((1000 if asked.method.adaptive else most) * nfe * n)
    with torch.no_grad(), counting(asked.model, allowed, micro_batch) as tallies:
        x = start(asked, n, seed) if x is None else x
        torch.manual_seed(seeded(seed, 0, 1).initial_seed())
        samples = asked.method.sample(asked.model, x, nfe)
    return Drawn(samples, x, tallies["nfe"].rows, tallies["extra"].rows)


@lru_cache
def exact(kind: str) -> Data:
    """Exact data of a kind, with few training rows."""
    data = copy.copy(load(EXACT[kind]))
    vars(data)["train"] = load(EXACT[kind]).train[: STORED[kind]]
    return data


@lru_cache
def perfect(kind: str, schedule: str, dtype=torch.float32) -> Denoiser:
    """The denoiser without error of its own."""
    if dtype == torch.float32:
        return recipes.exact_denoiser(exact(kind)).under(SCHEDULES[schedule]())
    data = exact(kind)
    net = ExactNetwork(data.exact, data.shape, data.sigma_data)
    return Denoiser(net, EDM(), data.shape, "x0", data.sigma_data).under(SCHEDULES[schedule]())


@lru_cache
def shared(name: str, kind: str) -> nn.Module:
    """The model of a recipe, hardly trained."""
    recipe, data = recipes.RECIPES[name], exact(kind)
    model = recipes.seeded_build(recipe, data, 0)
    with training.session(seed=0):
        recipe.train(model, data, IMAGES)
    return model.eval()


def fresh_class(plugin: Plugin, purpose: str) -> type[Method]:
    """The plugin's class from its file executed anew, as in a process that has never seen it."""
    name = f"taxobench_{purpose}_{plugin.name}"
    spec = importlib.util.spec_from_file_location(name, plugin.path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return getattr(module, plugin.class_name)


def again(asked: Asked, **fields) -> Asked:
    """The same model under other hyper-parameters that its training does not depend on."""
    return replace(asked, method=replace(asked.method, **fields))


def sentence(error: BaseException) -> str:
    """An error as one line for a person."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0].rstrip('.')}" if text else type(error).__name__
