"""Run a plan: draw the chunks of its cells, measure, append rows. An interrupted run is resumed by running
it again.
"""

import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from filelock import FileLock, Timeout

from bench import registry, store
from bench.diffusion.execution import slow
from bench.job import Cell, Chunk, Readied
from bench.progress import Progress
from bench.reporting.labels import labels_of
from bench.reporting.tables import Reading, Table, tables
from bench.row import Row
from bench.running import tasks
from bench.running.chunks import read_chunk, write_chunk
from bench.running.executors import Executor, Lost
from bench.running.measuring import error_row, floor, floor_key, measured
from bench.running.plan import Plan, Request
from bench.running.planning import by_model, expected, stages
from bench.running.sites import ahead, away, executor_of
from bench.running.tasks import Failure, Task, Training, sentence
from bench.selection import Selection

SELECTORS = ("category", "leaf", "survey", "plugin_files")


def run(*methods: str, **settings):
    """`bench run` from Python: run("ddim", data="digits", nfe=(5, 10)) -> the rows as a data frame."""
    chosen = {name: settings.pop(name) for name in SELECTORS if name in settings}
    with Progress() as progress:
        plan = carried_out(Request(Selection(methods, **chosen), **settings), progress)
    frame = store.frame(plan.site.results)
    return frame[frame.key.isin(keys_of(plan))].reset_index(drop=True)


def carried_out(request: Request, progress: Progress) -> Plan:
    """The whole plan of a request, which has been run."""
    if why := slow(request.precision, request.device):
        progress.note(why)
    for plan in stages(request, progress):
        execute(plan, progress)
    if names := edited(plan):
        whose = "their files' texts" if len(names) > 1 else "its file's text"
        progress.note(
            f"{', '.join(names)}: measured here before {whose} changed; --again measures anew, and so does "
            "a new `version` wherever there are such numbers"
        )
    return plan


def edited(plan: Plan) -> list[str]:
    """The methods some of whose cells were answered by another text of their plugin than today's."""
    before = store.sources(plan.site.results)
    return sorted({cell.method for cell in plan.cells if before.get(cell.key) not in (None, "", cell.source)})


def execute(plan: Plan, progress: Progress) -> None:
    """Run what is left to do and append its rows; failures become rows that say why. Cells that another run
    holds are left to it.
    """
    if plan.cells:  # else there is no protocol that the floor would be of
        floor(plan, progress.report)
    if not plan.todo:
        return
    with closing(executor_of(plan)) as executor:
        deferred = Work(plan, progress, executor).through(plan.todo, wait=False)
        if deferred:
            note = "cells are being drawn by another run on this folder; waiting for them"
            progress.note(f"{len(deferred)} {note}")
            Work(plan, progress, executor).through(deferred, wait=True)


@dataclass
class Drawn:
    """A cell in flight: its lock, what is known of its model, the chunks that are there, and the seconds that
    they took.
    """

    lock: FileLock
    readied: Readied | None = None
    chunks: dict[int, Chunk] = field(default_factory=dict)
    seconds: float = 0.0


