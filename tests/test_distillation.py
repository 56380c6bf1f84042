"""Distilled samplers: what their losses aim at, what they spend, and that training can be cut off."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from bench import registry
from bench.data import load
from bench.diffusion import training
from bench.diffusion.counting import counting
from bench.diffusion.distillation import consistent, pairs, student_of
from bench.diffusion.schedule import SCHEDULES
from bench.diffusion.steps import ddim
from bench.models import recipes
from bench.running.worker import built

NAMES = (
    "denoising_student",
    "progressive_distillation",
    "consistency_distillation",
    "consistency_training",
    "reflow",
)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data():
    return load("mixture2d")


def make(name: str, data, exact: bool = True, **fields):
    """A method, its base under its own schedule, and its untrained model."""
    method = registry.find(name, registry.plugins()).make(fields)
    base = recipes.exact_denoiser(data) if exact else recipes.new_denoiser(data)
    base = base.under(SCHEDULES[method.schedules[0]]())
    return method, base, built(method, base, data, 4, seed=0)


def trained(name: str, data, images: int, folder=None, exact: bool = True, **fields):
    method, base, model = make(name, data, exact, **fields)
    with training.session(seed=0, folder=folder, save_every=0.0) as session:
        method.train(model, base, data, images, 4)
    return method, model, session


def start(model, n: int) -> Tensor:
    return model.prior(n, training.seeded(0, 0))


def spread(a: Tensor, b: Tensor) -> float:
    """The sliced Wasserstein-1 distance over 16 directions."""
    angles = torch.arange(16) * math.pi / 16
    directions = torch.stack([angles.cos(), angles.sin()])
    return float(((a @ directions).sort(0).values - (b @ directions).sort(0).values).abs().mean())


@pytest.mark.parametrize("name", NAMES)
def test_a_trained_student_samples_the_mixture_in_one_evaluation_better_than_one_step_of_ddim(name, data):
    fields = {
        "consistency_distillation": {"improved": True},
        "consistency_training": {"improved": True, "warm": True},
    }
    method, model, _ = trained(name, data, 25_000, **fields.get(name, {}))
    truth = data.test[:2000].float()
    with torch.no_grad():
        samples = method.sample(model, start(model, 2000), 1)
        base = recipes.exact_denoiser(data).under(SCHEDULES["vp_cosine"]())
        one_step = base(start(base, 2000), base.schedule.t_max).x0
    assert spread(samples, truth) < spread(one_step, truth) / 2


@pytest.mark.parametrize("name", NAMES)
def test_a_student_begins_with_the_weights_of_its_base_and_leaves_the_base_alone(name, data):
    fields = {"warm": True} if name == "consistency_training" else {}
    method, base, model = make(name, data, exact=False, **fields)
    before = {key: t.clone() for key, t in base.state_dict().items()}
    for student in model.values() if hasattr(model, "values") else [model]:
        assert all(torch.equal(t, before[key]) for key, t in student.state_dict().items())
    with training.session(seed=0):
        method.train(model, base, data, 512, 4)
    assert all(torch.equal(t, before[key]) for key, t in base.state_dict().items())
    assert not all(torch.equal(t, before[key]) for key, t in student.state_dict().items())


@pytest.mark.parametrize(
    ("name", "spent"),
    [
        ("denoising_student", {1: 1, 4: 1}),
        ("progressive_distillation", {1: 1, 3: 2, 7: 4, 50: 32}),
        ("consistency_distillation", {1: 1, 5: 5}),
        ("consistency_training", {1: 1, 5: 5}),
        ("reflow", {1: 1, 5: 5}),
    ],
)
def test_a_student_spends_what_its_docstring_says(name, spent, data):
    method, _, model = make(name, data)
    for budget, evaluations in spent.items():
        with torch.no_grad(), counting(model) as tallies:
            method.sample(model, start(model, 8), budget)
        assert tallies["nfe"].rows == 8 * evaluations


def test_the_consistency_function_is_the_identity_at_the_end_of_time(data):
    student = student_of(recipes.exact_denoiser(data), data)
    x = torch.randn(16, 2)
    assert torch.allclose(consistent(student, x, student.schedule.t_min), x, atol=1e-6)


def test_the_consistency_function_is_the_posterior_mean_where_time_is_large(data):
    student = recipes.exact_denoiser(data)
    x = student.prior(16)
    far = student.schedule.t_max
    assert torch.allclose(consistent(student, x, far), student(x, far).x0, atol=1e-2)


def test_progressive_distillation_aims_where_one_ddim_step_lands_with_two_of_its_teacher(data):
    """A student whose loss is nothing takes the teacher's two steps in one."""
    from zoo.sampling_acceleration.distillation.progressive_distillation import target

    base = recipes.exact_denoiser(data).under(SCHEDULES["vp_cosine"]())
    schedule = base.schedule
    times = schedule.t_max * torch.tensor([1.0, 0.75, 0.5]).double()
    x = base.prior(64)
    with torch.no_grad():
        x0 = target(base, x, *(t.expand(64) for t in times))
    eps = (x - float(schedule.alpha(times[0])) * x0) / float(schedule.sigma(times[0]))
    for s, t in pairwise(times):
        out = base(x, s)
        x = ddim(schedule, out.x0, out.eps, t)
    assert torch.allclose(ddim(schedule, x0, eps, times[2]), x, atol=1e-4)


