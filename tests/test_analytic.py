"""Reverse variances in closed form, by a second head, and the schedule of the best bound."""

import importlib
import inspect
import math

import pytest
import torch

from bench.data import load
from bench.diffusion import training
from bench.diffusion.counting import counting
from bench.diffusion.covariance import MeanVariance, by_head, pixel
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.exact import ExactNetwork, GaussianMixture
from bench.diffusion.networks import MLP, UNet, second_head
from bench.diffusion.schedule import EDM, SCHEDULES
from bench.method import Method
from bench.models import recipes

FOLDER = {"watson_dp": "sampling_acceleration.discretization", "ddpm": "foundations"}
HEADS = ("sn_ddpm", "npr_ddpm")


def plugin(name: str, **fields) -> Method:
    module = importlib.import_module(f"zoo.{FOLDER.get(name, 'sampling_acceleration.analytic')}.{name}")
    own = [c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__]
    return next(c for c in own if issubclass(c, Method))(**fields)


def fitted(name: str, data="mixture2d", images: int = 25_000, **fields):
    """A method and its model on data whose denoiser is exact, with the session of its training."""
    method, data = plugin(name, **fields), load(data)
    base = recipes.exact_denoiser(data).under(SCHEDULES[method.schedule or method.schedules[0]]())
    torch.manual_seed(0)
    model = method.build(base, data, 10)
    with training.session(seed=0) as session:
        method.train(model, base, data, images, 10)
    return method, model.eval(), session


def bound(method: Method, model, x, nfe: int) -> torch.Tensor:
    torch.manual_seed(1)
    with torch.no_grad():
        return sum(method.nll(model, x, nfe).values())


def excess(name: str, nfe: int, rows: int = 1000, **fields) -> tuple[float, float]:
    """How far a bound on mixture2d lies above the exact value in nats, and the standard error of that."""
    method, model, _ = fitted(name, **fields)
    data = load("mixture2d")
    gap = bound(method, model, data.test[:rows], nfe) + data.exact.log_prob(data.test[:rows].double())
    return float(gap.mean()), float(gap.std() / rows**0.5)


def one_normal(deviation: float, dim: int = 3) -> Denoiser:
    """The exact denoiser of an isotropic normal, whose Var[x0 | x] is known at every noise level."""
    zero = torch.zeros
    mixture = GaussianMixture(
        torch.ones(1), zero(1, dim), torch.eye(dim)[None, :, :1], zero(1, 1), torch.full((1,), deviation**2)
    )
    return Denoiser(ExactNetwork(mixture.double(), (dim,), 0.7), EDM(), (dim,), "x0", 0.7)


def test_the_table_of_mean_variances_is_that_of_a_normal():
    base = one_normal(0.4)
    model = MeanVariance(base, 40)
    generator = torch.Generator().manual_seed(0)
    model.estimate(0.4 * torch.randn(2000, 3, generator=generator, dtype=torch.float64), generator)
    lam = torch.linspace(-4.9, 6.9, 23, dtype=torch.float64)
    r2 = torch.exp(-2 * lam)
    assert torch.allclose(model.at(lam), 0.16 * r2 / (0.16 + r2), rtol=0.08)


def test_the_variance_left_is_within_its_bounds_whatever_the_network_says():
    base = one_normal(0.4)
    model = MeanVariance(base, 40)
    lam = torch.linspace(-5.1, 7.0, 50, dtype=torch.float64)
    model.table.fill_(1e6)
    assert (model.at(lam) <= torch.exp(-2 * lam) * (1 + 1e-12)).all()
    base.levels = 17
    assert model.at(lam).max() == 1
    model.table.fill_(-1.0)
    assert (model.at(lam) == 0).all()


def test_analytic_ddim_at_eta_1_is_analytic_ddpm():
    ddpm, model, _ = fitted("analytic_ddpm", points=64)
    ddim = plugin("analytic_ddim", eta=1.0, pixels=2.0)
    x = model.prior(32, torch.Generator().manual_seed(0))
    samples = []
    for method in (ddpm, ddim):
        torch.manual_seed(0)
        samples.append(method.sample(model, x, 8))
    assert torch.allclose(*samples, atol=1e-4)


def test_the_noise_drawn_last_is_clipped_where_there_are_levels():
    base = recipes.new_denoiser(load("mixture2d"))
    base.levels = 17
    assert pixel(base, 2.0) == pytest.approx(2 * (2 / 16) * math.sqrt(math.pi / 2))
    assert pixel(base, 0.0) is None and pixel(one_normal(0.4), 2.0) is None


def test_at_ten_steps_the_analytic_bound_is_below_both_fixed_variances_and_above_the_truth():
    analytic, error = excess("analytic_ddpm", 10)
    assert -3 * error < analytic
    for variance in ("beta", "posterior"):
        assert analytic < excess("ddpm", 10, variance=variance)[0] - 0.05


