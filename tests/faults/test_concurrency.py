"""Several runs on one results folder, and clocks that jump: each cell is measured once, to the same table."""

import json
import random
import time
from collections import Counter
from pathlib import Path

import pytest
from nursery import Order
from running import bench, facts

pytestmark = pytest.mark.faults
WORDS = ("run", "ddim", "ddpm", "gits", "progressive_distillation", "--data", "mixture2d", "--threads", "1")
WORDS += ("--quiet", "--metric", "fid", "--metric", "nll", "--samples", "80", "--images", "2000")


@pytest.mark.parametrize("abreast", [2, 8])
def test_runs_on_one_folder_share_the_work_and_measure_nothing_twice(nursery, tmp_path, abreast):
    def order(name: str, count: int) -> Order:
        few = (*WORDS[:2], *WORDS[3:4], *WORDS[5:]) if abreast > 2 else WORDS  # a sampler and a search
        words = (*few, "--nfe", "4", "--results", str(tmp_path / name))
        return Order(
            (words,), str(tmp_path / f"cache-{name}"), str(tmp_path / f"output-{name}"), abreast=count
        )

    assert nursery.run(order("alone", 1)) == [0]
    codes = nursery.run(order("together", abreast), seconds=300)
    outputs = [Path(f"{tmp_path}/output-together.{number}").read_text() for number in range(abreast)]
    assert codes == [0] * abreast, outputs
    rows = list(map(json.loads, (tmp_path / "together" / "rows.jsonl").read_text().splitlines()))
    assert set(Counter((row["key"], row["metric"]) for row in rows).values()) == {1}
    assert facts(tmp_path / "together") == facts(tmp_path / "alone")
    tables = {bench("table", results=tmp_path / name).output for name in ("alone", "together")}
    assert len(tables) == 1


def test_a_clock_that_jumps_changes_neither_rows_nor_tables(tmp_path, monkeypatch):
    words = (*WORDS, "--nfe", "4,5")
    assert bench(*words, results=tmp_path / "steady").exit_code == 0
    chance, clock, calendar = random.Random(0), time.time, time.gmtime
    monkeypatch.setattr(time, "time", lambda: clock() + chance.choice((-1, 1)) * chance.uniform(0, 1e9))
    monkeypatch.setattr(time, "gmtime", lambda *given: calendar(chance.uniform(0, 4e9)))
    first = bench(*(*WORDS, "--nfe", "5"), results=tmp_path / "jumps")
    second = bench(*words, results=tmp_path / "jumps")
    assert first.exit_code == second.exit_code == 0, first.output + second.output
    assert facts(tmp_path / "jumps") == facts(tmp_path / "steady")
    tables = {bench("table", results=tmp_path / name).output for name in ("steady", "jumps")}
    assert len(tables) == 1


def test_an_answer_is_the_last_one_appended_whatever_the_clock_said(tmp_path, monkeypatch):
    words = (*WORDS[:2], *WORDS[5:], "--nfe", "4")
    assert bench(*words, results=tmp_path).exit_code == 0
    calendar = time.gmtime
    monkeypatch.setattr(time, "gmtime", lambda *given: calendar(0))  # long before
    assert bench(*words, "--again", results=tmp_path).exit_code == 0
    from bench import store

    assert {row.time[:4] for row in store.read(tmp_path) if row.method == "ddim"} == {"1970"}
