"""Classes: labels bound to denoisers, guidance with and without a classifier, and what they cost."""

import math
from itertools import pairwise

import click
import pytest
import torch
from running import bench, facts

from bench import registry
from bench.data import load
from bench.diffusion import training
from bench.diffusion.counting import counting
from bench.diffusion.guidance import drawn, told
from bench.diffusion.schedule import ddpm_table
from bench.diffusion.training import seeded
from bench.models import bases, checkpoints, recipes, specs

RING, DIGITS = load("mixture2d"), load("digits")
SIGMAS = torch.tensor([0.02, 0.1, 0.4, 1.0, 3.0, 10.0, 80.0, 0.2])
LABELS = torch.arange(8)


def at(base, labels: torch.Tensor | None = LABELS) -> torch.Tensor:
    """eps of the ring's points at SIGMAS, one for each label."""
    x = RING.train[:8] + SIGMAS[:, None] * torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), told(base, lambda shares: labels):
        return base.at(x, torch.ones(8), SIGMAS).eps


def ring(spec: str):
    return bases.base_of(spec, RING)[0]


def test_a_classifiers_guidance_at_scale_1_is_the_conditional_model():
    """Bayes' rule, by the exact denoiser, the exact classifier and the components themselves."""
    torch.testing.assert_close(at(ring("guided:scale=1")), at(ring("conditional")), rtol=0, atol=2e-4)


def test_guidance_at_scale_1_is_the_conditional_model_and_at_0_the_model_without_labels():
    torch.testing.assert_close(at(ring("conditional:guidance=1")), at(ring("conditional")))
    free = at(ring("denoiser"))
    for spec in ("conditional:guidance=0", "guided:scale=0"):
        torch.testing.assert_close(at(ring(spec)), free)
    torch.testing.assert_close(at(ring("conditional"), None), free)


def test_both_guidances_are_one_on_a_mixture_at_any_scale():
    """Their gradients are of the same posterior, exact here."""
    torch.testing.assert_close(
        at(ring("guided:scale=3")), at(ring("conditional:guidance=3")), rtol=0, atol=1e-3
    )


def test_guidance_counts_twice_and_a_classifier_counts_apart():
    cost = {}
    for spec in ("conditional", "conditional:guidance=2", "guided:scale=2"):
        base = ring(spec)
        with counting(base) as tallies:
            at(base)
        nfe, guide = tallies["nfe"], tallies["guide"]
        cost[spec] = (nfe.rows, nfe.vjps, guide.rows, guide.vjps)
    assert cost == {
        "conditional": (8, 0, 0, 0),
        "conditional:guidance=2": (16, 0, 0, 0),
        "guided:scale=2": (8, 0, 8, 8),
    }


def test_under_guidance_the_measured_nfe_is_within_the_budget(tmp_path):
    small = ["--samples", "40", "--metric", "fid", "--threads", "1", "--workers", "1", "--quiet"]
    for spec in ("conditional", "conditional:guidance=2", "guided:scale=2"):
        words = ["run", "ddim", "--data", "mixture2d", "--base", spec, "--nfe", "1,7"]
        result = bench(*words, *small, results=tmp_path)
        assert result.exit_code == 0, result.output
    rows = [row for row in facts(tmp_path) if row["method"] == "ddim"]
    found = {(row["base"], row["budget"]): (row["nfe"], row["extra"], row["vjps"]) for row in rows}
    assert found == {
        ("conditional", 1): (1, 0, 0),
        ("conditional", 7): (7, 0, 0),
        ("conditional:guidance=2", 7): (6, 0, 0),  # of 1 there is none: one evaluation takes two
        ("guided:scale=2", 1): (1, 1, 1),
        ("guided:scale=2", 7): (7, 7, 7),
    }
    assert len({row["base_id"] for row in rows}) == 3


