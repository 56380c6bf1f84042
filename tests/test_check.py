"""bench check catches what is broken, by the check that should, and passes what is not."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench import registry
from bench.check import NAMES, checks, everything
from bench.cli import main

BROKEN = Path(__file__).parent / "broken"
# broken plugin -> the check that catches it, and words of its sentence
CAUGHT = {
    "over_budget": ("budget", "evaluations a sample"),
    "wrong_order": ("order", "claims order 2"),
    "first_called_second": ("order", "claims order 2"),
    "claims_too_little": ("order", "claims order 1"),
    "not_deterministic": ("seed", "the same seed gives other samples"),
    "batch_size": ("batch", "batchwise"),
    "batch_noise": ("batch", "batchwise"),
    "dequantised": ("levels", "levels"),
    "trace_sign": ("likelihood", "from the exact one"),
    "below_truth": ("likelihood", "below the exact value"),
    "writes_input": ("input", "x.clone()"),
    "imports_another": ("imports", "another plugin"),
    "imports_runner": ("imports", "bench.running"),
    "hides_rows": ("budget", "evaluations a sample"),
    "bare_network": ("counter", "counts nothing"),
    "copied_network": ("counter", "counts nothing"),
    "outside_tensors": ("state", "buffers"),
    "remembers": ("state", "asked before"),
    "does_not_converge": ("nearer", "does not converge"),
    "learns_nothing": ("training", "does not fall"),
    "raises": ("samples", "SystemExit: enough"),
    "not_literal": ("declarations", "literal"),
}


@pytest.mark.parametrize("name", CAUGHT)
def test_a_broken_plugin_is_caught_by_the_check_that_should(name):
    check, words = CAUGHT[name]
    failed = {
        result.check: result.detail
        for result in everything(files=[BROKEN / f"{name}.py"])
        if result.ok is False
    }
    assert check in failed and words in failed[check]
    assert all(len(detail.splitlines()) == 1 for detail in failed.values())


def test_every_broken_plugin_is_expected_to_be_caught():
    assert {path.stem for path in BROKEN.glob("*.py")} == set(CAUGHT)


@pytest.mark.parametrize("name", ["dpmpp_2m", "ddpm", "edm_stochastic"])
def test_a_good_plugin_passes_every_check(name):
    results = list(checks(registry.plugins()[name]))
    assert [result.check for result in results] == list(NAMES)
    assert [result.detail for result in results if result.ok is False] == []


def test_only_the_checks_asked_for_are_reported():
    assert [result.check for result in checks(registry.plugins()["ddim"], only=["paper", "imports"])] == [
        "paper",
        "imports",
    ]


def test_the_command_says_in_json_what_fails_and_exits_with_1():
    answer = CliRunner().invoke(
        main, ["check", "--plugin", str(BROKEN / "not_literal.py"), "--format", "json"]
    )
    records = json.loads(answer.stdout)
    assert answer.exit_code == 1
    assert records[0].keys() == {"method", "check", "ok", "detail"} and records[0]["ok"] is False


def test_a_method_that_does_not_exist_is_one_sentence():
    answer = CliRunner().invoke(main, ["check", "dpmpp_2n"])
    assert answer.exit_code == 2 and "did you mean" in answer.output
