"""Mapping functions over tasks: in this process, in several, or (extra `ray`) over a cluster. Results come in
any order; a worker that dies or takes too long costs its task at most, never the run.

Tasks come from an iterator, which is asked for the next one when somebody is free for it. It may give None:
nothing can be begun before another result is there. A task's attribute `seconds`, if it has one that is not
None, is what it may take; where `alone` is true, no other waits at its worker. What functions tell of a task
before its end, by `crews.HEARD`, a caller's `hear` is called with, after the task.
"""

import atexit
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

import click

from bench.running.actors import Actors
from bench.running.crews import UP, Crew, Died, Hand, Processes, Told, heard_by

T, R = TypeVar("T"), TypeVar("R")
Hear = Callable[..., None]
END = object()
DEATHS = 2  # of workers on one task, after which it is given up
STILLBORN = 4  # workers in a row that die before they are up, after which the run is
TICK = 0.2  # seconds between two looks at the clock where tasks are limited


@dataclass(frozen=True)
class Lost:
    """Why a task has no result, in one sentence."""

    sentence: str


class Executor(Protocol):
    """Who does the work; `ahead` tasks wait at each worker. Raises what the function raises."""

    def map(
        self, function: Callable[[T], R], tasks: Iterable[T | None], ahead: int = 0, hear: Hear | None = None
    ) -> Iterator[tuple[T, R | Lost]]: ...

    def close(self) -> None: ...


class Here:
    """One task after the other in this process, which no limit and no death can be kept from."""

    def map(
        self, function: Callable[[T], R], tasks: Iterable[T | None], ahead: int = 0, hear: Hear | None = None
    ) -> Iterator[tuple[T, R]]:
        for task in tasks:
            if task is not None:
                with heard_by(hear and partial(hear, task)):
                    result = function(task)
                yield task, result

    def close(self) -> None:
        pass


def local(
    workers: int, limited: bool = False, settings: Sequence[dict[str, str]] = ({},), gpu: bool = False
) -> Executor:
    """In as many processes as asked for; one is this process itself, unless tasks are limited or done by a
    GPU. `settings` are environment variables of the workers, in turn.
    """
    apart = workers > 1 or limited or gpu
    return Pool(Processes(workers, settings, gpu)) if apart else Here()


def over_ray(address: str | None, cpus: float, gpus: float, most: int | None) -> Executor:
    """On a Ray cluster, each task taking so many CPUs and GPUs of its node; functions take a lender besides.
    Nodes die more easily than processes, so a task may lose more workers before it is given up.
    """
    return Pool(Actors(address, cpus, gpus, most), deaths=2 * DEATHS)


def mapped(function: Callable[[T], R], tasks: Iterable[T], workers: int) -> Iterator[tuple[T, R | Lost]]:
    """`map` by local workers that are there for it alone."""
    with closing(local(workers)) as executor:
        yield from executor.map(function, tasks)


@dataclass
class Job:
    """A task on its way, and how many workers have died of it."""

    task: object
    deaths: int = 0


@dataclass
class Worker:
    """A hand with its jobs, of which it works on the first; they are sent once it is up."""

    hand: Hand
    place: int
    jobs: deque[Job] = field(default_factory=deque)
    began: float | None = None  # when it began with the first, by the monotonic clock; None until it is up

    @property
    def limit(self) -> float | None:
        return getattr(self.jobs[0].task, "seconds", None) if self.jobs else None

    @property
    def alone(self) -> bool:
        """Whether it has a job behind which none may wait."""
        return any(getattr(job.task, "alone", False) for job in self.jobs)

    @property
    def over(self) -> bool:
        """Whether its first job has taken longer than it may."""
        limit = self.limit
        return None not in (limit, self.began) and time.monotonic() - self.began > limit


