"""Measuring streams of samples: extractors, references, exact data, likelihoods, and what is refused."""

import json
import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import click
import pytest
import torch
from torch import Tensor

from bench.metrics import features, points
from bench.metrics.classifiers import FEATURES, WEIGHTS, halves, load
from bench.metrics.features import default_extractor, extractor
from bench.metrics.fidelity import measure
from bench.metrics.references import reference
from benchmarks.with_diffusers import Images


@dataclass(frozen=True)
class Stored:
    """What the metrics use of a data set."""

    name: str
    kind: str
    train: Tensor
    test: Tensor
    levels: int | None = None
    exact: object = None
    fingerprint: str = "0"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.train.shape[1:])

    def scale(self, stored: Tensor) -> Tensor:
        return stored.float() * 2 / (self.levels - 1) - 1 if self.levels else stored.float()


def as_levels(images: Tensor) -> Tensor:
    return ((images + 1) * 8).round().to(torch.uint8)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def cut(samples: Tensor, size: int = 77) -> tuple[Tensor, ...]:
    return samples.split(size)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TAXOBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def digit_data() -> Stored:
    train, _, test, _ = halves("digits")
    return Stored("digits", "image", as_levels(train), as_levels(test), levels=17)


@pytest.fixture(scope="module")
def gaussian() -> Stored:
    """A correlated Gaussian in three dimensions that knows itself."""
    factor = torch.tensor([[1.0, 0, 0], [0.4, 0.8, 0], [-0.3, 0.2, 0.5]], dtype=torch.float64)
    mean = torch.tensor([0.5, -0.2, 0.1], dtype=torch.float64)
    law = torch.distributions.MultivariateNormal(mean, scale_tril=factor)
    exact = SimpleNamespace(
        mean=lambda: mean,
        cov=lambda: factor @ factor.T,
        log_prob=lambda x: law.log_prob(x.double()),
        sample=lambda n, generator: torch.randn(n, 3, generator=generator).double() @ factor.T + mean,
    )
    train, test = (exact.sample(n, torch.Generator().manual_seed(n)).float() for n in (3000, 1000))
    return Stored("gaussian", "vector", train, test, exact=exact, fingerprint="gaussian")


# streams


def test_torch_fidelity_measures_the_same_through_our_registered_extractor(digit_data):
    from torch_fidelity import calculate_metrics

    features.register()
    features.register()  # a second time does no harm

    theirs = calculate_metrics(
        input1=Images(digit_data.test),
        input2=Images(digit_data.train),
        feature_extractor="taxobench-digits",
        fid=True,
        isc=True,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        batch_size=500,
        verbose=False,
    )
    ours = measure(["fid", "is"], cut(digit_data.test), digit_data)
    # theirs takes the mean of features in single precision
    assert ours["fid[digits]"].value == pytest.approx(theirs["frechet_inception_distance"], rel=1e-5)
    assert ours["is[digits]"].value == pytest.approx(theirs["inception_score_mean"], abs=1e-5)


def test_a_measurement_does_not_depend_on_how_the_stream_is_cut(digit_data):
    wanted = ["fid", "is", "kid", "precision", "recall", "memorisation"]
    whole = measure(wanted, [digit_data.test], digit_data)
    pieces = measure(wanted, cut(digit_data.test, 13), digit_data)
    assert list(whole) == [*(f"{name}[digits]" for name in wanted[:-1]), "memorisation"]
    for name, found in whole.items():
        assert pieces[name].value == pytest.approx(found.value, rel=1e-5)
        assert pieces[name].replicates == pytest.approx(found.replicates, rel=1e-5)
        assert (found.samples, len(found.replicates)) == (360, 20)


def test_fid_of_the_reference_itself_is_nought(digit_data):
    assert measure(["fid"], cut(digit_data.train), digit_data)["fid[digits]"].value == pytest.approx(
        0, abs=1e-4
    )


def test_samples_that_are_not_finite_are_counted_in_one_sentence(gaussian):
    samples = gaussian.test.clone()
    samples[[3, 500, 999], 1] = torch.tensor([math.nan, math.inf, -math.inf])
    with pytest.raises(ValueError, match=r"^3 of 1,000 samples are not finite\.$"):
        measure(["fid", "exact_nll"], cut(samples), gaussian)


def test_too_few_samples_are_refused(gaussian):
    with pytest.raises(ValueError, match="39 samples are too few for 20 blocks"):
        measure(["fid"], [gaussian.test[:39]], gaussian)


def test_samples_of_another_shape_or_type_are_refused(digit_data):
    with pytest.raises(ValueError, match=r"\(64,\)"):
        measure(["fid"], [digit_data.test.flatten(1)], digit_data)
    with pytest.raises(ValueError, match="uint8 levels 0 to 16"):
        measure(["fid"], [digit_data.scale(digit_data.test)], digit_data)