@pytest.mark.parametrize("kind", ["conditional:guidance=", "guided:scale="])
def test_a_larger_scale_makes_the_classifier_surer(kind):
    classifier, _ = bases.base_of("classifier", RING)
    sure = []
    for scale in (1, 2, 4):
        base = ring(f"{kind}{scale}")
        generator = seeded(0, 0)
        x = base.prior(200, generator)
        labels = drawn(200, generator)(base.shares)
        with torch.no_grad(), told(base, lambda shares, labels=labels: labels):
            z = x
            times = base.schedule.steps(12, "karras")
            for s, t in pairwise(times):
                z = z + (t - s) * base(z, s).eps
            r = torch.tensor(0.5)  # in noise, where the components meet
            lam = (-r.log()).expand(200)
            x_in = z / (classifier.sigma_data**2 + r**2).sqrt()
            sure.append(float(classifier.log_prob(x_in, lam).gather(1, labels[:, None]).mean()))
    assert sure[0] < sure[1] < sure[2]


def test_labels_are_drawn_after_the_noise_each_class_in_its_share():
    generator, again = seeded(3, 1), seeded(3, 1)
    base = ring("conditional")
    x = base.prior(4000, generator)
    with told(base, drawn(4000, generator)):
        labels = base.labels
    assert torch.equal(x, ring("denoiser").prior(4000, again)) and base.labels is None
    shares = labels.bincount(minlength=8) / 4000
    torch.testing.assert_close(shares, RING.exact.weights.float(), rtol=0, atol=0.03)


def test_rows_asked_together_for_the_same_samples_share_their_labels():
    base = ring("conditional")
    x = RING.train[:8]
    with torch.no_grad(), told(base, lambda shares: LABELS):
        twice = base.at(torch.cat([x, x]), 1.0, 0.5).x0
        torch.testing.assert_close(twice, base.at(x, 1.0, 0.5).x0.repeat(2, 1))
        with pytest.raises(ValueError, match="9 rows cannot share 8 labels"):
            base.at(torch.cat([x, x[:1]]), 1.0, 0.5)


def test_the_recipes_with_classes_learn_digits():
    """Minutes would make them good; here their losses fall, and labels are dropped and heeded."""
    base = recipes.seeded_build(recipes.RECIPES["conditional"], DIGITS, 0)
    assert len(base.shares) == 10 and base.net.net.unlabelled
    classifier = recipes.seeded_build(recipes.RECIPES["classifier"], DIGITS, 0)
    for model, name, images in ((base, "conditional", 3_000), (classifier, "classifier", 12_000)):
        with training.session(every=5) as session:
            recipes.RECIPES[name].train(model, DIGITS, images)
        losses = [loss for _, loss in session.curve]
        assert sum(losses[-3:]) < 0.9 * sum(losses[:3]), name
    assert recipes.RECIPES["classifier"].finish(classifier, DIGITS)["held_out_accuracy"] > 0.3
    x = base.prior(2)
    with torch.no_grad():
        one, other = (base.given(torch.tensor(y))(x, 80.0).x0 for y in ([1, 1], [8, 8]))
    assert not torch.equal(one, other)


def test_a_likelihood_on_a_base_with_classes_is_of_images_given_their_labels(tmp_path):
    base = recipes.seeded_build(recipes.RECIPES["conditional"], DIGITS, 0).eval()
    checkpoints.saved(base, {}, tmp_path / "base")
    words = ["run", "ddpm", "--base", tmp_path / "base", "--nfe", "4", "--metric", "nll", "--held-out", "40"]
    result = bench(*words, "--threads", "1", "--workers", "1", "--quiet", results=tmp_path / "runs")
    assert result.exit_code == 0, result.output
    method = registry.find("ddpm", registry.plugins()).make({})
    expected = {}
    for name, labels in (("given", DIGITS.test_labels[:40]), ("free", None)):
        torch.manual_seed(seeded(0, 0, 1).initial_seed())
        with torch.no_grad(), told(base, lambda shares, labels=labels: labels):
            nats = sum(method.nll(base.under(ddpm_table()), DIGITS.scale(DIGITS.test[:40]), 4).values())
        expected[name] = float(nats.mean()) / (64 * math.log(2)) + 3
    [row] = facts(tmp_path / "runs")
    assert row["value"] == pytest.approx(expected["given"], rel=1e-6) != expected["free"]


