"""The orders that ODE solvers declare, measured in float64 on a mixture whose probability flow is known."""

import importlib.util
import math
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from bench import registry
from bench.check import checks
from bench.data import load
from bench.diffusion.counting import counting
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.exact import ExactNetwork, GaussianMixture
from bench.diffusion.schedule import SCHEDULES
from bench.diffusion.steps import moment
from bench.method import Method

FOLDER = Path(__file__).resolve().parents[1] / "zoo/sampling_acceleration/ode_solver"
SMALL = {"dpm_solver_v3": {"knots": 30, "points": 64}, "rk45": {"tolerance": 1e-2}}
NAMES = sorted(
    name for name, p in registry.plugins().items() if p.path.parent == FOLDER and p.base == "denoiser"
)


@cache
def plugin(name: str) -> type[Method]:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return next(
        c for c in vars(module).values() if isinstance(c, type) and issubclass(c, Method) and c is not Method
    )


@cache
def denoiser(schedule: str) -> Denoiser:
    data = load("mixture2d")
    return Denoiser(
        ExactNetwork(data.exact, data.shape, data.sigma_data),
        SCHEDULES[schedule](),
        data.shape,
        "x0",
        data.sigma_data,
    )


def start(schedule: str, n: int = 8) -> Tensor:
    return denoiser(schedule).prior(n, torch.Generator().manual_seed(0)).double()


@cache
def model(method: Method, schedule: str) -> torch.nn.Module:
    base, data = denoiser(schedule), load("mixture2d")
    built = method.build(base, data, 10)
    method.train(built, base, data, 2000, 10)
    return built


@cache
def truth(schedule: str, n: int = 8) -> Tensor:
    """The flow from `start` to t_min: dz/du = z - x0 in z = x / alpha against u = log(sigma / alpha)."""
    base = denoiser(schedule)
    first, last = base.schedule.t_max, base.schedule.t_min

    def slope(u: float, z):
        z = torch.from_numpy(z).reshape(n, -1)
        return (z - base.at(z, torch.ones(()), torch.tensor(u).double().exp()).x0).flatten().numpy()

    z = (start(schedule, n) / base.schedule.alpha(first)).flatten().numpy()
    span = [-float(base.schedule.lam(t)) for t in (first, last)]
    z = solve_ivp(slope, span, z, method="DOP853", rtol=1e-12, atol=1e-13).y[:, -1]
    return torch.from_numpy(z).reshape(n, -1) * base.schedule.alpha(last)


def error(name: str, schedule: str, nfe: int, **fields) -> float:
    method = plugin(name)(**SMALL.get(name, {}), **fields)
    ends_at_zero = name in ("ddim", "edm_heun")  # their last step, from t_min to 0, is Euler's
    with torch.no_grad():
        exact = truth(schedule)
        if ends_at_zero:
            exact = denoiser(schedule)(exact, denoiser(schedule).schedule.t_min).x0
        found = method.sample(model(method, schedule), start(schedule), nfe)
        return float((found - exact).square().mean().sqrt())


@pytest.mark.parametrize("name", [name for name, p in registry.plugins().items() if p.declared.get("order")])
def test_a_solver_converges_at_the_order_it_declares_under_each_schedule(name):
    (result,) = checks(registry.plugins()[name], only=("order",))
    assert result.ok, result.detail


@pytest.mark.parametrize("r", [0, 1, 2])
def test_a_polynomial_of_degree_r_gives_deis_order_r_plus_1(r):
    order = math.log2(error("deis_tab", "vp", 160, r=r) / error("deis_tab", "vp", 320, r=r))
    assert order == pytest.approx(r + 1, abs=0.25)


def test_halving_the_curvature_costs_3m_its_third_order():
    errors = [error("dpmpp_3m", "vp", n, curvature=0.5) for n in (160, 320)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.25)


@pytest.mark.parametrize("name", NAMES)
def test_a_solver_keeps_its_budget_and_its_samples_know_nothing_of_each_other(name):
    method = plugin(name)(**SMALL.get(name, {}))
    schedule = method.schedules[0]
    built, x = model(method, schedule), start(schedule, 4)
    with torch.no_grad():
        for nfe in range(method.least, method.least + (1 if method.adaptive else 14)):
            before = x.clone()
            with counting(built, None if method.adaptive else nfe * len(x)) as tallies:
                together = method.sample(built, x, nfe)
            assert tallies["nfe"].rows > 0 and together.dtype == x.dtype and together.isfinite().all()
            assert torch.equal(x, before)
            alone = torch.cat([method.sample(built, row, nfe) for row in x.split(1)])
            torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)


def test_v3_without_statistics_converges_at_third_order():
    untrained = plugin("dpm_solver_v3")().build(denoiser("vp"), load("mixture2d"), 10)
    method = plugin("dpm_solver_v3")(corrector=False)
    with torch.no_grad():
        found = [method.sample(untrained, start("vp"), n) for n in (160, 320)]
    far, near = ((x - truth("vp")).square().mean().sqrt() for x in found)
    assert math.log2(far / near) == pytest.approx(3, abs=0.25)


