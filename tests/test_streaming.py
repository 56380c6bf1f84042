"""Samples that come chunk by chunk, moments that others published, and memory that does not grow."""

import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from bench import protocol
from bench.cli import main
from bench.data import load
from bench.metrics.features import extractor
from bench.metrics.fidelity import Gathered, measure
from bench.metrics.jackknife import BLOCKS
from bench.metrics.references import Reference, imported, reference
from bench.metrics.splits import Splits, inception_score


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.fixture
def moments(digits, tmp_path) -> Path:
    """The digits' own moments, as an .npz such as EDM's and ADM's."""
    own = reference(digits, extractor("digits", digits))
    np.savez(tmp_path / "moments.npz", mu=own.mean.numpy(), sigma=own.cov.numpy(), mu_s=np.zeros(3))
    return tmp_path / "moments.npz"


def test_chunks_are_let_go_as_soon_as_they_are_seen(digits):
    seen = []

    def chunks():
        for start in range(0, 360, 60):
            assert sum(chunk() is not None for chunk in seen) <= 1  # the last one, which its loop still names
            piece = digits.test[start : start + 60].clone()
            seen.append(weakref.ref(piece))
            yield piece
            del piece

    found = measure(["fid", "is"], chunks(), digits, count=360)
    held = measure(["fid", "is"], [digits.test], digits)
    assert len(seen) == 6
    for name in held:
        assert found[name].replicates == pytest.approx(held[name].replicates, rel=1e-5)


def test_a_stream_of_another_length_than_announced_is_refused(digits):
    with pytest.raises(ValueError, match="360 samples came where 400 were expected"):
        measure(["fid"], digits.test.split(60), digits, count=400)
    with pytest.raises(ValueError, match="360 samples came where 100 were expected"):
        measure(["fid"], digits.test.split(60), digits, count=100)


def test_a_gathered_stream_can_be_fed_by_hand(digits):
    gathered = Gathered(["fid"], digits, None, BLOCKS, "cpu", "train", len(digits.test))
    for piece in digits.test.split(60):
        gathered.add(piece)
    expected = measure(["fid"], digits.test.split(60), digits)
    assert gathered.measured() == expected


@pytest.mark.parametrize("size", [1, 7, 500])
def test_the_inception_score_of_a_stream_is_that_of_the_whole(size):
    logits = torch.randn(501, 5, generator=torch.Generator().manual_seed(0))
    splits = Splits(501, 20)
    for i, piece in enumerate(logits.split(size)):
        splits.add(piece, i * size)
    value, replicates = splits.score()
    expected = inception_score(logits, 20)
    assert value == pytest.approx(expected[0], rel=1e-12) and replicates == pytest.approx(
        expected[1], rel=1e-12
    )


# moments from elsewhere


def test_published_moments_of_the_training_set_give_the_same_fid(digits, moments):
    seeing = extractor("digits", digits)
    own = measure(["fid"], [digits.test], digits, seeing)["fid[digits]"]
    other = measure(["fid"], [digits.test], digits, seeing, reference=imported(moments, seeing, ["fid"]))
    found = other["fid[digits]"]
    assert found.value == pytest.approx(own.value, rel=1e-9)
    assert found.extra["reference"] == "moments.npz"


@pytest.mark.parametrize("name", ["kid", "precision", "recall"])
def test_metrics_of_features_refuse_moments_in_one_sentence(digits, moments, name):
    seeing = extractor("digits", digits)
    with pytest.raises(click.ClickException, match=f"holds moments, and {name} needs features") as caught:
        imported(moments, seeing, ["fid", name])
    assert "\n" not in caught.value.message
    bare = Reference("theirs", 0, torch.zeros(64).double(), torch.eye(64).double(), None)
    with pytest.raises(ValueError, match=f"theirs holds moments, and {name} need"):
        measure([name], [digits.test], digits, seeing, reference=bare)


WRONG = {
    r"of shapes \(3,\) and \(3, 3\), and the extractor has 64": {"mu": np.zeros(3), "sigma": np.eye(3)},
    "should hold the arrays mu, sigma": {"mu": np.zeros(64)},
    "as floats": {"mu": np.zeros(64, int), "sigma": np.eye(64)},
    "not finite": {"mu": np.full(64, np.nan), "sigma": np.eye(64)},
    "is no covariance": {"mu": np.zeros(64), "sigma": np.triu(np.ones((64, 64)))},
    "cannot be read as .npz": {"mu": np.array([{}, 1], object), "sigma": np.eye(64)},
}


@pytest.mark.parametrize("words, arrays", WRONG.items(), ids=WRONG)
def test_moments_that_will_not_do_are_refused_with_a_reason(digits, tmp_path, words, arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    for path, says in ((tmp_path / "a.npz", words), (tmp_path / "none.npz", "there is no file")):
        with pytest.raises(click.ClickException, match=says) as caught:
            imported(path, extractor("digits", digits), ["fid"])
        assert "\n" not in caught.value.message


def test_the_protocol_holds_the_moments_sha256_and_is_untouched_without_them(digits, moments):
    seeing = extractor("digits", digits)
    plain = protocol.of_samples(digits, seeing, 2000, 500)
    assert "reference_sha256" not in plain and plain["reference_count"] == 1437
    given = imported(moments, seeing, ["fid"])
    facts = protocol.of_samples(digits, seeing, 2000, 500, given)
    assert facts["reference_sha256"] == given.sha256 and facts["reference"] == "imported"
    assert protocol.fingerprint(facts) != protocol.fingerprint(plain)
    assert f"moments {given.sha256[:8]}" in protocol.described("a", facts)


def test_samples_are_run_and_scored_against_moments_from_elsewhere(digits, moments, tmp_path):
    np.savez(tmp_path / "samples.npz", samples=digits.test.numpy())
    command = ["score", str(tmp_path / "samples.npz"), "--data", "digits", "--format", "json"]
    own, other = (
        {r["metric"]: r["value"] for r in json.loads(CliRunner().invoke(main, [*command, *more]).output)}
        for more in ([], ["--statistics", str(moments)])
    )
    assert other["fid[digits]"] == pytest.approx(own["fid[digits]"], rel=1e-9)
    assert "kid[digits]" in own and "kid[digits]" not in other
    ran = CliRunner().invoke(main, [*command, "--statistics", str(moments), "--metric", "kid"])
    assert ran.exit_code == 1 and "kid needs features" in ran.output
    run = [
        "run",
        "ddim",
        "--data",
        "digits",
        "--statistics",
        str(moments),
        "--results",
        str(tmp_path / "runs"),
    ]
    dry = CliRunner().invoke(main, [*run, "--dry-run", "--nfe", "5"])
    assert dry.exit_code == 0 and "1 of 1 cells" not in dry.output.splitlines()[0]


# memory

PROGRAM = """
import resource, sys
from bench.cli import main
command = "run euler --data npz:rows.npz --base denoiser@256 --nfe 1 --workers 1 --metric fid --quiet"
for samples in ("5000", "50000"):
    main([*command.split(), "--samples", samples], standalone_mode=False)
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_peak_memory_of_a_run_stays_with_ten_times_the_samples(tmp_path):
    np.savez(tmp_path / "rows.npz", x_train=np.random.default_rng(0).normal(size=(500, 8)))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-c", PROGRAM]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    few, many = (int(line.split()[1]) for line in ran.stdout.splitlines() if line.startswith("peak "))
    assert many < 1.1 * few
