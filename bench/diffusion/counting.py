"""The counter every network passes through: rows, forward- and reverse-mode derivatives, and the allowance.

Module hooks do not see torch.func's transforms, so the output passes through one autograd function that has
a rule for each of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.diffusion.execution import PLAIN, Execution, compiled, transformed

ROLES = ("nfe", "extra", "guide")


class OverBudget(RuntimeError):
    """More rows were asked of a network than its allowance; the message is one sentence for a person."""


@dataclass
class Tally:
    """What a network was asked: rows evaluated, tangents and cotangents carried through it, and the number
    of calls.
    """

    rows: int = 0
    jvps: int = 0
    vjps: int = 0
    calls: int = 0
    allowance: int | None = None

    def add(self, kind: str, rows: int) -> None:
        setattr(self, kind, getattr(self, kind) + rows)
        if kind == "rows":
            self.calls += 1
            if self.allowance is not None and self.rows > self.allowance:
                raise OverBudget(
                    f"{self.rows:,} rows were asked of the network and {self.allowance:,} are allowed"
                )


class Pass(torch.autograd.Function):
    """The identity; adds the rows that pass to a tally, under whatever transform they pass."""

    @staticmethod
    def forward(out: Tensor, tally: Tally, kind: str) -> Tensor:
        tally.add(kind, len(out))
        return out.view_as(out)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.tally = inputs[1]

    @staticmethod
    def backward(ctx, cotangent):
        return Pass.apply(cotangent, ctx.tally, "vjps"), None, None

    @staticmethod
    def jvp(ctx, tangent, *_):
        return Pass.apply(tangent, ctx.tally, "jvps")

    @staticmethod
    def vmap(info, in_dims, out, tally, kind):
        # One pass for the whole batch of batches: the rows of every member count.
        flat = out.movedim(in_dims[0], 0).flatten(0, 1)
        passed = Pass.apply(flat, tally, kind)
        return passed.unflatten(0, (info.batch_size, -1)), 0


class Counted(nn.Module):
    """A network whose rows are counted when asked for, before they are split into micro-batches.

    `net` is called as net(x, *more) with rows first; tensors among `more` that have a row for each of x's
    are split with it, into parts of nearly one size, or of one where the network is compiled. `role` is
    "nfe", "extra" for networks that run once a sample at either end (decoders, VAE and GAN starts), or
    "guide" for what steers the model without being part of it (a classifier). The compiled form lies inside
    the counter.
    """

    def __init__(self, net: nn.Module, role: str = "nfe"):
        super().__init__()
        if role not in ROLES:
            raise ValueError(f"a counted network's role is one of {', '.join(ROLES)}, not {role!r}")
        self.net, self.role = net, role
        self.tally = Tally()
        self.micro_batch: int | None = None
        self.execution = PLAIN
        self.fast: dict = {}  # device -> the compiled network; in a dict, so that it is no submodule

    def forward(self, x: Tensor, *more) -> Tensor:
        return Pass.apply(self.split(x, more), self.tally, "rows")

    def split(self, x: Tensor, more: tuple) -> Tensor:
        n, size = len(x), self.micro_batch
        if size is None or n <= size:
            return self.evaluated(x, *more)
        size = part_of(n, size, self.execution.compiled)
        parts = []
        for i in range(0, n, size):
            rows = slice(i, i + size)
            parts.append(self.evaluated(x[rows], *(m[rows] if has_rows(m, n) else m for m in more)))
        return torch.cat(parts)

    def evaluated(self, x: Tensor, *more) -> Tensor:
        """The network at one micro-batch; its compiled form only where no derivative is to follow."""
        net = self.net
        if self.execution.compiled and not torch.is_grad_enabled() and not transformed():
            device = str(x.device)
            net = self.fast[device] = self.fast.get(device) or compiled(self.net, device)
        return self.execution.evaluate(net, x, *more)

    def __deepcopy__(self, memo):
        """A copy counts for itself."""
        from copy import deepcopy

        copy = Counted(deepcopy(self.net, memo), self.role)
        copy.micro_batch, copy.execution = self.micro_batch, self.execution
        copy.train(self.training)
        return copy


def part_of(n: int, most: int, alike: bool) -> int:
    """The rows of each part of n, at most so many, and no small part at the end; `alike` where they are to be
    of one size, which can take up to twice as many parts.
    """
    fewest = -(-n // most)
    counts = (count for count in range(fewest, 2 * fewest) if n % count == 0)
    return -(-n // (next(counts, fewest) if alike else fewest))


def has_rows(m: object, n: int) -> bool:
    return isinstance(m, Tensor) and m.ndim > 0 and len(m) == n


def counters(model: nn.Module) -> Iterator[Counted]:
    """Every counted network of a model, each once."""
    return (module for module in model.modules() if isinstance(module, Counted))


@contextmanager
def counting(
    model: nn.Module,
    allowance: int | None = None,
    micro_batch: int | None = None,
    execution: Execution = PLAIN,
):
    """Count what the model's networks are asked inside the block; yields the tallies by role.

    The networks of one role share one tally, so that a method cannot spend its budget once per network.
    `allowance` is in rows and holds for the role "nfe"; asking for more raises OverBudget. The
    networks are evaluated in micro-batches and in the form of `execution`.
    """
    tallies = {role: Tally() for role in ROLES} | {"nfe": Tally(allowance=allowance)}
    settings = ("tally", "micro_batch", "execution")
    before = [(network, [getattr(network, name) for name in settings]) for network in counters(model)]
    for network, _ in before:
        network.tally, network.micro_batch = tallies[network.role], micro_batch
        network.execution = execution
    try:
        yield tallies
    finally:
        for network, values in before:
            for name, value in zip(settings, values):
                setattr(network, name, value)
