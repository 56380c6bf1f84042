"""Workers for `executors`: processes of this machine, and actors of a Ray cluster.

A crew hires hands. A hand is one worker, which says first that it is up and then answers one task after the
other; whatever it does or suffers is learnt from its `answers`: a list, or `Died`.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from signal import SIG_BLOCK, SIG_IGN, SIG_SETMASK, SIGINT, SIGKILL, Signals, pthread_sigmask, signal
from types import SimpleNamespace
from typing import Any, Protocol

import click

from bench.cache import Shelf, cache_dir

UP = "up"  # what a worker says before it works
IMPORTED = ["bench.running.tasks", "diffusers.models.unets.unet_2d"]  # before workers are forked
LOOK = 2.0  # seconds between two looks at the nodes of a cluster
ORPHANED = 255  # the exit code that multiprocessing makes up where a fork server is no more
KNOCK = 5.0  # seconds in which the address of a cluster must answer
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
        ended = self.process.exitcode not in (None, ORPHANED)
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


class Actors:
    """Actors on the nodes of a Ray cluster. Their functions take a task and a lender: this machine's cache.

    cpus, gpus: what each takes of its node. most: how many there are at most. Raises click.ClickException
    where Ray is not installed, no cluster is reachable, or no node has room for one of them.
    """

    hint = "taxobench must be installed alike on every node"

    def __init__(self, address: str | None, cpus: float, gpus: float, most: int | None):
        self.ray, self.ours, home = connected(address)
        self.needs, self.most = {"CPU": cpus, "GPU": gpus}, most
        self.looked, self.seen = 0.0, 0
        if not self.room():
            self.close()
            needs = f"{cpus:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")
            raise click.ClickException(f"no node of the Ray cluster has {needs}: ask for less, or add one.")
        for_ever = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": home}
        self.lender = self.ray.remote(**for_ever)(Shelf).remote(str(cache_dir()))
        self.labourer = self.ray.remote(num_cpus=cpus, num_gpus=gpus)(Labourer)

    def room(self) -> int:
        """As many as fit on the nodes that are alive now."""
        if (now := time.monotonic()) - self.looked > LOOK or not self.looked:
            have = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
            fit = [min(int(one.get(k, 0) // n) for k, n in self.needs.items() if n) for one in have]
            self.looked, self.seen = now, sum(fit)
        return min(self.seen, self.most or self.seen)

    def hire(self, place: int, function: Callable) -> Hand:
        return Actor(self.ray, self.labourer.remote(self.lender), function)

    def wait(self, hands: Sequence[Hand], seconds: float | None) -> None:
        refs = [hand.refs[0] for hand in hands if hand.refs]
        self.ray.wait(refs, timeout=LOOK if seconds is None else min(seconds, LOOK))

    def close(self) -> None:
        if self.ours:
            self.ray.shutdown()
        elif hasattr(self, "lender"):
            self.ray.kill(self.lender)


class Actor:
    """An actor that answers in the order in which it was asked."""

    def __init__(self, ray: Any, labourer: Any, function: Callable):
        self.ray, self.labourer = ray, labourer
        self.refs = [labourer.up.remote(function)]

    def send(self, function: Callable, task: object) -> None:
        self.refs.append(self.labourer.answer.remote(function, task))

    def answers(self) -> list:
        found = []
        while self.refs and self.ray.wait(self.refs[:1], timeout=0)[0]:
            try:
                found.append(self.ray.get(self.refs[0]))
            except self.ray.exceptions.RayError as error:
                if found:
                    return found  # the rest is for the next time
                raise Died(str(error).strip().splitlines()[0]) from None
            self.refs.pop(0)
        return found

    def kill(self) -> None:
        self.ray.kill(self.labourer)


class Labourer:
    """What an actor is: a process on some node, which answers, and borrows what its cache lacks."""

    def __init__(self, lender: Any):
        import ray

        self.lender = SimpleNamespace(
            fetch=lambda name: ray.get(lender.fetch.remote(name)),
            keep=lambda *words: ray.get(lender.keep.remote(*words)),
        )

    def up(self, _: Callable) -> str:
        return UP

    def answer(self, function: Callable, task: object) -> tuple[bool, object]:
        return answered(function, task, self.lender)


def connected(address: str | None) -> tuple[Any, bool, Any]:
    """Ray, whether it was we who connected, and where an actor must be to be on this node."""
    try:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
    except ImportError:
        raise click.ClickException("Ray is not installed: pip install 'taxobench[ray]'.") from None
    if (address or "").startswith("ray://"):
        raise click.BadParameter(
            "a run drives Ray from a node of the cluster: give HOST:PORT, and not ray://."
        )
    ours = not ray.is_initialized()
    if ours:
        try:
            knock_at(address)
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
        except (OSError, ValueError, RuntimeError, OverflowError) as error:
            why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            where = address or "this machine"
            raise click.ClickException(f"no Ray cluster answers at {where}: {why}") from None
    return ray, ours, NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def knock_at(address: str | None) -> None:
    """`OSError` where nothing listens at HOST:PORT, for which Ray would wait minutes."""
    host, colon, port = (address or "").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), KNOCK).close()