class Work:
    """The cells of a plan on their way through the executor: those whose model is there are drawn first, and
    the others as soon as it is.
    """

    def __init__(self, plan: Plan, progress: Progress, executor: Executor):
        self.plan, self.progress, self.executor = plan, progress, executor
        self.drawn: dict[str, Drawn] = {}

    def through(self, cells: Sequence[Cell], wait: bool) -> list[Cell]:
        """Draw and measure these cells; returns those that another run holds. With `wait` they are waited
        for.
        """
        self.deferred: list[Cell] = []
        self.progress.cells(len(cells))
        self.ready = deque(cell for cell in cells if cell.images is None)
        site = self.plan.site
        self.untrained = {Training(waiting[0], site): waiting for waiting in by_model(cells, site)}
        function = tasks.work_away if away(self.plan) else tasks.work
        try:
            hear = lambda training, *words: self.progress.report(*words)
            for task, result in self.executor.map(function, self.tasks(wait), ahead(self.plan), hear):
                if isinstance(task, Training):
                    self.trained(task, result)
                else:
                    self.settle(task, result)
        finally:
            for drawn in self.drawn.values():
                drawn.lock.release()
        return self.deferred

    def tasks(self, wait: bool) -> Iterator[Task | Training | None]:
        """Chunks as long as there are cells that can be drawn, and then a training, until nothing is left."""
        trainings = iter(list(self.untrained))
        while self.ready or self.untrained:
            if self.ready:
                yield from self.chunks(self.ready.popleft(), wait)
            elif training := next(trainings, None):
                self.progress.training(training.name, training.cell.images)
                yield training
            else:
                yield None

    def trained(self, training: Training, said: str | Lost) -> None:
        """A training came to its end, well or not; a failure comes again with each of its cells."""
        if isinstance(said, Lost):
            said = f"{training.name} could not be trained: {said.sentence}"
        self.ready.extend(self.untrained.pop(training))
        self.progress.trained(training.name, f"{said}  ({len(self.untrained)} trainings to go)")

    def chunks(self, cell: Cell, wait: bool) -> Iterator[Task | None]:
        """The chunks of a cell that are not there yet, if it is ours to draw. An adaptive method's first one
        finds the tolerance of the others, which wait for it.
        """
        while wait and self.drawn and self.held_elsewhere(cell):
            yield None  # two runs that hold what the other waits for would wait for ever
        if not self.begin(cell, wait):
            return
        for number in cell.chunks:
            while number and self.adaptive(cell) and self.alive(cell) and not self.known(cell):
                yield None
            if not self.alive(cell):
                return
            if found := read_chunk(self.plan.site.chunk_file(cell, number), cell.source):
                self.take(cell, found[0])
                continue
            drawn, limit = self.drawn[cell.key], self.plan.request.time_limit
            tolerance = drawn.readied and drawn.readied.tolerance
            left = None if limit is None else max(0.0, limit - drawn.seconds)
            yield Task(cell, number, self.plan.site, tolerance, left)

    def begin(self, cell: Cell, wait: bool) -> bool:
        """Take hold of a cell; False where nothing is left for us to draw."""
        lock = self.lock_of(cell)
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
        return True

    def lock_of(self, cell: Cell) -> FileLock:
        work = self.plan.site.results / "work"
        work.mkdir(parents=True, exist_ok=True)
        return FileLock(work / f"{cell.key}.lock")

    def held_elsewhere(self, cell: Cell) -> bool:
        try:
            with self.lock_of(cell).acquire(timeout=0):
                return False
        except Timeout:
            return True

    def adaptive(self, cell: Cell) -> bool:
        known = registry.plugins(self.plan.site.plugin_files)
        return cell.ask == "sample" and known[cell.method].declared.get("adaptive", False)

    def alive(self, cell: Cell) -> bool:
        """Whether a cell is still to be drawn: it has neither failed nor been measured."""
        return cell.key in self.drawn

    def known(self, cell: Cell) -> Readied | None:
        return self.drawn[cell.key].readied

    def answered(self, cell: Cell) -> bool:
        done = store.answered(self.plan.site.results)
        return all((cell.key, name) in done for name in expected(self.plan, cell))

    def settle(self, task: Task, result: Chunk | bytes | Failure | Lost) -> None:
        """A task came to its end, or to one."""
        cell = task.cell
        if not self.alive(cell):
            return  # it failed by another chunk
        if isinstance(result, bytes):  # drawn on another machine
            path = self.plan.site.chunk_file(cell, task.number)
            write_chunk(path, result)
            found = read_chunk(path, cell.source)
            result = found[0] if found else Lost("a chunk was damaged on its way; run again to draw it anew")
        if isinstance(result, Chunk):
            self.take(cell, result)
        else:
            self.fail(cell, result.sentence, getattr(result, "readied", None))

    def take(self, cell: Cell, chunk: Chunk) -> None:
        """A chunk has been drawn; after the last one the cell is measured."""
        drawn, limit = self.drawn[cell.key], self.plan.request.time_limit
        drawn.chunks[chunk.number] = chunk
        drawn.seconds += chunk.seconds
        drawn.readied = drawn.readied or chunk.readied
        self.progress.advanced(cell, len(drawn.chunks), len(cell.chunks))
        if limit is not None and drawn.seconds > limit:
            self.fail(cell, f"it took {drawn.seconds:.0f} s, more than its time limit of {limit:g} s")
            return
        if len(drawn.chunks) < len(cell.chunks):
            return
        chunks = [drawn.chunks[number] for number in cell.chunks]
        try:
            rows = measured(self.plan, cell, chunks, chunks[0].readied)
        except OSError:  # the disk's
            raise
        except Exception as error:  # samples may be anything at all
            self.fail(cell, sentence(error))
            return
        done = set() if self.plan.request.again else store.answered(self.plan.site.results)
        new = [row for row in rows if (row.key, row.metric) not in done]  # a kill may have left some of them
        store.append(self.plan.site.results, new)
        self.let_go(cell, ", ".join(f"{row.metric} {row.value:.4g}" for row in rows))

    def fail(self, cell: Cell, why: str, readied: Readied | None = None) -> None:
        """A row that says why there is no number; it answers nothing, so the next run tries again."""
        readied = readied or self.drawn[cell.key].readied
        store.append(self.plan.site.results, [error_row(self.plan, cell, why, readied)])
        self.let_go(cell, f"failed: {why}")

    def let_go(self, cell: Cell, said: str) -> None:
        shutil.rmtree(self.plan.site.chunk_file(cell, 0).parent, ignore_errors=True)
        self.drawn.pop(cell.key).lock.release()
        self.progress.finished(cell, said)


@dataclass(frozen=True)
class Results:
    """What a plan's cells were answered with."""

    tables: list[Table]
    baselines: frozenset[str]  # the labels of methods that are there to compare with
    failed: list[Row]


def keys_of(plan: Plan) -> set[str]:
    return {cell.key for cell in plan.cells} | {floor_key(plan)}


def results(plan: Plan) -> Results:
    """The tables of a plan's cells, from the results folder."""
    keys = keys_of(plan)
    known = registry.plugins(plan.site.plugin_files)
    rows = [row for row in store.read(plan.site.results) if row.key in keys]
    baselines = {label for label, row in zip(labels_of(rows, known), rows) if row.method in plan.baselines}
    found = tables(rows, Reading(plan.site.results, known, everyone=True))
    return Results(found, frozenset(baselines), [row for row in rows if row.error])
