"""Runs that are killed, files that are torn: nothing is lost, and the next run goes on from there."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import torch
from running import ROOT, SMALL, bench, facts, ran

from bench import registry, store
from bench.job import Chunk
from bench.models import bases
from bench.running import tasks
from bench.running.chunks import packed, read_chunk, write_chunk


def test_a_torn_last_row_is_healed_and_nothing_before_it_is_lost(tmp_path):
    ran("ddim", "--data", "mixture2d", results=tmp_path)
    whole = facts(tmp_path)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    assert len(store.read(tmp_path)) == len(whole) - 1
    ran("ddim", "--data", "mixture2d", results=tmp_path)
    assert facts(tmp_path) == whole


def test_a_damaged_row_in_the_middle_is_said_with_its_line(tmp_path):
    ran("ddim", "--data", "mixture2d", results=tmp_path)
    path = tmp_path / "rows.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:30], *lines[2:]]) + "\n")
    result = bench("table", results=tmp_path)
    assert result.exit_code == 1 and "line 2 is damaged" in result.output


def start(results, cache) -> subprocess.Popen:
    words = [
        "run",
        "ddim",
        "ddpm",
        "--data",
        "digits",
        "--base",
        "denoiser@20000",
        "--nfe",
        "3,5",
        "--samples",
        "100",
    ]
    environment = os.environ | {
        "TAXOBENCH_CACHE": str(cache),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [
        sys.executable,
        "-m",
        "bench.cli",
        *words,
        "--threads",
        "1",
        "--quiet",
        "--results",
        str(results),
    ]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_with_the_same_table(tmp_path):
    began = time.monotonic()
    output, errors = start(tmp_path / "whole", tmp_path / "cache-whole").communicate(timeout=300)
    took = time.monotonic() - began
    assert output, errors
    chance = random.Random(0)
    for _ in range(4):
        process = start(tmp_path / "killed", tmp_path / "cache-killed")
        time.sleep(3 + chance.random() * took / 2)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    resumed, errors = start(tmp_path / "killed", tmp_path / "cache-killed").communicate(timeout=300)
    assert resumed == output, errors
    assert facts(tmp_path / "killed") == facts(tmp_path / "whole")
    # Another process loads the trained base from its tensors alone, and the run is answered without a draw.
    again, _ = start(tmp_path / "whole", tmp_path / "cache-killed").communicate(timeout=300)
    assert again == output


def test_a_truncated_checkpoint_is_said_and_trained_again(tmp_path, monkeypatch):
    monkeypatch.setenv("TAXOBENCH_CACHE", str(tmp_path / "cache"))
    bases.shared.cache_clear()
    words = ["ddim", "--base", "denoiser@2000"]
    first = ran(*words, results=tmp_path / "a")
    weights = next((tmp_path / "cache" / "models").glob("*/model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    bases.shared.cache_clear()
    second = bench("run", *words, *SMALL, results=tmp_path / "b")
    assert "is not a whole safetensors file" in second.output and "trained again" in second.output
    assert first.splitlines()[2:] == second.output.split("again.\n")[1].splitlines()[2:]


WRONG = '''"""A sampler that does what its parameter says."""

import os
import signal
import time

from bench.method import Method


class Wrong(Method):
    """Wrong"""

    paper = "arXiv:2206.00364"
    leaf = "ode_solver"

    how: str = "hang"

    def sample(self, denoiser, x, nfe):
        if self.how == "hang":
            time.sleep(600)
        if self.how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        raise SystemExit(3)
'''


@pytest.mark.parametrize(
    "how, options, why",
    [
        ("hang", ["--time-limit", "5"], "it was stopped after 5 s, the end of its time limit"),
        ("die", ["--workers", "2"], "its worker died 2 times (killed by SIGKILL"),
        ("leave", [], "SystemExit: 3"),
    ],
)
def test_a_method_that_takes_its_worker_along_is_a_failed_row_and_no_more(how, options, why, tmp_path):
    plugin = tmp_path / "wrong.py"
    plugin.write_text(WRONG)
    words = ["run", f"wrong:how={how}", "ddim", "--plugin", plugin, "--data", "mixture2d", "--metric", "fid"]
    result = bench(*words, *SMALL, "--nfe", "4", *options, results=tmp_path / "runs")
    assert result.exit_code == 1 and "Traceback" not in result.output, result.output
    rows = {row.method: row for row in store.read(tmp_path / "runs")}
    assert why in rows["wrong"].error and rows["ddim"].value is not None


def test_a_cell_is_stopped_by_what_its_chunks_took_together(tmp_path):
    words = ["run", "ddim", "--data", "mixture2d", "--samples", "1100", "--nfe", "4", "--quiet"]
    result = bench(*words, "--time-limit", "0.000001", "--metric", "fid", results=tmp_path)
    assert result.exit_code == 1 and "time limit" in store.read(tmp_path)[-1].error


@contextmanager
def room_for(size: int):
    """Inside the block no file grows beyond `size` bytes: the nearest to a full disk that needs no disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room, what", [(100, "rows"), (-3000, "a chunk")])
