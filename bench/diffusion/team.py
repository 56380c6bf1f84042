"""Several processes that train one model: torchrun starts them, Accelerate ties them together.

Each process draws its own share of every batch, and their gradients are averaged before the weights move, so
that all hold the same weights at every step; the first one writes. A team of one costs nothing and changes
nothing.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from accelerate import Accelerator


class Uneven(ValueError):
    """A batch cannot be dealt out evenly to the processes; the message is one sentence for a person."""


@dataclass(frozen=True)
class Team:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1
    accelerator: "Accelerator | None" = None

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def share(self, batch: int) -> int:
        """The rows of a batch that fall to each process; Uneven where they cannot be dealt out."""
        if batch % self.size:
            raise Uneven(
                f"a batch of {batch} cannot be dealt out to {self.size} processes; start a number that "
                f"divides {batch}."
            )
        return batch // self.size

    def wait(self) -> None:
        """Until all have come here."""
        if self.accelerator:
            self.accelerator.wait_for_everyone()

    def average(self, weights: Iterable[nn.Parameter]) -> None:
        """Every gradient becomes its mean over the processes, in one exchange."""
        if self.accelerator is None:
            return
        slopes = [p.grad for p in weights if p.grad is not None]
        flat = self.accelerator.reduce(torch.cat([slope.flatten() for slope in slopes]), "mean")
        for slope, mean in zip(slopes, flat.split([slope.numel() for slope in slopes]), strict=True):
            slope.copy_(mean.view_as(slope))

    def part(self) -> None:
        """Let the others go, at the end."""
        if self.accelerator:
            self.accelerator.end_training()

    def agreed(self, decision: bool) -> bool:
        """The first process's decision, for all."""
        if self.accelerator is None:
            return decision
        told = torch.tensor([float(decision and self.leads)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(told, "sum") > 0)


ALONE = Team()


def started(device: str) -> tuple[Team, str]:
    """The team this process belongs to by torchrun's environment, and the device that is its own; ALONE
    and `device` outside torchrun. ModuleNotFoundError where Accelerate is missing.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE, device
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=device == "cpu")
    return Team(accelerator.process_index, accelerator.num_processes, accelerator), str(accelerator.device)
