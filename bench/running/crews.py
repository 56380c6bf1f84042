"""Workers for `executors`: what they are, and the processes of this machine.

A crew hires hands. A hand is one worker, which says first that it is up and then answers one task after the
other; whatever it does or suffers is learnt from its `answers`: a list, or `Died`.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from signal import SIG_BLOCK, SIG_IGN, SIG_SETMASK, SIGINT, SIGKILL, Signals, pthread_sigmask, signal
from typing import Any, Protocol

UP = "up"  # what a worker says before it works
IMPORTED = ["bench.running.tasks", "diffusers.models.unets.unet_2d"]  # before workers are forked
ORPHANED = 255  # the exit code that multiprocessing makes up where a fork server is no more
HEARD: ContextVar[Callable[..., None] | None] = ContextVar("who hears of a task before its end", default=None)


class Died(Exception):
    """A worker is no more; the message says how it ended."""


@dataclass(frozen=True)
class Told:
    """What a worker says of its task before that is done."""

    words: tuple


@contextmanager
def heard_by(hear: Callable[..., None] | None) -> Iterator[None]:
    """Let `hear` hear what is told of a task inside the block."""
    token = HEARD.set(hear)
    try:
        yield
    finally:
        HEARD.reset(token)


class Hand(Protocol):
    """One worker. An answer is UP, what is Told, or whether a function came to its end, and what it gave
    or raised.
    """

    def send(self, function: Callable, task: object) -> None: ...

    def answers(self) -> list: ...

    def kill(self) -> None: ...


class Crew(Protocol):
    """Where workers come from: as many as there is `room` for, each with a place of its own, and with the
    function that it will be asked first. `hint` says what to do where they die before they have begun.
    """

    hint: str

    def room(self) -> int: ...

    def hire(self, place: int, function: Callable) -> Hand: ...

    def wait(self, hands: Sequence[Hand], seconds: float | None) -> None: ...

    def close(self) -> None: ...


def answered(function: Callable, *words: object) -> tuple[bool, object]:
    """Whether the function came to its end, and what it gave or raised."""
    try:
        return True, function(*words)
    except Exception as error:
        return False, error


class Processes:
    """Processes of this machine, each at the end of a pipe of its own. `settings` are environment variables
    of theirs, by place and in turn. With `gpu` each is started anew: CUDA does not bear the fork of a process
    that has asked for it, as diffusers does where it is imported.
    """

    hint = 'give --workers 1, or call bench.run from under `if __name__ == "__main__":`'

    def __init__(self, size: int, settings: Sequence[dict[str, str]] = ({},), gpu: bool = False):
        self.size, self.settings, self.gpu = size, settings, gpu

    def room(self) -> int:
        return self.size

    def hire(self, place: int, function: Callable) -> Hand:
        environment = os.environ | self.settings[place % len(self.settings)]
        return Process(function, environment, "spawn" if self.gpu else begun())

    def wait(self, hands: Sequence[Hand], seconds: float | None) -> None:
        from multiprocessing.connection import wait

        wait([end for hand in hands for end in hand.ends], seconds)

    def close(self) -> None:
        pass


class Process:
    """A process that serves the other end of a pipe, in this environment, and `start`s as multiprocessing
    names it. What the function imports comes with it, before the process is up and on the clock.
    """

    def __init__(self, function: Callable, environment: dict[str, str], start: str):
        import multiprocessing

        self.pipe, theirs = multiprocessing.Pipe()
        self.gone = False  # whether its pipe has an end
        words = {"target": serve, "args": (theirs, function, environment)}
        self.process = multiprocessing.get_context(start).Process(**words)
        try:
            self.process.start()
        except (EOFError, OSError):  # the fork server is no more
            self.process = multiprocessing.get_context("spawn").Process(**words)
            self.process.start()
        theirs.close()

    def send(self, function: Callable, task: object) -> None:
        with suppress(OSError):  # it is dead, and `answers` will say so
            self.pipe.send((function, task))

    @property
    def orphaned(self) -> bool:
        """Whether the fork server that tells of its end is no more. It may well be alive: its pipe tells."""
        return self.process.exitcode == ORPHANED

    @property
    def ends(self) -> list:
        """What to wait for to hear of it."""
        return [self.pipe] if self.orphaned else [self.pipe, self.process.sentinel]

    def answers(self) -> list:
        # asked before the pipe, where its last answer may lie
        ended = self.process.exitcode is not None and not self.orphaned
        found = []
        try:
            while self.pipe.poll():
                found.append(self.pipe.recv())
        except (EOFError, OSError):
            ended = self.gone = True
        if ended and not found:
            self.process.join(5)
            raise Died(ending(self.process.exitcode))
        return found

    def kill(self) -> None:
        if self.orphaned and not self.gone:  # which multiprocessing takes for dead
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, SIGKILL)
        self.process.kill()
        self.process.join(5)
        self.pipe.close()


def begun() -> str:
    """How workers of the CPU start, by multiprocessing's name. On Linux a fork server begins, if it has not:
    it imports once what they need and forks them, without the threads of this process. The sooner it begins,
    the more of its importing is done beside this process's own.
    """
    if sys.platform != "linux":  # macOS's libraries do not bear a fork
        return "spawn"
    from multiprocessing import forkserver

    forkserver.set_forkserver_preload(IMPORTED)
    before = pthread_sigmask(SIG_BLOCK, [SIGINT])  # inherited: a keyboard interrupt is this process's
    try:
        forkserver.ensure_running()
    finally:
        pthread_sigmask(SIG_SETMASK, before)
    return "forkserver"


def serve(pipe: Any, _: Callable, environment: dict[str, str]) -> None:
    """A worker's life: it answers what comes through the pipe, and ends with whoever sends it."""
    import multiprocessing

    os.environ.clear()  # a fork server's, of when it began
    os.environ.update(environment)
    signal(SIGINT, SIG_IGN)  # a keyboard interrupt is the run's, which ends its workers
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    pipe.send(UP)
    while True:
        try:
            function, task = pipe.recv()
        except EOFError:
            return
        with heard_by(lambda *words: pipe.send(Told(words))):
            answer = answered(function, task)
        try:
            pipe.send(answer)
        except (TypeError, AttributeError, ValueError) as error:  # it cannot be pickled
            pipe.send((False, RuntimeError(f"{answer[1]!r:.200} ({error})")))


def ending(code: int | None) -> str:
    """How a process ended, in words."""
    if code is None or code >= 0:
        return f"exit code {code}"
    name = Signals(-code).name if -code in set(Signals) else f"signal {-code}"
    return f"killed by {name}" + (", as when memory runs out" if name == "SIGKILL" else "")