def test_the_analytic_bound_approaches_the_truth_with_many_steps():
    value, error = excess("analytic_ddpm", 1000)
    assert -3 * error < value < 0.03 + 3 * error


def test_the_optimal_trajectory_has_a_lower_bound_than_the_even_one():
    assert excess("analytic_ddpm", 10, trajectory="optimal")[0] < excess("analytic_ddpm", 10)[0] - 0.3


@pytest.mark.parametrize("name", HEADS)
def test_a_second_head_learns_the_variance_of_each_coordinate(name):
    _, model, session = fitted(name, images=100_000)
    data = load("mixture2d")
    generator = torch.Generator().manual_seed(3)
    for lam in (-3.0, -0.5, 0.8, 2.5, 4.5):
        r = torch.tensor(math.exp(-lam), dtype=torch.float64)
        z = data.test + float(r) * torch.randn(data.test.shape, generator=generator)
        with torch.no_grad():
            out = model.at(z, torch.ones_like(r), r)
        left, error = by_head(model, out), (data.test - out.x0) ** 2
        assert float(left.mean()) == pytest.approx(float(error.mean()), rel=0.35)
        if lam == 0.8 and name == "npr_ddpm":  # where it says that more is left, more is
            most, least = left > left.quantile(0.75), left < left.quantile(0.25)
            assert float(error[most].mean()) > 1.3 * float(error[least].mean())
    assert session.images <= 50_000 + 64


@pytest.mark.parametrize("name", HEADS)
def test_bounds_by_a_second_head_lie_above_the_truth_and_below_a_fixed_variance(name):
    value, error = excess(name, 10, images=60_000)
    assert -3 * error < value < excess("ddpm", 10)[0] - 0.05


@pytest.mark.parametrize("shape", [(2,), (1, 8, 8)])
def test_a_second_head_costs_no_evaluation_and_leaves_the_first_as_it_is(shape):
    net = MLP(2) if len(shape) == 1 else UNet(shape, (16, 16), 1)
    base = Denoiser(net, EDM(), shape)
    headed = base.with_head(lambda width: second_head(width, shape))
    torch.nn.init.normal_(headed.net.net.head[-1].weight)
    x = torch.randn(5, *shape)
    with counting(headed) as tallies:
        out = headed(x, 1.0)
    assert tallies["nfe"].rows == 5
    assert torch.equal(out.x0, base(x, 1.0).x0)
    assert out.extra.shape == x.shape and out.extra.std() > 0
    assert base(x, 1.0).extra is None


def test_training_a_second_head_leaves_the_base_alone():
    data = load("mixture2d")
    base = recipes.new_denoiser(data).under(SCHEDULES["ddpm"]())
    before = {name: p.clone() for name, p in base.state_dict().items()}
    method = plugin("npr_ddpm")
    model = method.build(base, data, 10)
    method.train(model, base, data, 1024, 10)
    assert all(torch.equal(before[name], p) for name, p in base.state_dict().items())
    inner = model.net.net.net.state_dict()
    assert all(torch.equal(before[f"net.net.{name}"], p) for name, p in inner.items())
    assert all(p.requires_grad for p in base.parameters())


def test_a_network_without_features_is_refused_in_a_sentence():
    base = Denoiser(torch.nn.Linear(2, 2), EDM(), (2,))
    with pytest.raises(ValueError, match="features"):
        base.with_head(lambda width: second_head(width, (2,)))


@pytest.mark.parametrize("variance", ["beta", "posterior"])
def test_the_schedule_found_has_a_lower_bound_than_even_steps(variance):
    for nfe in (3, 10):
        found, error = excess("watson_dp", nfe, variance=variance)
        assert -3 * error < found < excess("ddpm", nfe, variance=variance)[0] - 0.05


def test_the_terms_of_the_table_sum_to_the_bound():
    method, model, _ = fitted("watson_dp", candidates=40)
    x = load("mixture2d").test
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        cost = method.terms(model.base, x, noise, model.times)
    path = model.paths[5, :7]
    total = float(cost[path[:-1], path[1:]].sum())
    terms = method.nll(model, x, 6)
    measured = (terms["diffusion"] + terms["reconstruction"]).mean()
    assert total == pytest.approx(float(measured), abs=0.1)


def test_one_search_serves_every_budget_and_is_billed():
    method, model, session = fitted("watson_dp", candidates=40, points=16)
    assert session.rows == 40 * 16
    for nfe in (1, 2, 7, 40, 55):
        times = model.chain(nfe)
        assert len(times) == nfe + 1 and (times.diff() < 0).all()
        assert times[0] == model.base.schedule.t_max and times[-1] == 0
        with counting(model) as tallies:
            method.sample(model, model.prior(3), nfe)
        assert tallies["nfe"].rows == 3 * nfe