def test_v3_solves_a_gaussians_linear_flow_in_one_step_but_for_its_tables():
    one, spread = torch.ones(1).double(), 0.3
    mean = torch.tensor([[0.5, -0.2]]).double()
    mixture = GaussianMixture(one, mean, torch.eye(2)[None, :, :1].double(), 0 * one[None], spread**2 * one)
    base = Denoiser(ExactNetwork(mixture, (2,), 1.0), SCHEDULES["vp"](), (2,), "x0", 1.0)
    method, x = plugin("dpm_solver_v3")(knots=200, points=16, spread=0.0), start("vp")
    trained = method.build(base, None, 1)
    # in float64: f does not vary here, and regressing its rounding would be no test
    data = SimpleNamespace(train=mixture.sample(16, torch.Generator().manual_seed(1)), scale=lambda x: x)
    method.train(trained, base, data, 201 * 16, 1)
    first, last = ((base.schedule.sigma(t) / base.schedule.alpha(t)) ** 2 for t in (1.0, base.schedule.t_min))
    z = mean + (x / base.schedule.alpha(1.0) - mean) * ((spread**2 + last) / (spread**2 + first)) ** 0.5
    with torch.no_grad():
        found = method.sample(trained, x, 1) / base.schedule.alpha(base.schedule.t_min)
    torch.testing.assert_close(found, z, rtol=0, atol=2e-3)


@pytest.mark.parametrize("images", [100, 512, 1000, 4000])
def test_v3_with_few_images_is_about_as_good_as_without_statistics(images):
    """They go to fewer knots, or to none: a few at each of 121 would give errors up to 1e30."""
    base, method = denoiser("vp"), plugin("dpm_solver_v3")()
    trained = method.build(base, None, 10)
    error = lambda: float((method.sample(trained, start("vp"), 10) - truth("vp")).square().mean().sqrt())
    without = error()
    method.train(trained, base, load("mixture2d"), images, 10)
    assert error() < 1.5 * without


def test_v3_takes_its_statistics_on_fewer_data_than_points_where_there_are_no_more():
    base, method, data = denoiser("vp"), plugin("dpm_solver_v3")(), load("mixture2d")
    trained = method.build(base, None, 10)
    error = lambda: float((method.sample(trained, start("vp"), 10) - truth("vp")).square().mean().sqrt())
    with torch.no_grad():
        without = error()
        method.train(trained, base, SimpleNamespace(train=data.train[:300], scale=data.scale), 121 * 512, 10)
        assert error() < without


class Rippling(nn.Module):
    """A network whose prediction ripples in lambda, as one that is told its time in sines does."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, lam: Tensor) -> Tensor:
        return self.net(x, lam) + 0.003 * torch.sin(2 * math.pi * lam / 0.08)[:, None] * x.tanh()


def test_v3_is_not_misled_by_a_ripple_that_is_finer_than_its_knots():
    """On the knots themselves its derivative is an alias: the error is then above 1e4."""
    base, method = denoiser("vp"), plugin("dpm_solver_v3")()
    base = Denoiser(Rippling(base.net.net), base.schedule, base.shape, "x0", base.sigma_data)
    trained = method.build(base, None, 5)
    error = lambda: float((method.sample(trained, start("vp"), 5) - truth("vp")).square().mean().sqrt())
    with torch.no_grad():
        without = error()
        method.train(trained, base, load("mixture2d"), 121 * 64, 5)
        assert error() < without


@pytest.mark.parametrize("schedule", ["vp", "vp_cosine", "subvp", "ve", "edm", "flow"])
def test_rk45_takes_scipys_steps_for_each_sample(schedule):
    base, method, x = denoiser(schedule), plugin("rk45")(tolerance=1e-3), start(schedule, 2)
    velocity = plugin("rk45").sample.__globals__["velocity"]
    rows, ends = 0, []
    with torch.no_grad():
        with counting(base) as tallies:
            ours = method.sample(base, x, 100)
        for row in x:
            solution = solve_ivp(
                lambda t, y: velocity(base, torch.tensor(y)[None], torch.tensor([t]).double())[0].numpy(),
                (base.schedule.t_max, base.schedule.t_min),
                row.numpy(),
                rtol=1e-3,
                atol=1e-3,
            )
            rows += solution.nfev
            ends.append(torch.from_numpy(solution.y[:, -1]))
    assert tallies["nfe"].rows == rows
    torch.testing.assert_close(ours, torch.stack(ends), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("h", [-9.0, -0.9, -1e-3, 1e-6, 0.99, 1.01, 4.0])
def test_the_moments_of_the_exponential_are_what_quadrature_gives(h):
    u = torch.linspace(0, h, 20001, dtype=torch.float64)
    for k in range(4):
        exact = torch.trapezoid((h - u).exp() * u**k / math.factorial(k), u)
        assert float(moment(k, torch.tensor(h).double())) == pytest.approx(float(exact), rel=1e-6)
