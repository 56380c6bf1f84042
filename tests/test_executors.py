"""Mapping over worker processes: workers that die, hang, raise, or never begin."""

import os
import signal
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from bench.running.crews import HEARD, Died
from bench.running.executors import Here, Lost, Pool, local, mapped


@dataclass(frozen=True)
class Chore:
    """A number to double, after whatever its `mark` says is done: `die` once or always, `hang`, `raise`,
    `orphan` it by killing the process that forked it.
    """

    number: int
    mark: str = ""
    folder: str = ""
    seconds: float | None = None
    alone: bool = False


def doubled(chore: Chore) -> int:
    if chore.mark == "die" or (chore.mark == "die once" and first_time(chore)):
        os.kill(os.getpid(), signal.SIGKILL)
    if chore.mark == "hang":
        time.sleep(600)
    if chore.mark == "wait":
        while not Path(chore.folder, "done").exists():
            time.sleep(0.01)
    if chore.mark == "orphan" and first_time(chore):
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(5)
    if chore.mark == "raise":
        raise OSError(28, "No space left on device")
    return 2 * chore.number


def first_time(chore: Chore) -> bool:
    path = Path(chore.folder, "died")
    if path.exists():
        return False
    path.touch()
    return True


def results(executor, chores) -> dict:
    with closing(executor):
        return {chore.number: result for chore, result in executor.map(doubled, chores, ahead=1)}


def doubled_aloud(chore: Chore) -> int:
    HEARD.get()("begun", chore.number)
    return doubled(chore)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_told_of_a_task_is_heard_before_its_result(workers):
    heard = []
    hear = lambda *words: heard.append(words)
    with closing(local(workers)) as executor:
        for chore, _ in executor.map(doubled_aloud, map(Chore, range(4)), ahead=1, hear=hear):
            assert (chore, "begun", chore.number) in heard
    assert len(heard) == 4


def test_every_task_has_its_result_here_and_in_processes():
    chores = [Chore(n) for n in range(7)]
    expected = {n: 2 * n for n in range(7)}
    assert results(Here(), chores) == results(local(2), chores) == expected
    assert {chore.number: result for chore, result in mapped(doubled, chores, 1)} == expected


def test_the_task_of_a_worker_that_was_killed_is_done_by_another(tmp_path):
    chores = [Chore(n, "die once" if n == 2 else "", str(tmp_path)) for n in range(6)]
    assert results(local(2), chores) == {n: 2 * n for n in range(6)}
    assert (tmp_path / "died").exists()


def test_a_task_that_kills_its_workers_is_lost_alone_and_says_how():
    found = results(local(2), [Chore(n, "die" if n == 2 else "") for n in range(6)])
    lost = found.pop(2)
    assert lost == Lost("its worker died 2 times (killed by SIGKILL, as when memory runs out)")
    assert found == {n: 2 * n for n in range(6) if n != 2}


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone")
def test_the_death_of_the_server_that_forks_workers_costs_nothing_but_time(tmp_path):
    chores = [Chore(n, "orphan" if n == 2 else "", str(tmp_path)) for n in range(6)]
    assert results(local(2), chores) == {n: 2 * n for n in range(6)}
    assert (tmp_path / "died").exists()


def worker_of(chore: Chore) -> int:
    doubled(chore)
    return os.getpid()


