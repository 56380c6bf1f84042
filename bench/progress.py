"""What a person sees while a run goes on: a bar in a terminal, a line now and then elsewhere. On stderr, so
that tables can be piped.
"""

import time
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

EVERY = 20.0  # seconds between lines where there is no terminal


@dataclass
class Course:
    """Of a training: when it was first heard of, and at how many images."""

    began: float
    first: int

    def left(self, now: float, seen: int, total: int) -> str:
        """How long it will take from here, once that can be told."""
        took, done = now - self.began, seen - self.first
        told = took > 5 and done and seen < total
        return f", about {took * (total - seen) / done:.0f} s left" if told else ""


class Progress:
    """Tells of trainings and cells; a context manager. Quiet if asked to be."""

    def __init__(self, quiet: bool = False):
        self.console = Console(stderr=True, quiet=quiet, highlight=False)
        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[more]}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.tasks: dict[str, int] = {}
        self.courses: dict[str, Course] = {}
        self.said: dict[str, float] = {}  # when a line was last said of a training
        self.left = 0

    def __enter__(self) -> "Progress":
        self.bars.start()
        return self

    def __exit__(self, *_) -> None:
        self.bars.stop()

    def note(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def report(self, label: str, seen: int, total: int, loss: float | None = None) -> None:
        """The progress of a training, `training.Report`, or of looking at images, which has no loss and of
        which nothing is said where it is quick.
        """
        now = time.monotonic()
        course = self.courses.setdefault(label, Course(now, seen))
        more = "" if loss is None else f"loss {loss:.4f}"
        if label not in self.tasks:
            self.tasks[label] = self.bars.add_task(label, more="")
        self.bars.update(self.tasks[label], total=total, completed=seen, more=more)
        due = now - self.said.get(label, float("-inf") if more else course.began) > EVERY
        due = due or (seen >= total and now - course.began > EVERY)  # and not at the end of every short part
        if due and not self.console.is_terminal:
            left = course.left(now, seen, total)
            self.note(f"{label}: {seen:,} of {total:,} images{', ' if more else ''}{more}{left}")
            self.said[label] = now
        if seen >= total:
            self.over(label)

    def over(self, label: str) -> None:
        """No more is heard of a training, or of one of its parts."""
        self.courses.pop(label, None)
        if label in self.tasks:
            self.bars.remove_task(self.tasks.pop(label))

    def training(self, name: str, images: int) -> None:
        """A training that somebody else begins."""
        label = f"training {name}"
        if self.console.is_terminal:
            self.tasks[label] = self.bars.add_task(label, total=None, more="")
        else:
            self.note(f"{label} on up to {images:,} images")

    def trained(self, name: str, said: str) -> None:
        self.over(f"training {name}")
        self.note(said)

    def cells(self, count: int) -> None:
        self.left = count

    def started(self, cell) -> None:
        self.tasks[cell.key] = self.bars.add_task(self.name(cell), total=len(cell.chunks), more="")

    def advanced(self, cell, done: int, total: int) -> None:
        if cell.key in self.tasks:
            self.bars.update(self.tasks[cell.key], completed=done)

    def finished(self, cell, said: str) -> None:
        self.left -= 1
        if cell.key in self.tasks:
            self.bars.remove_task(self.tasks.pop(cell.key))
        self.note(f"{self.name(cell)}: {said}  ({self.left} to go)")

    @staticmethod
    def name(cell) -> str:
        what = {"sample": "samples", "nll": "likelihood", "bound": "bound"}[cell.ask]
        return f"{cell.method}, {cell.nfe} NFE, seed {cell.seed}, {what}"
