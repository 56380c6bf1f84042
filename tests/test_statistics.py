"""Errors from replicates: closed forms, simulations of their coverage, and the awkward cases."""

import math

import numpy as np
import pytest
import torch
from scipy.special import stdtr

from bench.metrics.moments import Moments
from bench.metrics.references import Reference
from bench.statistics import bias_corrected, holm, interval, paired_difference, stderr, ties, two_sided

BLOCKS = 20


def leave_out(rows: np.ndarray, statistic=np.mean) -> tuple[float, list[float]]:
    block = np.arange(len(rows)) % BLOCKS
    return float(statistic(rows)), [float(statistic(rows[block != b])) for b in range(BLOCKS)]


def test_the_error_of_a_mean_is_that_of_its_blocks():
    rows = np.random.default_rng(0).normal(size=400)
    value, replicates = leave_out(rows)
    means = [rows[b::BLOCKS].mean() for b in range(BLOCKS)]
    assert stderr(replicates) == pytest.approx(np.std(means, ddof=1) / math.sqrt(BLOCKS))
    low, high = interval(value, replicates)
    assert (low + high) / 2 == pytest.approx(value)
    assert (high - low) / 2 == pytest.approx(2.0930 * stderr(replicates), rel=1e-4)  # t, 19 degrees, 97.5 %


def test_the_correction_removes_a_bias_of_one_over_n():
    rows = np.random.default_rng(0).normal(size=400)
    value, replicates = leave_out(rows, lambda kept: 3 + 7 / len(kept))
    assert value > 3.01 and bias_corrected(value, replicates) == pytest.approx(3, abs=1e-9)


def test_a_mean_has_no_bias_to_correct():
    value, replicates = leave_out(np.random.default_rng(1).normal(size=400))
    assert bias_corrected(value, replicates) == pytest.approx(value, abs=1e-12)


def simulate_fid(repetitions: int, count: int, dims: int) -> tuple[np.ndarray, np.ndarray]:
    """FID of `count` draws of a Gaussian to another, and its replicates (repetitions, BLOCKS)."""
    scale = torch.linspace(0.7, 1.2, dims).double()
    target = Reference("population", 0, torch.full((dims,), 0.2).double(), torch.eye(dims).double(), None)
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(repetitions):
        moments = Moments(target, BLOCKS)
        moments.add(torch.randn(count, dims, generator=generator).double() * scale, 0)
        found.append(moments.fid())
    values, replicates = zip(*found)
    return np.array(values), np.array(replicates)


def test_intervals_cover_the_expectation_of_fid_at_its_number_of_samples():
    values, replicates = simulate_fid(300, count=400, dims=3)
    expected = values.mean()
    covered = [low <= expected <= high for low, high in map(interval, values, replicates)]
    assert 0.91 <= np.mean(covered) <= 0.985  # 95 % and three standard errors of 300 repetitions


def test_corrected_fid_is_unbiased_and_its_interval_covers_the_population():
    values, replicates = simulate_fid(300, count=400, dims=3)
    scale = np.linspace(0.7, 1.2, 3)
    truth = 3 * 0.2**2 + ((1 - scale) ** 2).sum()
    corrected = np.array([bias_corrected(v, r) for v, r in zip(values, replicates)])
    error = corrected.std() / math.sqrt(len(corrected))
    assert abs(corrected.mean() - truth) < 4 * error < abs(values.mean() - truth)
    covered = [low <= truth <= high for low, high in map(interval, corrected, replicates)]
    assert 0.91 <= np.mean(covered) <= 0.985


def test_a_paired_difference_is_sharper_than_two_errors_when_the_noise_is_shared():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=400)
    a, b = leave_out(noise + 0.01 * rng.normal(size=400)), leave_out(noise + 0.01)
    found = paired_difference(b, a)
    assert found.stderr < 0.05 * math.hypot(stderr(a[1]), stderr(b[1]))
    assert found.difference == pytest.approx(b[0] - a[0]) and found.p < 1e-6


def test_a_paired_difference_of_nothing_is_rejected_as_often_as_it_says():
    rng = np.random.default_rng(0)
    p = [paired_difference(*(leave_out(rng.normal(size=200)) for _ in "ab")).p for _ in range(400)]
    assert 0.02 <= np.mean(np.array(p) < 0.05) <= 0.085


@pytest.mark.parametrize("freedom", [2, 3, 19, 20, 199, 499])
def test_p_values_are_those_of_student_s_t_from_the_middle_to_the_far_tail(freedom):
    t = np.array([0, 1e-6, 0.1, 1, 2.093, 5, 30, 1e4, math.inf])
    assert two_sided(t, freedom) == pytest.approx(2 * stdtr(freedom, -t), rel=1e-11, abs=1e-280)
    assert np.isnan(two_sided(np.array([math.nan]), freedom))


def test_replicates_of_different_blocks_do_not_pair():
    with pytest.raises(ValueError, match="one side has 2 and the other 3"):
        paired_difference((1.0, [1, 1]), (1.0, [1, 1, 1]))


def test_equal_replicates_differ_exactly_if_their_values_do():
    assert paired_difference((2.0, [2.0] * 5), (2.0, [2.0] * 5)).p == 1
    assert paired_difference((3.0, [3.0] * 5), (2.0, [2.0] * 5)).p == 0


def test_holm_rejects_step_by_step_and_stops_at_the_first_that_stands():
    assert holm({"a": 0.01, "b": 0.02, "c": 0.03}) == {"a", "b", "c"}
    assert holm({"a": 0.01, "b": 0.03, "c": 0.04}) == {"a"}
    assert holm({"a": 0.02, "b": 0.02, "c": math.nan}) == set()


def column() -> dict[str, tuple[float, list[float]]]:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=400)
    offsets = {"good": 0.0, "alike": 0.002, "bad": 0.5}
    return {name: leave_out(noise + 0.1 * rng.normal(size=400) + offset) for name, offset in offsets.items()}


def test_what_cannot_be_told_from_the_best_is_a_tie():
    assert ties(column(), "lower") == {"good", "alike"}
    assert ties(column(), "higher") == {"bad"}


def test_values_that_are_not_numbers_are_never_ties():
    broken = {"broken": (math.nan, [math.nan] * BLOCKS), "endless": (-math.inf, [-math.inf] * BLOCKS)}
    assert ties(column() | broken, "lower") == {"good", "alike"}
    assert ties(broken, "lower") == set()


def test_one_method_ties_with_itself():
    assert ties({"only": (1.0, [1.0] * BLOCKS)}, "lower") == {"only"}
    assert ties({}, "lower") == set()


def test_a_method_without_errors_cannot_be_told_from_the_best():
    assert ties({"a": (1.0, []), "b": (9.0, [])}, "lower") == {"a", "b"}


def test_identical_methods_tie_whatever_their_spread():
    constant = (1.0, [1.0] * BLOCKS)
    assert ties({"a": constant, "b": constant, "c": (2.0, [2.0] * BLOCKS)}, "lower") == {"a", "b"}