def runs(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    path = Path("/proc", str(pid), "cmdline")
    return path.exists() and bool(path.read_bytes())


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone")
def test_a_worker_outlives_the_server_that_forked_it_and_can_still_be_stopped(tmp_path):
    chores = [Chore(0, "orphan", str(tmp_path)), Chore(1), Chore(2, "hang", seconds=1.0), Chore(3)]
    with closing(local(1, limited=True)) as executor:
        found = {chore.number: result for chore, result in executor.map(worker_of, chores)}
    assert found[0] == found[1] != found[3]
    assert "the end of its time limit" in found[2].sentence
    until = time.monotonic() + 10
    while runs(found[0]) and time.monotonic() < until:
        time.sleep(0.05)
    assert not runs(found[0])


def test_nothing_waits_at_a_worker_behind_a_task_that_is_alone(tmp_path):
    """The long task ends only after all others, which therefore were done by the other worker."""
    chores = [Chore(0, "wait", str(tmp_path), alone=True), *(Chore(n) for n in range(1, 6))]
    order = []
    with closing(local(2)) as executor:
        for chore, _ in executor.map(doubled, chores, ahead=1):
            order.append(chore.number)
            if len(order) == 5:
                (tmp_path / "done").touch()
    assert sorted(order) == list(range(6)) and order[-1] == 0


def variable(name: str) -> tuple[int, str | None]:
    time.sleep(0.3)  # so that no worker has all of them
    return os.getpid(), os.environ.get(name)


def test_workers_have_the_environment_of_their_hiring_each_its_own(monkeypatch):
    """Though they may come from a process that is older than it."""

    def found(settings) -> set:
        with closing(local(2, settings=settings)) as pool:
            return set(dict(result for _, result in pool.map(variable, ["TAXOBENCH_HERE"] * 6)).values())

    monkeypatch.delenv("TAXOBENCH_HERE", raising=False)
    assert found(({},)) == {None}
    monkeypatch.setenv("TAXOBENCH_HERE", "first")
    assert found(({},)) == {"first"}
    assert found(({"TAXOBENCH_HERE": "0"}, {"TAXOBENCH_HERE": "1"})) == {"0", "1"}


def bad_fork(_: object) -> bool:
    """Whether torch would refuse this process a GPU for how it was born."""
    import torch

    return torch.cuda._is_in_bad_fork()


def test_workers_of_a_gpu_may_use_it():
    with closing(local(1, gpu=True)) as pool:
        assert [result for _, result in pool.map(bad_fork, [0])] == [False]


def test_a_task_over_its_time_limit_is_stopped_and_the_others_are_done():
    began = time.monotonic()
    chores = [Chore(0, "hang", seconds=0.5), *(Chore(n, seconds=60) for n in range(1, 5))]
    found = results(local(1, limited=True), chores)
    assert time.monotonic() - began < 60
    assert "time limit" in found.pop(0).sentence and found == {n: 2 * n for n in range(1, 5)}


def test_what_the_function_raises_is_raised_here():
    with pytest.raises(OSError, match="No space left"):
        results(local(2), [Chore(n, "raise" if n == 1 else "") for n in range(4)])


def test_nothing_is_begun_while_there_is_no_task_for_the_time_being():
    asked = []

    def tasks():
        yield Chore(1)
        while not asked:
            yield None
        yield Chore(2)

    with closing(local(2)) as pool:
        found = []
        for chore, result in pool.map(doubled, tasks()):
            asked.append(chore)
            found.append(result)
    assert found == [2, 4]


class Stillborn:
    """A crew whose workers die before they are up."""

    hint = "mend it"

    def room(self):
        return 2

    def hire(self, place, function):
        return self

    def wait(self, hands, seconds):
        pass

    def answers(self):
        raise Died("exit code 1")

    def kill(self):
        pass

    def close(self):
        pass


def test_workers_that_never_begin_end_the_run_with_one_sentence():
    with pytest.raises(click.ClickException, match=r"die before they have begun \(exit code 1\): mend it"):
        results(Pool(Stillborn()), [Chore(1)])


def test_workers_end_with_their_parent(tmp_path):
    """Also if the parent is killed and cannot tell them."""
    import subprocess

    program = tmp_path / "program.py"
    program.write_text(
        "import os, signal, sys, threading\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_executors import Chore, doubled, local\n"
        "if __name__ == '__main__':\n"
        "    pool = local(1, limited=True)\n"
        "    for chore, _ in pool.map(doubled, [Chore(1), Chore(2, 'hang')]):\n"
        "        print(pool.workers[0].hand.process.pid, flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = str(Path(__file__).parents[1])
    run = subprocess.run(
        [sys.executable, str(program)], capture_output=True, env=os.environ | {"PYTHONPATH": root}, timeout=60
    )
    worker = int(run.stdout)
    for _ in range(100):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        if (Path("/proc") / str(worker) / "stat").exists() and " Z " in Path(
            f"/proc/{worker}/stat"
        ).read_text():
            return
        time.sleep(0.1)
    pytest.fail("the worker lives on")
