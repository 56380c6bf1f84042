"""A process that has imported everything and runs the command line in forked children, so that runs can be
killed by the hundred: each begins as a fresh process would, without the seconds that importing takes.

`Nursery` is the tests' side. The other side, this file run as a program, reads orders as lines of JSON, and
answers each with its children's process ids and, when all have ended, with their exit codes.
"""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).absolute().parents[2]
FEW = 20  # up to so many kills (--kills) are the short version of the suite
WRITES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link"}  # audit events
CHANGES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Order:
    """Command lines that one child runs one after the other, as far as they succeed; `abreast` children do
    the same. A child dies at its `crash_at`-th change to a file below `watched`.
    """

    commands: Sequence[Sequence[str]]
    cache: str  # the cache folder
    output: str  # the file that takes what is printed; `output`.changes counts the changes
    abreast: int = 1
    watched: str = ""
    crash_at: int = 0


class Nursery:
    """The process that forks; a context manager that leaves no child behind."""

    def __enter__(self) -> "Nursery":
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        self.groups: list[int] = []
        return self

    def __exit__(self, *_) -> None:
        if self.groups:
            self.kill()
            self.wait()
        self.process.stdin.close()
        self.process.wait(20)

    def start(self, order: Order) -> list[int]:
        """Begin what is ordered; the children's ids, each the leader of a process group."""
        self.process.stdin.write(json.dumps(asdict(order)).encode() + b"\n")
        self.groups = json.loads(self.process.stdout.readline())
        return self.groups

    def wait(self, seconds: float | None = None) -> list[int] | None:
        """The exit codes (-9 for one that was killed), or None if some still run after so many seconds.
        Workers that outlived their run go with it: later its number may be another's.
        """
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        if not ready:
            return None
        codes = json.loads(self.process.stdout.readline())
        self.kill()
        self.groups = []
        return codes

    def kill(self, workers: bool = True) -> None:
        """Kill -9: every child with its workers, or the children alone."""
        for group in self.groups:
            with suppress(ProcessLookupError):
                (os.killpg if workers else os.kill)(group, signal.SIGKILL)

    def run(self, order: Order, seconds: float = 120) -> list[int]:
        """Start and wait; a child that hangs is killed and fails the test."""
        self.start(order)
        codes = self.wait(seconds)
        if codes is None:
            self.kill()
            self.wait()
            raise AssertionError(f"{order.commands} did not end in {seconds:g} s")
        return codes


def serve() -> None:
    """Fork as ordered, until the orders end."""
    import pandas  # noqa: F401
    import torch._dynamo  # noqa: F401 which the first optimiser imports

    import bench.reporting.rendering
    import bench.running.runner  # noqa: F401
    from bench.diffusion import training

    opened = training.session  # saves every 15 s, which runs of a second would never come to
    training.session = lambda **settings: opened(save_every=0.1, **settings)
    for line in sys.stdin:
        order = Order(**json.loads(line))
        children = [born(order, number) for number in range(order.abreast)]
        print(json.dumps(children), flush=True)
        ended = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(ended), flush=True)


def born(order: Order, number: int) -> int:
    """Fork a child that carries out the order; its process id."""
    child = os.fork()
    if child:
        with suppress(OSError):
            os.setpgid(child, child)  # both do it: whoever comes first
        return child
    os.setpgid(0, 0)
    os.environ["TAXOBENCH_CACHE"] = order.cache
    code = 70
    try:
        code = carried_out(order, f"{order.output}.{number}" if order.abreast > 1 else order.output)
    finally:
        os._exit(code)


def carried_out(order: Order, output: str) -> int:
    """Run the commands with their output in a file; the first exit code that is not 0."""
    from bench.cli import main

    for fd, path, flags in ((0, os.devnull, os.O_RDONLY), (1, output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)):
        os.dup2(os.open(path, flags, 0o644), fd)
    os.dup2(1, 2)
    changes = counted_changes(order.watched, order.crash_at) if order.watched else [0]
    code = 0
    for words in order.commands:
        try:
            main(list(words))
        except SystemExit as end:
            code = end.code
        except BaseException:
            import traceback

            traceback.print_exc()
            code = 70
        if code:
            break
    sys.stdout.flush()
    sys.stderr.flush()
    Path(f"{output}.changes").write_text(str(changes[0]))
    return code


def counted_changes(watched: str, crash_at: int) -> list[int]:
    """Count what this process does to files below `watched`, and die before the `crash_at`-th of it."""
    changes = [0]

    def heard(event: str, arguments: tuple) -> None:
        if event not in WRITES or not str(arguments[0]).startswith(watched):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & CHANGES):
            return
        changes[0] += 1
        if changes[0] == crash_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(heard)
    return changes


if __name__ == "__main__":
    serve()