def test_under_guidance_nothing_is_left_of_what_needs_a_likelihood_or_training(tmp_path):
    words = ["run", "--data", "mixture2d", "--base", "conditional:guidance=2", "--nfe", "8", "--quiet"]
    for method, metric, why in (
        ("ddpm", "nll", "ddpm has no likelihood under guidance"),
        ("genie", "fid", "genie trains on its base, which cannot be one with classes"),
    ):
        result = bench(words[0], method, *words[1:], "--metric", metric, results=tmp_path)
        assert result.exit_code == 1 and f"nothing is left to run: {why}." in result.output


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("denoiser:guidance=2", "has no labels or knows nothing without them"),
        ("guided:guidance=2", "guided has scale="),
        ("conditional:scale=2", "scale is of guided"),
        ("conditional:guidanc=2", "did you mean guidance"),
        ("conditional:guidance=much", "guidance is a number, which 'much'"),
        ("conditional:guidance=nan", "guidance is a finite number, which 'nan'"),
        ("guided:scale=-inf", "scale is a finite number, which '-inf'"),
        ("denoise", "there is no base 'denoise': give denoiser, ddpm"),
        ("denoise", r"ddpm, conditional, guided \[@IMAGES\]"),
    ],
)
def test_a_base_that_cannot_be_is_refused_in_a_sentence(text, sentence):
    with pytest.raises(click.BadParameter, match=sentence):
        bases.base_of(text, RING)


@pytest.mark.parametrize("text", ["denoiser:guidance=2", "ddpm@256:guidance=2", "vae:guidance=2", "guided"])
def test_nothing_is_trained_for_guidance_that_cannot_be(text, monkeypatch):
    monkeypatch.setattr(bases, "prepared", lambda *_, **__: pytest.fail("a training began"))
    bare = type(DIGITS)("plain", "image", (1, 8, 8), DIGITS.train, DIGITS.test, 17)
    with pytest.raises(click.ClickException, match="no labels"):
        bases.base_of(text, bare)


@pytest.mark.parametrize("spec", ["conditional@10", "guided@10"])
@pytest.mark.parametrize("label", [-1, 10**12])
def test_a_label_that_counts_no_class_is_said(spec, label, tmp_path):
    labels = torch.zeros(100, dtype=torch.int64)
    labels[5] = label
    odd = type(DIGITS)("odd", "image", (1, 8, 8), DIGITS.train[:100], DIGITS.test, 17, labels)
    with pytest.raises(click.ClickException, match=f"odd has labels from .*{label}.*; a base with classes"):
        bases.base_of(spec, odd)


def test_only_recipes_of_denoisers_are_read_as_bases():
    assert set(specs.DENOISERS) <= set(recipes.RECIPES)
    for name in (*specs.DENOISERS, "guided"):
        assert specs.parsed(f"{name}@128", specs.DENOISERS).place == name
    for name in set(recipes.RECIPES) - set(specs.DENOISERS):
        with pytest.raises(click.BadParameter, match=f"no base '{name}@128': give denoiser"):
            specs.parsed(f"{name}@128", specs.DENOISERS)


def test_data_without_labels_has_no_conditional_base():
    plain = load("mixture-digits")
    bare = type(DIGITS)("plain", "image", (1, 8, 8), DIGITS.train, DIGITS.test, 17)
    with pytest.raises(click.ClickException, match="plain has no labels"):
        bases.base_of("conditional@10", bare)
    assert len(bases.base_of("conditional", plain)[0].shares) == len(plain.exact.weights)


def test_a_specs_budget_and_settings_are_read():
    spec = specs.parsed("conditional@500:guidance=1.5", recipes.RECIPES)
    assert (spec.kind, spec.place, spec.images) == ("recipe", "conditional", 500)
    assert (spec.guidance, spec.rows) == (1.5, 2)
    assert specs.parsed("diffusers:a/b:guidance=2").place == "a/b"
    assert specs.parsed("my.py:make").kind == "python"
    assert specs.parsed("guided").scale == 1