def test_the_reference_is_computed_once_and_named_by_content(digit_data, tmp_path):
    seeing, calls = extractor("digits", digit_data), []
    counting = replace(seeing, compute=lambda x: calls.append(len(x)) or seeing.compute(x))
    first = reference(digit_data, counting)
    seen = sum(calls)
    again = reference(digit_data, counting)
    assert sum(calls) == seen == 1437
    assert torch.equal(first.cov, again.cov) and torch.equal(first.rows, again.rows)
    reference(replace(digit_data, fingerprint="1"), counting)
    reference(digit_data, counting, "test")
    assert sum(calls) == seen + 1437 + 360
    assert len(list((tmp_path / "cache" / "reference").iterdir())) == 3


def test_a_slow_look_at_the_data_is_told_of_once_a_thousand_images(digit_data):
    told = []
    for _ in range(2):  # the second time it is known
        reference(digit_data, extractor("digits", digit_data), tell=lambda *words: told.append(words))
    assert told == [(1000, 1437), (1437, 1437)]


@pytest.mark.parametrize("rows", [10_000, 200])
def test_a_look_at_the_data_that_was_killed_goes_on_to_the_same_bits(digit_data, rows, monkeypatch, tmp_path):
    monkeypatch.setattr("bench.metrics.references.ROWS", rows)
    monkeypatch.setattr("bench.metrics.references.CHUNK", 100)
    seeing = extractor("digits", digit_data)
    whole = reference(replace(digit_data, fingerprint="whole"), seeing)
    monkeypatch.setattr("bench.metrics.references.SAVE_EVERY", 0.0)
    looked = []

    def killed(x: Tensor) -> dict[str, Tensor]:
        looked.append(len(x))
        if len(looked) in (2, 7, 8, 13):
            raise KeyboardInterrupt
        return seeing.compute(x)

    again = replace(digit_data, fingerprint="killed")
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            reference(again, replace(seeing, compute=killed))
    found = reference(again, replace(seeing, compute=killed))
    assert sum(looked) == 1437 + 4 * 100  # what was being looked at when it was killed, and nothing else
    assert all(torch.equal(getattr(found, name), getattr(whole, name)) for name in ("mean", "cov", "rows"))
    assert not list((tmp_path / "cache" / "reference").glob("*.part.safetensors"))


def test_the_moments_of_a_reference_longer_than_its_rows_are_those_of_all(gaussian, monkeypatch):
    monkeypatch.setattr("bench.metrics.references.ROWS", 100)
    sampled = replace(gaussian, exact=None)
    found = reference(sampled, extractor("pixels", sampled))
    assert (found.count, len(found.rows)) == (3000, 100)
    assert torch.allclose(found.cov, gaussian.train.double().T.cov(), rtol=1e-9)
    assert torch.allclose(found.mean, gaussian.train.double().mean(0), rtol=1e-9)


# extractors


def test_the_shipped_digits_classifier_reads_98_percent_of_the_held_out_digits():
    _, _, images, labels = halves("digits")
    net, _ = load("digits")
    assert (net(images)[1].argmax(1) == labels).double().mean() >= 0.98


def test_an_altered_classifier_is_refused(tmp_path, monkeypatch):
    shipped = WEIGHTS / "digits.safetensors"
    (tmp_path / "digits.safetensors").write_bytes(shipped.read_bytes()[:-1] + b"!")
    (tmp_path / "digits.json").write_bytes(shipped.with_suffix(".json").read_bytes())
    monkeypatch.setattr("bench.metrics.classifiers.WEIGHTS", tmp_path)
    with pytest.raises(ValueError, match="not the file its card describes"):
        load("digits")


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_a_shipped_classifier_is_small_and_as_good_as_its_card_says(name):
    card = json.loads((WEIGHTS / f"{name}.json").read_text())
    assert card["held_out_accuracy"] >= {"mnist": 0.99, "fashion-mnist": 0.91}[name]
    assert (WEIGHTS / f"{name}.safetensors").stat().st_size < 1_500_000
    features, logits = load(name)[0](torch.zeros(2, 1, 28, 28))
    assert features.shape == (2, FEATURES) and logits.shape == (2, 10)


def test_the_default_extractor_follows_from_the_data(digit_data, gaussian, monkeypatch):
    monkeypatch.setenv("TAXOBENCH_INCEPTION", "/nowhere")
    colour = Stored("colour", "image", *2 * (torch.zeros(2, 3, 32, 32, dtype=torch.uint8),), levels=256)
    grey = replace(colour, name="grey", train=torch.zeros(2, 1, 28, 28, dtype=torch.uint8))
    assert (default_extractor(digit_data), default_extractor(gaussian)) == ("digits", "pixels")
    with pytest.raises(click.ClickException, match="set TAXOBENCH_INCEPTION"):
        default_extractor(colour)
    with pytest.raises(click.ClickException, match="such as those of grey; ask for the extractor pixels"):
        default_extractor(grey)


