"""Methods and networks that fail while a run goes on: memory that runs out, numbers that are none, a method
that hangs. Each costs its own cell, with a row that says why, and nothing else.
"""

import time

import pytest
from running import bench, facts

from bench import store
from bench.row import Row
from bench.running import runner

pytestmark = pytest.mark.faults
SMALL = (
    "--data",
    "mixture2d",
    "--nfe",
    "4",
    "--samples",
    "80",
    "--threads",
    "1",
    "--quiet",
    "--metric",
    "fid",
)

NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x, lam):
        {first}
        return self.scale * x

def make(data):
    return Net()
"""

METHOD = '''
import sys
import time

import torch

from bench.method import Method

class Faulty(Method):
    """Faulty"""

    paper = "arXiv:2010.02502"
    likelihood = "ode"

    def sample(self, denoiser, x, nfe):
        found = denoiser(x, denoiser.schedule.t_max).x0
        {sample}
        return found

    def nll(self, denoiser, x, nfe):
        found = denoiser(x, denoiser.schedule.t_max).x0.sum(1)
        {nll}
        return found
'''


@pytest.fixture
def network(tmp_path):
    """Writes a base network whose forward pass begins with this line, and returns the file."""

    def written(first: str = "pass", name: str = "network"):
        path = tmp_path / f"{name}.py"
        path.write_text(NETWORK.format(first=first))
        return path

    return written


@pytest.fixture
def method(tmp_path):
    """Writes a plugin whose samples and likelihoods suffer this, and returns the file."""

    def written(sample: str = "pass", nll: str = "pass"):
        path = tmp_path / "faulty.py"
        path.write_text(METHOD.format(sample=sample, nll=nll))
        return path

    return written


def failures(folder) -> list[Row]:
    return [row for row in store.read(folder) if row.error]


def numbers(folder) -> list:
    names = ("method", "metric", "value", "replicates", "nfe", "nfe_max")
    return sorted([row[name] for name in names] for row in facts(folder))


MEMORY = {
    "GPU": 'torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")',
    "CPU": "RuntimeError(\"[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate "
    'memory: you tried to allocate 400000000000000 bytes. Error code 12 (Cannot allocate memory)")',
    "Windows": 'RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.")',
    "NumPy": 'MemoryError("Unable to allocate 7.11 PiB")',
}


@pytest.mark.parametrize("error", MEMORY.values(), ids=MEMORY)
def test_rows_are_halved_until_they_fit_the_memory_and_the_numbers_stay(tmp_path, network, error):
    ample, tight = network(name="ample"), network(f"if len(x) > 7: raise {error}", name="tight")
    assert bench("run", "ddim", *SMALL, "--base", f"{ample}:make", results=tmp_path / "whole").exit_code == 0
    result = bench("run", "ddim", *SMALL, "--base", f"{tight}:make", results=tmp_path / "tight")
    assert result.exit_code == 0, result.output
    assert numbers(tmp_path / "tight") == numbers(tmp_path / "whole")


@pytest.mark.parametrize("error", MEMORY.values(), ids=MEMORY)
def test_a_network_too_large_for_a_single_row_is_said_and_fails_its_cell(tmp_path, network, error):
    path = network(f"raise {error}")
    result = bench("run", "ddim", *SMALL, "--base", f"{path}:make", results=tmp_path / "runs")
    assert result.exit_code == 1 and "Traceback" not in result.output
    (failed,) = failures(tmp_path / "runs")
    assert "out of memory even at one row" in failed.error


def test_samples_that_nothing_can_measure_fail_their_cell_and_no_other(tmp_path, method, monkeypatch):
    def odd(plan, cell, *rest):
        if cell.method == "faulty":
            raise RuntimeError("expected m1 and m2 to have the same dtype")
        return measured(plan, cell, *rest)

    measured = runner.measured
    monkeypatch.setattr(runner, "measured", odd)
    result = bench("run", "faulty", "ddim", "--plugin", method(), *SMALL, results=tmp_path / "runs")
    assert result.exit_code == 1 and "Traceback" not in result.output
    (failed,) = failures(tmp_path / "runs")
    assert failed.method == "faulty" and "same dtype" in failed.error
    assert any(row.method == "ddim" and row.value is not None for row in store.read(tmp_path / "runs"))


@pytest.mark.parametrize("value", ["torch.nan", "torch.inf"])
def test_samples_that_are_no_numbers_fail_their_cell_and_no_other(tmp_path, method, value):
    path = method(sample=f"found = found.index_fill(0, torch.tensor([3]), {value})")
    result = bench("run", "faulty", "ddim", "--plugin", path, *SMALL, results=tmp_path / "runs")
    assert result.exit_code == 1 and "Traceback" not in result.output
    (failed,) = failures(tmp_path / "runs")
    assert "1 of 80 samples are not finite" in failed.error
    assert any(row.method == "ddim" and row.value is not None for row in store.read(tmp_path / "runs"))


def test_a_likelihood_that_is_no_number_fails_its_cell_and_no_other(tmp_path, method):
    path = method(nll="found = found * torch.nan")
    result = bench("run", "faulty", "--plugin", path, *SMALL, "--metric", "nll", results=tmp_path / "runs")
    assert result.exit_code == 1 and "Traceback" not in result.output
    (failed,) = failures(tmp_path / "runs")
    assert failed.ask == "nll" and "not a number" in failed.error
    assert any(row.ask == "sample" and row.value is not None for row in store.read(tmp_path / "runs"))


@pytest.mark.parametrize(
    "error", ["RecursionError('too deep')", "ZeroDivisionError()", "LookupError('no such thing')"]
)
def test_whatever_a_method_raises_is_a_sentence_in_its_row(tmp_path, method, error):
    path = method(sample=f"raise {error}")
    result = bench("run", "faulty", "ddim", "--plugin", path, *SMALL, results=tmp_path / "runs")
    assert result.exit_code == 1 and "Traceback" not in result.output
    (failed,) = failures(tmp_path / "runs")
    assert error.split("(")[0] in failed.error


def test_a_failure_answers_nothing_and_is_tried_again(tmp_path, method, monkeypatch):
    path = method(sample="if not __import__('os').environ.get('WELL'): raise ValueError('not today')")
    words = ("run", "faulty", "--plugin", path, *SMALL)
    assert bench(*words, results=tmp_path / "runs").exit_code == 1
    monkeypatch.setenv("WELL", "1")
    assert bench(*words, results=tmp_path / "runs").exit_code == 0
    assert failures(tmp_path / "runs") == []


def test_a_method_that_hangs_is_stopped_at_its_time_limit(tmp_path, method):
    path = method(sample="time.sleep(3600)")
    began = time.monotonic()
    words = ("run", "faulty", "ddim", "--plugin", path, *SMALL, "--time-limit", "20")
    result = bench(*words, results=tmp_path / "runs")
    assert result.exit_code == 1 and "Traceback" not in result.output, result.output
    assert time.monotonic() - began < 200
    (failed,) = failures(tmp_path / "runs")
    assert failed.method == "faulty" and "20 s" in failed.error
    assert any(row.method == "ddim" and row.value is not None for row in store.read(tmp_path / "runs"))


def test_a_method_that_kills_its_worker_costs_its_cell_and_no_other(tmp_path, method):
    path = method(sample="import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    words = ("run", "faulty", "ddim", "--plugin", path, *SMALL, "--workers", "2")
    result = bench(*words, results=tmp_path / "runs")
    assert result.exit_code == 1 and "Traceback" not in result.output, result.output
    (failed,) = failures(tmp_path / "runs")
    assert failed.method == "faulty"
    assert any(row.method == "ddim" and row.value is not None for row in store.read(tmp_path / "runs"))
