"""Runs that are killed, files that are torn: nothing is lost, and the next run goes on from there."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from running import ROOT, SMALL, bench, facts, ran

from bench import bases, store


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
