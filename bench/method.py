"""Method: what a plugin declares and what it may implement."""

import dataclasses
import typing

import torch
from torch import Tensor, nn

OWN = "own"  # as a method's schedule: that of its base


class Method:
    """A method of the surveys; its annotated fields are its hyper-parameters. Declarations are literals.

    A subclass becomes a frozen dataclass of its annotated fields. The first line of its docstring is its
    name in tables. It may implement any of `build`, `train`, `sample`, `nll` and `bound`; what it
    does not implement it does not have.
    """

    paper = ""  # "arXiv:2010.02502"; required
    entry: typing.ClassVar[str] = ""  # its entry in taxonomy.yaml, where that is not its own name
    leaf: typing.ClassVar[str] = ""  # its leaf, only for a plugin that lies outside the zoo
    base: typing.ClassVar[str | None] = "denoiser"  # one of bench.models.recipes; None to build its own
    also: typing.ClassVar[tuple] = ()  # more recipes it needs; `base` is then a ModuleDict of all, by name
    # the kinds of data it is for, of which it sees the data as the first it can: see bench.data.KINDS
    kinds: typing.ClassVar[set] = {"image", "vector"}
    schedules: typing.ClassVar[tuple] = (
        "vp",
        "vp_cosine",
        "subvp",
        "ve",
        "edm",
        "flow",
    )  # the first is its default; none where it has a process of its own
    # global order of convergence with the paper's own start and end; a dict by schedule where they differ
    order: typing.ClassVar[int | dict | None] = None
    least: typing.ClassVar[int] = 1  # evaluations below which it is undefined; smaller budgets print "<least"
    per_nfe: typing.ClassVar[bool] = False  # True: its model is trained for one NFE
    share: typing.ClassVar[float] = (
        1.0  # of the data's training budget that its training takes, in images seen
    )
    adaptive: typing.ClassVar[bool] = (
        False  # it picks its own number of evaluations, from its field `tolerance`
    )
    batchwise: typing.ClassVar[bool] = False  # its steps depend on the whole chunk, as its paper has it
    likelihood: typing.ClassVar[str | None] = None  # what `nll` is: "elbo" | "ode"
    dequantise: typing.ClassVar[str] = "uniform"  # | "own" (a field `dequantisation` names which) | "none"
    version: typing.ClassVar[int] = 1  # raised when its numbers change

    schedule: str = ""  # the schedule it is seen under; "" is the first of `schedules`

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        # Declarations of this class that a subclass sets without annotating stay declarations; annotated
        # names become fields.
        dataclasses.dataclass(frozen=True, kw_only=True, repr=True)(cls)

    def build(self, base: nn.Module | None, data, nfe: int) -> nn.Module:
        """The untrained model, everything `sample` and `nll` need as parameters and buffers; by default the
        base.
        """
        return base

    def train(self, model: nn.Module, base: nn.Module | None, data, images: int, nfe: int) -> None:
        """Fit the model in place, within `images` images seen; by default nothing."""

    def start(self, model: nn.Module, n: int, generator: torch.Generator, device: str = "cpu") -> Tensor:
        """n draws of where sampling starts; by default the denoiser's prior. Seeded, unit noise first, on
        the CPU.
        """
        return model.prior(n, generator, device)

    # Implemented or absent:
    # sample(self, model, x, nfe) -> Tensor of the data's shape,
    # nll(self, model, x, nfe) -> nats, one a row, or a dict of named terms that sum to it (but for `stderr`,
    # a row's own standard error where it is estimated), and
    # bound(self, model, x, nfe), the same for a variational bound, of a method whose nll is none.


dataclasses.dataclass(frozen=True, kw_only=True)(Method)


def abilities(cls: type[Method]) -> list[str]:
    """Which of train, sample, nll and bound the class implements."""
    return [
        name
        for name in ("train", "sample", "nll", "bound")
        if getattr(cls, name, None) not in (None, getattr(Method, name, None))
    ]


def parameters(method: Method) -> dict[str, object]:
    """The hyper-parameters of an instance, in the order declared, with the schedule that stands behind the
    default.
    """
    found = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
    found["schedule"] = method.schedule or next(iter(method.schedules), "")
    return found
