"""The metrics' formulas, held to torch-fidelity's; their replicates, to leaving blocks out; likelihoods."""

import math
from types import SimpleNamespace

import click
import numpy as np
import pytest
import torch
from torch import Tensor

from bench.metrics import names
from bench.metrics.likelihood import bits_per_dim, measure_excess, measure_nll
from bench.metrics.moments import Moments
from bench.metrics.pairs import kid, precision_recall
from bench.metrics.references import Reference
from bench.metrics.splits import inception_score

DIGITS = SimpleNamespace(kind="image", shape=(1, 8, 8), levels=17)
VECTORS = SimpleNamespace(kind="image", shape=(3,), levels=None)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dropped(x: Tensor, b: int, blocks: int = 20) -> Tensor:
    return x[torch.arange(len(x)) % blocks != b]


def reference_to(features: Tensor) -> Reference:
    return Reference("train", len(features), features.double().mean(0), features.double().T.cov(), features)


def fid(x: Tensor, target: Reference, blocks: int = 20) -> tuple[float, tuple[float, ...]]:
    moments = Moments(target, blocks)
    start = 0
    for chunk in x.split(77):
        moments.add(chunk, start)
        start += len(chunk)
    return moments.fid()


def torch_fidelity_fid(x: Tensor, y: Tensor) -> float:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    found = fid_statistics_to_metric(*(fid_features_to_statistics(a.double()) for a in (x, y)), False)
    return found["frechet_inception_distance"]


# names


def test_a_column_is_parsed_into_what_it_was_made_of():
    assert names.parse(names.column("fid", "digits")) == ("fid", "digits")
    assert names.parse(names.column("nll", "ode,uniform")) == ("nll", "ode,uniform")
    assert names.parse(names.column("exact_nll")) == ("exact_nll", None)


@pytest.mark.parametrize("wrong", ["fid[", "fid[a][b]", "[digits]", "fid digits"])
def test_a_column_that_is_none_is_refused(wrong):
    with pytest.raises(click.ClickException, match="is no column"):
        names.parse(wrong)


def test_a_misspelt_metric_is_answered_with_the_nearest_name():
    with pytest.raises(click.ClickException, match="did you mean precision"):
        names.find("precison")


def test_the_metrics_that_a_kind_has_by_default_are_defined_on_it():
    for kind, metrics in names.OF_KIND.items():
        assert all(kind in names.METRICS[name].kinds for name in metrics)


# against torch-fidelity


@pytest.mark.parametrize("count", [50, 64, 65, 700], ids=lambda n: f"{n} samples of 64 features")
def test_fid_is_that_of_torch_fidelity(count):
    x, y = random(count, 64) @ random(64, 64, seed=1) + 5, random(900, 64, seed=2)
    assert fid(x, reference_to(y))[0] == pytest.approx(torch_fidelity_fid(x, y), rel=1e-6)


@pytest.mark.parametrize("count", [50, 703])
def test_replicates_of_fid_are_fids_without_a_block(count):
    x, y = random(count, 64) + 0.1, random(900, 64, seed=2)
    _, replicates = fid(x, reference_to(y))
    for b in (0, 7, 19):
        assert replicates[b] == pytest.approx(torch_fidelity_fid(dropped(x, b), y), rel=1e-6)


@pytest.mark.parametrize("count", [100, 1003])
def test_inception_score_is_that_of_torch_fidelity(count):
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = 3 * random(count, 10)
    expected = isc_features_to_metric(logits)["inception_score_mean"]
    assert inception_score(logits, 20)[0] == pytest.approx(expected, abs=1e-6)


def test_replicates_of_the_inception_score_keep_every_sample_in_its_split():
    logits, order = 3 * random(1000, 10), np.random.RandomState(2020).permutation(1000)
    splits = []
    for split in order.reshape(10, 100):
        p = logits[split[split % 20 != 4]].double().softmax(1)
        splits.append((p * (p / p.mean(0)).log()).sum(1).mean().exp().item())
    assert inception_score(logits, 20)[1][4] == pytest.approx(np.mean(splits), rel=1e-9)


def test_kid_is_that_of_torch_fidelity_with_one_subset_that_is_everything():
    from torch_fidelity.metric_kid import kid_features_to_metric

    x, y = random(300, 16).double(), random(300, 16, seed=1).double() + 0.3
    expected = kid_features_to_metric(x, y, kid_subsets=1, kid_subset_size=300, verbose=False)
    assert kid(x, y, 20)[0] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-9)


def test_replicates_of_kid_are_kids_without_a_block():
    x, y = random(1203, 16), random(700, 16, seed=1) + 0.3
    _, replicates = kid(x, y, 20)
    for b in (0, 5, 19):
        assert replicates[b] == pytest.approx(kid(dropped(x, b), y, 20)[0], rel=1e-9)


def test_precision_and_recall_are_those_of_torch_fidelity():
    from torch_fidelity.metric_prc import prc_features_to_metric

    x, y = 0.8 * random(500, 4) + 0.3, random(600, 4, seed=1)
    expected, found = prc_features_to_metric(x, y, verbose=False), precision_recall(x, y, 20)
    assert 0.1 < expected["precision"] < 0.99 and 0.1 < expected["recall"] < 0.99
    assert {name: value for name, (value, _) in found.items()} == pytest.approx(
        {name: expected[name] for name in ("precision", "recall")}, abs=1e-6
    )


def test_replicates_of_precision_and_recall_are_those_without_a_block():
    x, y = 0.8 * random(507, 4) + 0.3, random(600, 4, seed=1)
    found = precision_recall(x, y, 20)
    for b in (0, 11, 19):
        without = precision_recall(dropped(x, b), y, 20)
        for name in ("precision", "recall"):
            assert found[name][1][b] == pytest.approx(without[name][0], abs=1e-9)


# likelihood


def test_a_uniform_density_costs_the_bits_of_its_levels():
    nats = torch.full((40,), 64 * math.log(2 * 17 / 16))  # uniform over the 17 bins, which span 2 * 17 / 16
    found = measure_nll(nats, DIGITS)
    assert found.value == pytest.approx(math.log2(17)) and found.extra["unit"] == "bits/dim"
    assert torch.equal(bits_per_dim(nats, VECTORS), nats)


def test_the_terms_of_a_bound_sum_to_its_value():
    prior, steps = random(400).abs(), 100 + random(400, seed=1)
    found = measure_nll(prior + steps, DIGITS, terms={"prior": prior, "steps": steps})
    assert sum(found.extra["terms"].values()) == pytest.approx(found.value)


def test_replicates_of_a_likelihood_are_means_without_a_block():
    nats = random(401).double()
    found = measure_nll(nats, VECTORS)
    assert found.value == pytest.approx(nats.mean().item())
    assert found.replicates[3] == pytest.approx(dropped(nats, 3).mean().item())


def test_the_excess_of_a_likelihood_has_no_bins():
    exact = random(400)
    found = measure_excess(exact + 64 * math.log(2), exact, DIGITS)
    assert found.value == pytest.approx(1, rel=1e-5)


def test_a_likelihood_that_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match="1 of 400 likelihoods"):
        measure_nll(torch.cat([random(399), torch.tensor([math.nan])]), VECTORS)
