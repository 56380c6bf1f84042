"""What a person sees while a run goes on: a bar in a terminal, a line now and then elsewhere. On stderr, so
that tables can be piped.
"""

import time

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

EVERY = 20.0  # seconds between lines where there is no terminal


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
        self.said = 0.0
        self.began = time.monotonic()
        self.left = 0

    def __enter__(self) -> "Progress":
        self.bars.start()
        return self

    def __exit__(self, *_) -> None:
        self.bars.stop()

    def note(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def report(self, label: str, seen: int, total: int, loss: float) -> None:
        """A training's progress; `training.Report`."""
        if label not in self.tasks:
            self.tasks[label] = self.bars.add_task(label, total=total, more="")
            self.began = time.monotonic()
        self.bars.update(self.tasks[label], completed=seen, more=f"loss {loss:.4f}")
        now = time.monotonic()
        if not self.console.is_terminal and (now - self.said > EVERY or seen >= total):
            took = now - self.began
            left = f", about {took * (total - seen) / seen:.0f} s left" if took > 5 else ""
            self.note(f"{label}: {seen:,} of {total:,} images, loss {loss:.4f}{left}")
            self.said = now
        if seen >= total:
            self.bars.remove_task(self.tasks.pop(label))

    def training(self, name: str, images: int) -> None:
        """A training that somebody else does, and of which nothing is heard before its end."""
        label = f"training {name} on up to {images:,} images"
        if self.console.is_terminal:
            self.tasks[name] = self.bars.add_task(label, total=None, more="")
        else:
            self.note(label)

    def trained(self, name: str, said: str) -> None:
        if name in self.tasks:
            self.bars.remove_task(self.tasks.pop(name))
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