def test_an_inception_file_that_is_not_the_official_one_is_never_loaded(tmp_path, monkeypatch):
    fake = tmp_path / "inception.pth"
    fake.write_bytes(b"anything")
    monkeypatch.setenv("TAXOBENCH_INCEPTION", str(fake))
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("loaded"))
    colour = Stored("colour", "image", *2 * (torch.zeros(2, 3, 32, 32, dtype=torch.uint8),), levels=256)
    with pytest.raises(click.ClickException, match="not the official file of inception"):
        extractor("inception", colour)


def test_the_inception_score_of_an_extractor_without_classes_is_refused(gaussian):
    with pytest.raises(ValueError, match="needs a classifier"):
        measure(["is"], cut(gaussian.test), gaussian)


def test_many_pixels_are_projected_on_the_principal_directions_of_the_training_set():
    spread = torch.ones(300)
    spread[:64] = torch.arange(64, 0, -1) + 3.0
    train = random(2000, 300) * spread
    exact = SimpleNamespace(project=lambda q: (torch.zeros(300) @ q, (q.T * spread**2) @ q))
    data = Stored("wide", "vector", train, train[:100], exact=exact)
    seeing = extractor("pixels", data)
    variance = seeing(train)["features"].var(0)
    top = torch.linalg.eigvalsh(train.T.cov()).flip(0)[:64]
    assert torch.allclose(variance, top, rtol=1e-3)
    target = reference(data, seeing)
    assert (target.split, target.cov.shape) == ("population", (64, 64))
    assert target.cov.trace().item() == pytest.approx(top.sum().item(), rel=0.1)


# exact data


def test_fid_of_exact_data_is_measured_to_the_population(gaussian):
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    fewer = replace(gaussian, train=gaussian.train[:50] + 9)
    found = measure(["fid"], cut(gaussian.test), fewer)["fid[pixels]"]
    stats = [
        {"mu": mean.numpy(), "sigma": cov.numpy()}
        for mean, cov in (
            (gaussian.exact.mean(), gaussian.exact.cov()),
            (gaussian.test.double().mean(0), gaussian.test.double().T.cov()),
        )
    ]
    expected = fid_statistics_to_metric(*stats, False)["frechet_inception_distance"]
    assert found.value == pytest.approx(expected, abs=1e-7) and found.value < 0.02
    assert found.extra["reference"] == "population"


def test_exact_nll_of_exact_samples_is_the_entropy(gaussian):
    found = measure(["exact_nll"], cut(gaussian.train), gaussian)["exact_nll"]
    entropy = 0.5 * (3 * math.log(2 * math.pi * math.e) + gaussian.exact.cov().logdet().item())
    assert found.value == pytest.approx(entropy, abs=0.1)
    assert found.extra["held_out"] == pytest.approx(entropy, abs=0.1)


def test_sliced_wasserstein_of_a_shift_is_its_length_over_root_dimensions(gaussian):
    shifted = gaussian.test + torch.tensor([0.0, 3.0, 4.0])
    found = measure(["sliced_wasserstein"], cut(shifted), gaussian)["sliced_wasserstein"]
    assert found.value == pytest.approx(5 / math.sqrt(3), rel=0.1)  # 128 directions are not all
    assert measure(["sliced_wasserstein"], cut(gaussian.test), gaussian)["sliced_wasserstein"].value < 0.1


def test_copies_are_recognised_as_memorised_and_held_out_samples_are_the_unit(digit_data):
    copied = measure(["memorisation"], cut(digit_data.train[:100]), digit_data)["memorisation"]
    held_out = measure(["memorisation"], cut(digit_data.test), digit_data)["memorisation"]
    assert (copied.value, copied.extra["copies"]) == (0, 1)
    assert held_out.value == pytest.approx(1) and held_out.extra["copies"] == 0


def test_the_nearest_training_sample_is_found_over_all_pieces(gaussian, monkeypatch):
    monkeypatch.setattr(points, "PIECE", 700)
    expected = torch.cdist(gaussian.test.double(), gaussian.train.double()).min(1).values / math.sqrt(3)
    assert torch.allclose(points.nearest(gaussian.test, gaussian), expected)


def test_distance_to_the_converged_solution_is_a_root_mean_square(gaussian):
    off = gaussian.test + torch.tensor([0.0, 3.0, 4.0])
    found = points.measure_distance(cut(off), cut(gaussian.test, 100), gaussian)
    assert found.value == pytest.approx(5 / math.sqrt(3), rel=1e-6)
    with pytest.raises(ValueError, match="999 samples cannot be held against 1,000"):
        points.measure_distance(cut(off[:999]), cut(gaussian.test), gaussian)


def test_metrics_of_the_truth_are_refused_where_it_is_not_known(digit_data):
    with pytest.raises(ValueError, match="distribution is known"):
        measure(["exact_nll"], cut(digit_data.test), digit_data)
