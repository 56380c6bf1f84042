"""What a worker process does: train a model, draw a chunk of a cell; and the same on a machine that shares
neither the results folder nor the cache with whoever wants it.
"""

import os
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch

from bench.cache import DENIED, DISK, Lender, borrowing, cache_dir
from bench.diffusion.counting import OverBudget
from bench.diffusion.guidance import drawn, told
from bench.diffusion.training import seeded
from bench.job import Cell, Chunk, Readied
from bench.running import exactness
from bench.running.calibration import calibrate
from bench.running.chunks import packed, write_chunk
from bench.running.crews import HEARD
from bench.running.worker import Ready, Site, ask, device_name, ready, start_of, trained_per_nfe, uncounted

COST = ("images", "seconds", "rows", "capped")  # what a row says of its model's card


@dataclass(frozen=True)
class Task:
    """One chunk of a cell to draw. `tolerance` is an adaptive method's: None where this chunk is to find it.
    `seconds` is what is left of the cell's time limit.
    """

    cell: Cell
    number: int
    site: Site
    tolerance: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Training:
    """The model of a cell to train, or to find trained. It may take hours: nothing waits at its worker."""

    cell: Cell
    site: Site
    alone = True

    @property
    def name(self) -> str:
        budget = f" for {self.cell.nfe} NFE" if trained_per_nfe(self.cell, self.site) else ""
        return f"{self.cell.method}{budget}"


@dataclass(frozen=True)
class Failure:
    """Why a chunk was not drawn, in one sentence, and what is known of the model that should have."""

    sentence: str
    readied: Readied | None = None


def work(task: Task | Training) -> Chunk | Failure | str:
    """Whatever the task asks for."""
    return train(task) if isinstance(task, Training) else draw(task)


def work_away(task: Task | Training, lender: Lender) -> bytes | Failure | str:
    """`work` with a cache that borrows what it lacks and hands back what was trained; a chunk comes as the
    bytes of its file.
    """
    with borrowing(lender):
        if isinstance(task, Training):
            return train(task)
        drawn = attempt(task)
    return drawn if isinstance(drawn, Failure) else drawn[0]


def train(task: Training) -> str:
    """Train the model of a cell, or find it trained, and say so; a failure comes again with the cell. Whoever
    hears is told of its progress.
    """
    torch.set_num_threads(task.site.threads)
    try:
        card = ready(task.cell, task.site, HEARD.get()).card
    except (Exception, SystemExit) as error:
        raise_for_disk(error)
        return f"{task.name} could not be trained: {sentence(error)}"
    spent = f"trained on {card['images']:,} images" if card["images"] else f"{card['rows']:,} evaluations"
    return f"{task.name}: {spent} in {card['seconds']:.0f} s"


def draw(task: Task) -> Chunk | Failure:
    """Draw a chunk into its file and say what it cost. Never raises for what a method does wrong."""
    drawn = attempt(task)
    if isinstance(drawn, Failure):
        return drawn
    content, chunk = drawn
    write_chunk(task.site.chunk_file(task.cell, task.number), content)
    return chunk


def attempt(task: Task) -> tuple[bytes, Chunk] | Failure:
    """A chunk as the bytes of its file, and its cost."""
    cell, site = task.cell, task.site
    torch.set_num_threads(site.threads)
    readied = None
    try:
        asked = remembered(cell, site)
        readied = known(asked, site)
        if asked.method.adaptive and cell.ask == "sample":
            found = (task.tolerance, 0) if task.tolerance is not None else calibrate(asked, cell, site)
            readied = replace(readied, tolerance=found[0], searched=found[1])
        tensors, chunk = ask(asked, cell, task.number, site, readied.tolerance)
        if cell.ask == "sample" and asked.data.exact is not None and asked.flow is not None:
            generator = seeded(cell.seed, task.number)
            start = asked.method.start(asked.model, cell.chunk, generator, site.device)
            with told(asked.flow, drawn(cell.chunk, generator)):
                samples = tensors["samples"]
                tensors |= exactness.distances(asked.flow, start, samples, asked.data, cell.base_id)
    except (Exception, SystemExit) as error:
        raise_for_disk(error)
        return Failure(sentence(error), readied)
    chunk = replace(chunk, readied=readied, source=cell.source)
    return packed(tensors, chunk), chunk


@lru_cache(maxsize=1)
def remembered(cell: Cell, site: Site) -> Ready:
    """A cell's method and model, for the many chunks of one cell."""
    asked = ready(cell, site)
    if uncounted(asked.model):
        raise ValueError("its model has no counted network, so its NFE cannot be measured")
    return asked


def known(asked: Ready, site: Site) -> Readied:
    """What is to be known of a model that is ready."""
    card = {name: asked.card.get(name, 0) for name in COST}
    return Readied(card, start_of(asked), device=device_name(site.device))


def sentence(error: BaseException) -> str:
    """An error as one line for a person."""
    import click

    if isinstance(error, click.ClickException):
        return error.message
    text = str(error).splitlines()[0] if str(error).strip() else "no reason given"
    kinds = {OverBudget: "over budget: ", MemoryError: ""}
    return f"{kinds.get(type(error), f'{type(error).__name__}: ')}{text}"


def raise_for_disk(error: BaseException) -> None:
    """Raise what is the disk's fault and not the method's: a full one ends the run, and so does a cache that
    may not be written.
    """
    if not isinstance(error, OSError):
        return
    cached = error.filename and Path(os.fsdecode(error.filename)).is_relative_to(cache_dir())
    if error.errno in DISK or (cached and error.errno in DENIED):
        raise error
