"""Run a plan: draw the chunks of its cells, measure, append rows. An interrupted run is resumed by running
it again.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import click
from filelock import FileLock, Timeout

from bench import registry, store, worker
from bench.calibration import calibrate
from bench.executors import mapped
from bench.job import Cell, Chunk
from bench.labels import identity, label_of
from bench.measuring import Readied, error_row, floor, floor_key, measured, start_of
from bench.plan import Plan, Request, expected, planned, workers
from bench.progress import Progress
from bench.selection import Selection
from bench.tables import Reading, Table, tables
from bench.worker import Failure, Task

SELECTORS = ("category", "leaf", "survey", "plugin_files")


def run(*methods: str, **settings):
    """`bench run` from Python: run("ddim", data="digits", nfe=(5, 10)) -> the rows as a data frame."""
    chosen = {name: settings.pop(name) for name in SELECTORS if name in settings}
    with Progress() as progress:
        plan = planned(Request(Selection(methods, **chosen), **settings), progress)
        execute(plan, progress)
    frame = store.frame(plan.site.results)
    return frame[frame.key.isin(keys_of(plan))].reset_index(drop=True)


def execute(plan: Plan, progress: Progress) -> None:
    """Run what is left to do and append its rows; failures become rows that say why. Cells that another run
    holds are left to it.
    """
    floor(plan)
    train(plan, progress)
    deferred = Work(plan, progress).through(plan.todo, wait=False)
    if deferred:
        progress.note(
            f"{len(deferred)} cells are being drawn by another run on this folder; waiting for them"
        )
        Work(plan, progress).through(deferred, wait=True)


def train(plan: Plan, progress: Progress) -> None:
    """Train what the cells left to do need, before anything is drawn: each model once, several abreast."""
    needed = {}
    for cell in plan.todo:
        if cell.images is not None:
            budget = cell.nfe if worker.trained_per_nfe(cell, plan.site) else None
            needed.setdefault((cell.method, cell.parameters, cell.train_seed, budget), cell)
    tasks = [Task(cell, 0, plan.site) for cell in needed.values()]
    for left, (_, said) in enumerate(mapped(worker.train, tasks, min(workers(plan), len(tasks) or 1)), 1):
        progress.note(f"{said}  ({len(tasks) - left} trainings to go)")


@dataclass
class Drawn:
    """A cell in flight: its lock, what is known of its model, and the chunks that are there."""

    lock: FileLock
    readied: Readied | None = None
    chunks: dict[int, Chunk] = field(default_factory=dict)
    failed: bool = False


class Work:
    """The cells of a plan on their way through the executor."""

    def __init__(self, plan: Plan, progress: Progress):
        self.plan, self.progress = plan, progress
        self.drawn: dict[str, Drawn] = {}

    def through(self, cells: Sequence[Cell], wait: bool) -> list[Cell]:
        """Draw and measure these cells; returns those that another run holds. With `wait` they are waited
        for.
        """
        self.deferred: list[Cell] = []
        self.progress.cells(len(cells))
        try:
            for task, result in mapped(worker.draw, self.tasks(cells, wait), workers(self.plan)):
                if isinstance(result, Failure):
                    self.fail(task.cell, result.sentence)
                else:
                    self.take(task.cell, result)
        finally:
            for drawn in self.drawn.values():
                drawn.lock.release()
        return self.deferred

    def tasks(self, cells: Sequence[Cell], wait: bool) -> Iterator[Task]:
        """The chunks of the cells that are ours to draw, each cell's model made ready first."""
        for cell in cells:
            if not self.begin(cell, wait):
                continue
            for number in cell.chunks:
                drawn = self.drawn.get(cell.key)
                if drawn is None or drawn.failed:
                    break
                yield Task(cell, number, self.plan.site, drawn.readied.tolerance)

    def begin(self, cell: Cell, wait: bool) -> bool:
        """Take hold of a cell and make its model ready; False where nothing is left for us to draw."""
        work = self.plan.site.results / "work"
        work.mkdir(parents=True, exist_ok=True)
        lock = FileLock(work / f"{cell.key}.lock")
        try:
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            self.deferred.append(cell)
            return False
        if not self.plan.request.again and self.answered(cell):
            lock.release()
            self.progress.finished(cell, "measured by another run")
            return False
        self.drawn[cell.key] = Drawn(lock)
        self.progress.started(cell)
        try:
            asked = worker.ready(cell, self.plan.site, self.progress.report)
            if worker.uncounted(asked.model):
                raise ValueError("its model has no counted network, so its NFE cannot be measured")
            readied = Readied(asked.card, start_of(asked))
            if asked.method.adaptive and cell.ask == "sample":
                readied = Readied(asked.card, start_of(asked), *calibrate(asked, cell, self.plan.site))
            self.drawn[cell.key].readied = readied
        except Exception as error:
            self.fail(cell, sentence(error))
            return False
        return True

    def answered(self, cell: Cell) -> bool:
        done = store.answered(self.plan.site.results)
        return all((cell.key, name) in done for name in expected(self.plan, cell))

    def take(self, cell: Cell, chunk: Chunk) -> None:
        """A chunk has been drawn; after the last one the cell is measured."""
        drawn = self.drawn[cell.key]
        drawn.chunks[chunk.number] = chunk
        self.progress.advanced(cell, len(drawn.chunks), len(cell.chunks))
        if drawn.failed or len(drawn.chunks) < len(cell.chunks):
            return
        try:
            rows = measured(self.plan, cell, list(drawn.chunks.values()), drawn.readied)
        except (ValueError, FloatingPointError, click.ClickException) as error:
            self.fail(cell, sentence(error))
            return
        store.append(self.plan.site.results, rows)
        self.let_go(cell, ", ".join(f"{row.metric} {row.value:.4g}" for row in rows))

    def fail(self, cell: Cell, why: str) -> None:
        """A row that says why there is no number; it answers nothing, so the next run tries again."""
        drawn = self.drawn.get(cell.key)
        if drawn is None or drawn.failed:
            return
        drawn.failed = True
        store.append(self.plan.site.results, [error_row(self.plan, cell, why, drawn.readied)])
        self.let_go(cell, f"failed: {why}")

    def let_go(self, cell: Cell, said: str) -> None:
        shutil.rmtree(self.plan.site.chunk_file(cell, 0).parent, ignore_errors=True)
        self.drawn.pop(cell.key).lock.release()
        self.progress.finished(cell, said)


def sentence(error: Exception) -> str:
    """An error as one line for a person."""
    if isinstance(error, click.ClickException):
        return error.message
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"


@dataclass(frozen=True)
class Results:
    """What a plan's cells were answered with."""

    tables: list[Table]
    baselines: frozenset[str]  # the labels of methods that are there to compare with
    failed: list[dict]


def keys_of(plan: Plan) -> set[str]:
    return {cell.key for cell in plan.cells} | {floor_key(plan)}


def results(plan: Plan) -> Results:
    """The tables of a plan's cells, from the results folder."""
    keys = keys_of(plan)
    known = registry.plugins(plan.site.plugin_files)
    rows = [row for row in store.read(plan.site.results) if row["key"] in keys]
    labels = label_of(rows, known)
    baselines = {labels[identity(row)] for row in rows if row["method"] in plan.baselines}
    found = tables(rows, Reading(plan.site.results, known, everyone=True))
    return Results(found, frozenset(baselines), [row for row in rows if row["error"]])