def test_rectified_once_more_the_paths_are_straighter(data):
    """One Euler step is nearer to a hundred after the second rectification."""
    gaps = []
    for rectifications in (1, 2):
        method, model, _ = trained("reflow", data, 20_000, rectifications=rectifications)
        with torch.no_grad():
            x = start(model, 500)
            gaps.append(float((method.sample(model, x, 1) - method.sample(model, x, 100)).square().mean()))
    assert gaps[1] < gaps[0] / 2


def test_what_a_teacher_is_asked_is_on_the_bill(data):
    _, _, session = trained("denoising_student", data, 400, teacher_steps=10, images_per_pair=20)
    assert session.rows == 20 * 10
    _, _, session = trained("consistency_distillation", data, 256)
    assert session.rows == 2 * 256


def test_pairs_are_the_same_for_the_same_training_seed_and_others_for_another(data):
    base = recipes.exact_denoiser(data)
    made = {}
    for seed in (0, 1):
        for again in range(2):
            with training.session(seed=seed):
                made[seed, again] = pairs(base, lambda x: 2 * x, 700)[0]
    assert torch.equal(made[0, 0], made[0, 1])
    assert not torch.equal(made[0, 0], made[1, 0])
    assert made[0, 0].unique(dim=0).shape == (700, 2)


@pytest.mark.parametrize("improved", [True, False])
def test_consistency_training_that_was_cut_off_goes_on_where_it_was(improved, data, tmp_path, monkeypatch):
    """Its grid grows and its target follows: both are in the checkpoint."""
    whole = trained("consistency_training", data, 2560, tmp_path / "whole", improved=improved)[1]
    seeded, calls = training.seeded, 0

    def killed(*parts, **options):
        nonlocal calls
        calls += 1
        if calls == 12:
            raise KeyboardInterrupt
        return seeded(*parts, **options)

    monkeypatch.setattr(training, "seeded", killed)
    with pytest.raises(KeyboardInterrupt):
        trained("consistency_training", data, 2560, tmp_path / "cut", improved=improved)
    monkeypatch.undo()
    resumed = trained("consistency_training", data, 2560, tmp_path / "cut", improved=improved)[1]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters()))


def test_the_grid_of_consistency_training_grows_from_s0_to_s1(data):
    first = make("consistency_training", data, improved=False, s0=2, s1=150)[0]
    assert (first.points(0.0), first.points(1.0)) == (2, 151)
    improved = make("consistency_training", data, improved=True, s0=10, s1=1280)[0]
    counts = [improved.points(done / 16) for done in range(16)]
    assert counts[0] == 11 and counts[-1] == 1281 and counts == sorted(counts)
