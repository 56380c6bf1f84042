"""Runs killed with SIGKILL wherever it hits them: begun again they end with the same rows and tables, and
with nothing lost or measured twice.
"""

import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from nursery import FEW, Nursery, Order
from running import bench, facts

pytestmark = pytest.mark.faults
# A sampler, an adaptive one, likelihoods by both ways, a search, and a training for each NFE.
METHODS = ("ddim", "rk45", "ddpm", "probability_flow", "gits", "progressive_distillation")
QUIET = ("--threads", "1", "--quiet")


def order(place: Path, kills: int, workers: int = 1) -> Order:
    """A small but whole matrix: vectors of a known distribution by all METHODS, and images whose samples are
    kept, in several chunks where the suite is the long one.
    """
    few = ("--nfe", "4", "--samples", "80", "--metric", "fid", "--metric", "nll")
    size = few if kills <= FEW else ("--nfe", "4,10", "--samples", "1100")
    rest = (*QUIET, "--workers", str(workers), "--results", str(place / "runs"))
    vectors = ("run", *METHODS, "--data", "mixture2d", "--images", "2000", *size, *rest)
    images = ("run", "ddim", "--data", "mixture-digits", "--nfe", "4", "--samples", "80", *rest)
    return Order((vectors, images), str(place / "cache"), str(place / "output"), watched=str(place))


def undisturbed(nursery: Nursery, wanted: Order) -> float:
    """Run it to the end; how many seconds that took."""
    Path(wanted.output).parent.mkdir(parents=True)
    began = time.monotonic()
    assert nursery.run(wanted) == [0], Path(wanted.output).read_text()
    return time.monotonic() - began


def assert_equal_answers(place: Path, whole: Path) -> None:
    """The same rows but for time and place, each there once; the same tables and images, byte for byte."""
    assert facts(place / "runs") == facts(whole / "runs")
    lines = (place / "runs" / "rows.jsonl").read_bytes().splitlines()
    answers = Counter((row["key"], row["metric"]) for row in map(json.loads, lines))
    assert set(answers.values()) == {1}
    for style in ("md", "latex"):
        tables = [bench("table", "--format", style, results=folder / "runs") for folder in (place, whole)]
        assert tables[0].output == tables[1].output and tables[0].exit_code == 0
    images = [
        sorted(path.read_bytes() for path in (folder / "runs" / "samples").glob("*.npz"))
        for folder in (place, whole)
    ]
    assert images[0] == images[1]


def lived(nursery: Nursery, wanted: Order, seconds: float, workers: bool = True) -> bool:
    """One start of the run, killed if it has not ended after so many seconds; True if it was killed."""
    nursery.start(wanted)
    codes = nursery.wait(seconds)
    if codes is None:
        nursery.kill(workers)
        codes = nursery.wait()
        nursery.kill()  # workers that outlived their run
    assert codes in ([0], [-signal.SIGKILL]), Path(wanted.output).read_text()
    return codes != [0]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_killed_again_and_again_ends_as_one_that_was_not(nursery, tmp_path, kills, workers, capsys):
    whole = order(tmp_path / "whole", kills, workers)
    took = undisturbed(nursery, whole)
    start = time.monotonic()
    assert nursery.run(whole) == [0]  # which finds everything answered
    start = time.monotonic() - start
    if workers > 1:
        kills = max(1, kills // 10) if kills <= FEW else kills
        start += 4.0  # the workers import everything
    chance, left, rounds = random.Random(workers), kills, 0
    while left:
        rounds += 1
        place = tmp_path / f"killed-{rounds}"
        place.mkdir()
        wanted = order(place, kills, workers)
        mean = start + took / max(kills, 10)
        while left and lived(nursery, wanted, chance.expovariate(1 / mean), workers=chance.random() < 0.5):
            left -= 1
        assert nursery.run(wanted) == [0], Path(wanted.output).read_text()
        assert_equal_answers(place, tmp_path / "whole")
        shutil.rmtree(place)
    with capsys.disabled():
        print(f"\n{kills} kills in {rounds} runs of {took:.1f} s with {workers} workers: nothing lost")


def test_a_run_killed_before_any_change_to_a_file_ends_as_one_that_was_not(nursery, tmp_path, kills, capsys):
    whole = order(tmp_path / "whole", 1)
    undisturbed(nursery, whole)
    changes = int(Path(f"{whole.output}.changes").read_text())
    points = (
        range(1, changes + 1) if kills > FEW else random.Random(0).sample(range(1, changes + 1), kills // 5)
    )
    for point in points:
        place = tmp_path / f"killed-{point}"
        place.mkdir()
        wanted = order(place, 1)
        died = nursery.run(replace(wanted, crash_at=point))
        assert died == [-signal.SIGKILL] or point > changes - 5  # two runs differ by a checkpoint or so
        assert nursery.run(wanted) == [0], Path(wanted.output).read_text()
        assert_equal_answers(place, tmp_path / "whole")
        shutil.rmtree(place)
    with capsys.disabled():
        print(f"\n{len(points)} of {changes} changes to files were where a run was killed: nothing lost")


def test_the_workers_of_a_killed_run_do_not_outlive_it(nursery, tmp_path):
    wanted = order(tmp_path, 100, workers=2)
    leader = nursery.start(wanted)[0]
    deadline = time.monotonic() + 60
    while len(alive(leader)) < 5 and time.monotonic() < deadline:  # itself, who forks, a tracker, two workers
        time.sleep(0.05)
    os.kill(leader, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while alive(leader) and time.monotonic() < deadline:
        time.sleep(0.1)
    orphans = alive(leader)
    nursery.wait()
    assert not orphans


def alive(group: int) -> list[int]:
    """The processes of a group that are no zombies."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it ended meanwhile
            continue
        if int(its_group) == group and state != "Z":
            found.append(int(stat.parent.name))
    return found