class Pool:
    """Workers that are hired as they are needed and replaced when they die."""

    def __init__(self, crew: Crew, deaths: int = DEATHS):
        self.crew, self.deaths = crew, deaths
        self.workers: list[Worker] = []
        self.again: deque[Job] = deque()  # jobs whose workers died of something else
        self.hear: Hear | None = None
        self.stillborn = 0
        atexit.register(self.close)

    def map(
        self, function: Callable[[T], R], tasks: Iterable[T | None], ahead: int = 0, hear: Hear | None = None
    ) -> Iterator[tuple[T, R | Lost]]:
        """Every task with its result or why it is lost."""
        tasks, self.hear = iter(tasks), hear
        while True:
            more = self.hand_out(function, tasks, 1 + ahead)
            busy = [worker for worker in self.workers if worker.jobs]
            if busy:
                limited = any(worker.limit is not None for worker in busy)
                self.crew.wait([worker.hand for worker in busy], TICK if limited else None)
                for worker in list(self.workers):
                    yield from self.results(worker, function)
            elif not more and not self.again:
                return
            else:
                time.sleep(TICK)  # nobody can be hired now, or nothing can be begun

    def hand_out(self, function: Callable, tasks: Iterator, depth: int) -> bool:
        """Give jobs to whoever has room, least busy first; False where there are no more tasks."""
        while True:
            free = [worker for worker in self.workers if len(worker.jobs) < depth and not worker.alone]
            worker = min(free, key=lambda worker: len(worker.jobs), default=None)
            hiring = (worker is None or worker.jobs) and len(self.workers) < self.crew.room()
            if not hiring and worker is None:
                return True
            if self.again:
                job = self.again.popleft()
            elif (task := next(tasks, END)) is END:
                self.level(function)
                return False
            elif task is None:
                return True
            else:
                job = Job(task)
            self.give(self.hired(function) if hiring else worker, function, job)

    def level(self, function: Callable) -> None:
        """Let the idle do what waits for workers that are not up yet, and may not be for long."""
        idle = [worker for worker in self.workers if worker.began is not None and not worker.jobs]
        waiting = [worker for worker in self.workers if worker.began is None and worker.jobs]
        for worker, other in zip(idle, waiting):
            self.give(worker, function, other.jobs.pop())

    def give(self, worker: Worker, function: Callable, job: Job) -> None:
        if worker.began is not None:
            worker.hand.send(function, job.task)
            worker.began = worker.began if worker.jobs else time.monotonic()
        worker.jobs.append(job)

    def hired(self, function: Callable) -> Worker:
        """A new worker, at the first place that is free."""
        taken = {worker.place for worker in self.workers}
        place = next(i for i in range(len(taken) + 1) if i not in taken)
        self.workers.append(Worker(self.crew.hire(place, function), place))
        return self.workers[-1]

    def results(self, worker: Worker, function: Callable) -> Iterator[tuple]:
        """What came of a worker since it was last asked."""
        try:
            answers = worker.hand.answers()
        except Died as death:
            yield from self.bury(worker, str(death))
            return
        for answer in answers:
            if isinstance(answer, Told):
                if self.hear:
                    self.hear(worker.jobs[0].task, *answer.words)
                continue
            worker.began = time.monotonic()
            if answer == UP:
                self.stillborn = 0
                for job in worker.jobs:
                    worker.hand.send(function, job.task)
                continue
            sound, result = answer
            if not sound:
                raise result
            yield worker.jobs.popleft().task, result
        if not answers and worker.over:  # with answers, time has passed since, and another may lie there
            seconds, job = worker.limit, worker.jobs.popleft()
            self.dismiss(worker)
            yield job.task, Lost(f"it was stopped after {seconds:.0f} s, the end of its time limit")

    def bury(self, worker: Worker, how: str) -> Iterator[tuple]:
        """A worker died: its jobs are done by others, the one it worked on not for ever."""
        if worker.began is None:
            self.stillborn += 1
            if self.stillborn >= STILLBORN:
                raise click.ClickException(f"workers die before they have begun ({how}): {self.crew.hint}.")
        elif worker.jobs:
            worker.jobs[0].deaths += 1
            if worker.jobs[0].deaths >= self.deaths:
                why = f"its worker died {self.deaths} times ({how})"
                yield worker.jobs.popleft().task, Lost(why)
        self.dismiss(worker)

    def dismiss(self, worker: Worker) -> None:
        """Part with a worker, whatever it does; its jobs are for others."""
        worker.hand.kill()
        self.workers.remove(worker)
        self.again.extend(worker.jobs)

    def close(self) -> None:
        """End all workers."""
        atexit.unregister(self.close)
        while self.workers:
            self.dismiss(self.workers[-1])
        self.crew.close()