def test_a_full_disk_stops_the_run_with_one_sentence_and_what_was_done_stays(room, what, tmp_path):
    words = ["run", "ddim", "--data", "mixture2d", "--samples", "1100", "--metric", "fid", "--quiet"]
    assert bench(*words, "--nfe", "4", results=tmp_path).exit_code == 0
    before = (tmp_path / "rows.jsonl").read_bytes()
    with room_for(len(before) + room):
        result = bench(*words, "--nfe", "5", results=tmp_path)
    assert result.exit_code == 1 and "File too large" in result.output and "run again" in result.output, what
    assert (tmp_path / "rows.jsonl").read_bytes() == before
    assert not list(tmp_path.rglob("*.part"))
    assert bench(*words, "--nfe", "4,5", results=tmp_path).exit_code == 0
    assert bench("verify", tmp_path).exit_code == 0


def test_rows_of_a_cell_that_a_kill_cut_in_two_are_not_there_twice(tmp_path):
    words = ["ddim", "--data", "mixture2d"]
    ran(*words, results=tmp_path)
    whole = facts(tmp_path)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    ran(*words, results=tmp_path)
    assert facts(tmp_path) == whole and len(path.read_bytes().splitlines()) == len(whole)


def test_a_run_goes_on_from_chunks_that_are_there_and_draws_damaged_ones_again(tmp_path, monkeypatch):
    words = [
        "run",
        "rk45",
        "--data",
        "mixture2d",
        "--samples",
        "1100",
        "--nfe",
        "20",
        "--quiet",
        "--metric",
        "fid",
    ]
    assert bench(*words, results=tmp_path / "whole").exit_code == 0
    drawn = []

    def stopped(task):
        drawn.append(task.number)
        if task.number == 2:
            raise KeyboardInterrupt
        return draw(task)

    draw = tasks.draw
    with monkeypatch.context() as patch:
        patch.setattr(tasks, "draw", stopped)
        assert bench(*words, results=tmp_path / "cut").exit_code == 130
    (work,) = (tmp_path / "cut" / "work").glob("*/")
    (work / "1.safetensors").write_bytes(b"damaged")
    with monkeypatch.context() as patch:
        patch.setattr(tasks, "draw", lambda task: drawn.append(task.number) or draw(task))
        assert bench(*words, results=tmp_path / "cut").exit_code == 0
    assert drawn == [0, 1, 2, 1, 2]  # the tolerance that chunk 0 found lies in its file
    assert facts(tmp_path / "cut") == facts(tmp_path / "whole")


EDITED = '''"""A sampler whose text is about to change."""

from bench.method import Method


class Edited(Method):
    """Edited"""

    paper = "arXiv:2206.00364"
    leaf = "ode_solver"

    def sample(self, denoiser, x, nfe):
        return denoiser(x, denoiser.schedule.t_max).x0 + {shift}
'''


@pytest.fixture
def edit(tmp_path):
    """Writes the plugin's text with this shift, as if for another process, and returns the file."""

    def written(shift: int):
        path = tmp_path / "edited.py"
        path.write_text(EDITED.format(shift=shift))
        for cached in (registry.plugins, registry.imported, tasks.remembered):
            cached.cache_clear()
        sys.modules.pop("taxobench_plugin_edited", None)
        return path

    return written


def test_chunks_that_another_text_of_the_plugin_drew_are_drawn_anew(tmp_path, edit, monkeypatch):
    words = ["run", "edited", "--plugin", edit(100), "--data", "mixture2d", "--samples", "1100"]
    words += ["--nfe", "4", "--metric", "fid", "--quiet"]
    assert bench(*words, results=tmp_path / "whole").exit_code == 0

    def stopped(task):
        if task.number == 1:
            raise KeyboardInterrupt
        return draw(task)

    draw = tasks.draw
    edit(0)
    with monkeypatch.context() as patch:
        patch.setattr(tasks, "draw", stopped)
        assert bench(*words, results=tmp_path / "edited").exit_code == 130
    edit(100)
    assert bench(*words, results=tmp_path / "edited").exit_code == 0
    assert facts(tmp_path / "edited") == facts(tmp_path / "whole")


def test_cells_that_another_text_of_the_plugin_answered_stand_and_are_said(tmp_path, edit):
    def said(*more: str) -> str:
        result = bench(*words, *more, results=tmp_path / "runs")
        assert result.exit_code == 0
        return result.output

    words = ["run", "edited", "--plugin", edit(0), "--data", "mixture2d", "--samples", "80", "--nfe", "4"]
    words += ["--metric", "fid"]
    assert "changed" not in said() + said()
    before = facts(tmp_path / "runs")
    edit(1)
    assert "edited: measured here before its file's text changed" in said()
    assert facts(tmp_path / "runs") == before
    assert "changed" not in said("--again")
    assert facts(tmp_path / "runs") != before


def test_a_chunk_whose_cost_was_changed_counts_as_damaged(tmp_path):
    path = tmp_path / "0.safetensors"
    chunk = Chunk(0, 2, 8, 0, 0, 0, 1.0, 1.0)
    content = packed({"samples": torch.zeros(2, 2)}, chunk)
    write_chunk(path, content)
    assert read_chunk(path)[0] == chunk
    write_chunk(path, content.replace(b'\\"rows\\": 8', b'\\"rows\\": 6'))
    assert path.read_bytes() != content and read_chunk(path) is None
