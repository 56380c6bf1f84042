"""Stochastic samplers on distributions whose denoiser is exact: budgets, special cases, orders, moments."""

import importlib
import inspect
import math

import pytest
import torch

from bench.data import load
from bench.diffusion.counting import counting
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.exact import ExactNetwork, GaussianMixture
from bench.diffusion.schedule import SCHEDULES
from bench.method import Method

FOUNDATIONS = ["ncsn", "dpm2015", "score_sde"]
SOLVERS = [
    *("euler_maruyama", "reverse_diffusion", "predictor_corrector", "consistent_annealed", "ggf"),
    *("edm_stochastic", "dpmpp_2m_sde", "restart"),
]
FIXED = [name for name in FOUNDATIONS + SOLVERS if name != "ggf"]
FOLDERS = {"foundations": [*FOUNDATIONS, "ddpm"], "sampling_acceleration.sde_solver": SOLVERS}


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors gain nothing from threads, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def plugin(name: str) -> type[Method]:
    folder = next((f for f, names in FOLDERS.items() if name in names), "sampling_acceleration.ode_solver")
    module = importlib.import_module(f"zoo.{folder}.{name}")
    (cls,) = (
        c
        for c in vars(module).values()
        if inspect.isclass(c) and issubclass(c, Method) and c.__module__ == module.__name__
    )
    return cls


def exact(mixture: GaussianMixture, schedule: str) -> Denoiser:
    scale = math.sqrt(mixture.variance() / mixture.dim)
    network = ExactNetwork(mixture.double(), (mixture.dim,), scale)
    return Denoiser(network, SCHEDULES[schedule](), (mixture.dim,), "x0", scale)


def ring() -> GaussianMixture:
    return load("mixture2d").exact


def gaussian(dim: int, variance: float = 0.25) -> GaussianMixture:
    """One Gaussian, not quite isotropic where it has more than one dimension; at the origin."""
    basis = torch.full((1, dim, 1), dim**-0.5, dtype=torch.float64)
    excess = torch.full((1, 1), variance if dim > 1 else 0.0, dtype=torch.float64)
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dim, dtype=torch.float64)
    return GaussianMixture(one, zero, basis, excess, variance * one)


def drawn(denoiser: Denoiser, n: int) -> torch.Tensor:
    return denoiser.prior(n, torch.Generator().manual_seed(0))


def spent(method: Method, denoiser: Denoiser, nfe: int, n: int = 4) -> tuple[float, torch.Tensor]:
    x = drawn(denoiser, n)
    with counting(denoiser) as tallies:
        samples = method.sample(denoiser, x, nfe)
    return tallies["nfe"].rows / n, samples


def exact_variance(method: Method, nfe: int, variance: float = 0.25) -> float:
    """The variance of the samples for Gaussian data: there a sampler is a linear map of its start and its
    noises, and every row of the batch has one of these set to 1 and the others to 0.
    """
    denoiser = exact(gaussian(1, variance), method.schedule or method.schedules[0])
    x = torch.zeros(4 * nfe + 2, 1, dtype=torch.float64)
    x[0] = denoiser.schedule.sigma(denoiser.schedule.t_max)
    calls = 0

    def unit(like: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        noise = torch.zeros_like(like)
        noise[calls] = 1
        return noise

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn_like", unit)
        return float(method.sample(denoiser, x, nfe).square().sum())


def order(method: Method, n: int) -> float:
    """From three variances, at n, 2n and 4n evaluations."""
    a, b, c = (exact_variance(method, k) for k in (n, 2 * n, 4 * n))
    return math.log2(abs((a - b) / (b - c)))


def sliced_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Wasserstein-2 over 64 directions of the plane; b has a multiple of a's rows."""
    angles = torch.pi * torch.arange(64, dtype=torch.float64) / 64
    directions = torch.stack([angles.cos(), angles.sin()])
    a, b = ((x.double() @ directions).sort(0).values for x in (a, b))
    return float((a - b.unflatten(0, (len(a), -1)).mean(1)).square().mean().sqrt())


@pytest.mark.parametrize("name", FIXED)
def test_no_budget_is_overspent_under_any_schedule_and_the_start_is_left_as_it_was(name):
    cls = plugin(name)
    for schedule in cls.schedules:
        denoiser = exact(ring(), schedule)
        before = drawn(denoiser, 4)
        for nfe in (*range(cls.least, 13), 20, 43, 61):
            x = before.clone()
            with counting(denoiser, allowance=4 * nfe):
                samples = cls().sample(denoiser, x, nfe)
            assert torch.equal(x, before)
            assert samples.shape == x.shape and samples.dtype == x.dtype and samples.isfinite().all()


@pytest.mark.parametrize("name", [*FIXED, "ggf"])
def test_samples_have_the_shape_and_the_precision_of_the_start(name):
    mixture = gaussian(12)
    denoiser = exact(mixture, plugin(name).schedules[0])
    shaped = Denoiser(
        ExactNetwork(mixture, (3, 2, 2), denoiser.sigma_data),
        SCHEDULES[plugin(name).schedules[0]](),
        (3, 2, 2),
        "x0",
        denoiser.sigma_data,
    )
    for dtype in (torch.float32, torch.float64):
        x = drawn(shaped, 2).to(dtype)
        torch.manual_seed(0)
        samples = plugin(name)().sample(shaped, x, 11)
        assert samples.shape == x.shape and samples.dtype == dtype
        torch.manual_seed(0)
        assert torch.equal(samples, plugin(name)().sample(shaped, x, 11))


@pytest.mark.parametrize("name", FIXED)
def test_five_hundred_evaluations_reach_the_exact_distribution(name):
    mixture = ring()
    denoiser = exact(mixture, plugin(name).schedules[0])
    torch.manual_seed(1)
    _, samples = spent(plugin(name)(), denoiser, 500, 2048)
    truth = mixture.sample(2048 * 16, torch.Generator().manual_seed(5))
    assert (samples.mean(0) - mixture.mean()).norm() < 0.06
    assert (samples.double().T.cov() - mixture.cov()).norm() < 0.06
    assert sliced_distance(samples, truth) < 0.06  # 2048 exact samples are at some 0.03


@pytest.mark.parametrize(
    "name", ["euler_maruyama", "reverse_diffusion", "ddpm", "dpm2015", "consistent_annealed"]
)
def test_one_evaluation_a_step_gives_weak_order_one(name):
    # For Gaussian data Euler's leading error vanishes under VE, and under VP changes sign at these sizes.
    schedule = "subvp" if name == "euler_maruyama" else ""
    assert order(plugin(name)(schedule=schedule), 160) == pytest.approx(1, abs=0.15)


def test_the_multistep_sde_solver_has_weak_order_two():
    assert order(plugin("dpmpp_2m_sde")(), 40) == pytest.approx(2, abs=0.1)


def test_the_improved_euler_steps_of_ggf_have_weak_order_two_while_none_is_refused():
    def variance(n: int) -> float:
        steps = plugin("ggf")(theta=1.0, r=0.0, h_first=0.999 / n, eps_abs=1e12)
        return exact_variance(steps, n)

    a, b, c = variance(20), variance(40), variance(80)
    assert math.log2(abs((a - b) / (b - c))) == pytest.approx(2, abs=0.1)
    assert c == pytest.approx(0.25, rel=0.005)


def test_edm_without_churn_is_its_deterministic_sampler():
    denoiser = exact(ring(), "edm")
    calm = spent(plugin("edm_stochastic")(S_churn=0.0), denoiser, 15)
    heun = spent(plugin("edm_heun")(), denoiser, 15)
    assert calm[0] == heun[0] == 15
    assert torch.allclose(calm[1], heun[1], atol=1e-5)


def test_churn_moves_samples_only_between_its_two_levels():
    denoiser = exact(ring(), "edm")
    calm, churned, elsewhere = (
        spent(plugin("edm_stochastic")(S_churn=churn, S_min=low), denoiser, 15)[1]
        for churn, low in ((0.0, 0.01), (30.0, 0.01), (30.0, 0.99))
    )
    assert not torch.allclose(calm, churned, atol=1e-3)
    assert torch.allclose(calm, elsewhere, atol=1e-5)


def test_the_most_churn_asks_nothing_beyond_what_the_network_knows():
    churned = plugin("edm_stochastic")(S_churn=1e9, S_min=0.0, S_max=1e9)
    assert spent(churned, exact(ring(), "edm"), 15)[1].isfinite().all()


def test_the_multistep_solver_without_noise_is_the_ode_solver():
    denoiser = exact(ring(), "vp")
    for nfe in (5, 20):
        _, still = spent(plugin("dpmpp_2m_sde")(eta=0.0), denoiser, nfe)
        _, ode = spent(plugin("dpmpp_2m")(), denoiser, nfe)
        assert torch.allclose(still, ode, atol=1e-5)


def test_no_restart_is_edms_sampler():
    denoiser = exact(ring(), "edm")
    for nfe in (7, 24, 51):
        rows, samples = spent(plugin("restart")(K=0), denoiser, nfe)
        other, heun = spent(plugin("edm_heun")(), denoiser, nfe)
        assert rows == other and torch.allclose(samples, heun, atol=1e-5)


@pytest.mark.parametrize(
    "nfe, main, k, inner", [(43, 18, 2, 2), (55, 18, 5, 2), (75, 18, 10, 2), (115, 18, 20, 2)]
)
def test_restarts_split_of_the_budget_is_the_papers(nfe, main, k, inner):
    method = plugin("restart")()
    assert method.split(nfe) == (main, k, inner)
    assert spent(method, exact(ring(), "edm"), nfe)[0] == nfe


def test_a_small_budget_still_has_one_restart_and_one_of_five_hundred_has_longer_ones():
    method = plugin("restart")()
    assert method.split(7) == (2, 1, 2) and method.split(10) == (3, 1, 2) and method.split(42) == (18, 1, 2)
    assert method.split(500) == (18, 29, 8)


def test_restart_refuses_more_restarts_than_the_budget_has():
    with pytest.raises(ValueError, match="need at least 43 evaluations, not 20"):
        plugin("restart")(K=10).sample(exact(ring(), "edm"), torch.zeros(2, 2), 20)


def test_ddim_with_all_its_noise_is_ddpm_with_the_posteriors_variance():
    denoiser = exact(ring(), "vp")
    samples = []
    for method in (plugin("ddim")(eta=1.0), plugin("ddpm")(variance="posterior")):
        torch.manual_seed(3)
        samples.append(spent(method, denoiser, 20)[1])
    assert torch.allclose(*samples, atol=1e-4)


@pytest.mark.parametrize("schedule, twin", [("vp", "reverse_diffusion"), ("ve", "predictor_corrector")])
def test_score_sde_corrects_under_ve_only(schedule, twin):
    denoiser = exact(ring(), schedule)
    samples = []
    for name in ("score_sde", twin):
        torch.manual_seed(3)
        samples.append(spent(plugin(name)(), denoiser, 20)[1])
    assert torch.equal(*samples)


def test_reverse_diffusion_takes_the_papers_step_of_the_vp_chain():
    from bench.diffusion.schedule import ddpm_betas
    from bench.diffusion.steps import reverse_diffusion

    denoiser = exact(ring(), "ddpm")
    x, beta = drawn(denoiser, 4), ddpm_betas()[499]
    s, t = (torch.tensor(k / 1000, dtype=torch.float64) for k in (500, 499))
    mean, variance = reverse_diffusion(denoiser, x, s, t)
    assert float(variance) == pytest.approx(float(beta), rel=1e-9)
    assert torch.allclose(mean, (2 - (1 - beta).sqrt()) * x + beta * denoiser(x, s).score, atol=1e-6)


def test_a_correctors_step_has_the_signal_to_noise_ratio_asked_for():
    from bench.diffusion.steps import langevin

    denoiser = exact(gaussian(256), "ve")
    s = torch.tensor(0.5, dtype=torch.float64)
    x = drawn(denoiser, 16) / 50 * torch.linspace(0.5, 1.5, 16)[:, None]  # of the size it has at s
    score = denoiser(x, s).score
    for per_sample in (False, True):
        torch.manual_seed(0)
        moved = langevin(denoiser, x, s, s, 0.16, per_sample)
        torch.manual_seed(0)
        noise = torch.randn_like(x)
        length = (lambda a: a.norm(dim=1, keepdim=True)) if per_sample else (lambda a: a.norm(dim=1).mean())
        size = 2 * (0.16 * length(noise) / length(score)) ** 2
        assert torch.allclose(moved, x + size * score + (2 * size).sqrt() * noise, atol=1e-5)


def test_ncsn_finds_the_step_that_its_paper_chose():
    from zoo.foundations.ncsn import step_size

    gamma = (50 / 0.01) ** (1 / 231)
    assert step_size(gamma, 5) * 0.01**2 == pytest.approx(6.2e-6, rel=0.05)


@pytest.mark.parametrize(
    "name, hyper",
    [
        ("consistent_annealed", {}),
        ("dpmpp_2m_sde", {}),
        ("edm_stochastic", {"S_noise": 1.0}),
        ("restart", {}),
        ("ddpm", {"variance": "posterior"}),
    ],
)
def test_for_data_in_one_point_the_noise_is_the_schedules_at_every_evaluation(name, hyper):
    sizes = noise_at_evaluations(plugin(name)(**hyper))
    assert torch.allclose(sizes, torch.ones_like(sizes), atol=1e-6)


def test_for_data_in_one_point_ncsn_keeps_the_noise_that_its_rule_says():
    from zoo.foundations.ncsn import step_size

    squares = noise_at_evaluations(plugin("ncsn")())[:-1] ** 2
    gamma = 5000 ** (1 / 21)  # 22 levels of one step, and the denoising
    e = step_size(gamma, 1)
    assert torch.allclose(squares[1:], gamma**2 * ((1 - e) ** 2 * squares[:-1] + 2 * e), rtol=1e-5)


def noise_at_evaluations(method: Method) -> torch.Tensor:
    """For data in one point and 23 evaluations, the size of each input in units of its level's noise."""
    denoiser = exact(gaussian(1, variance=1e-12), method.schedules[0])
    rows = torch.zeros(40, 1, dtype=torch.float64)
    rows[0] = denoiser.schedule.sigma(denoiser.schedule.t_max)
    noises = iter(torch.eye(40, dtype=torch.float64)[1:, :, None])
    seen = []
    denoiser.net.register_forward_pre_hook(lambda net, inputs: seen.append(inputs[0]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn_like", lambda like: next(noises))
        method.sample(denoiser, rows, 23)
    return torch.stack(seen).square().sum((1, 2)).sqrt()


def test_consistent_annealing_refuses_a_step_too_small_for_its_levels():
    method = plugin("consistent_annealed")(eta=1e-3)
    with pytest.raises(ValueError, match="take at least"):
        method.sample(exact(ring(), "ve"), torch.zeros(2, 2), 10)


def test_ggf_spends_less_the_more_error_it_is_allowed():
    denoiser = exact(gaussian(64), "vp")
    costs = []
    for tolerance in (0.02, 0.05, 0.2, 1.0):
        torch.manual_seed(0)
        costs.append(spent(plugin("ggf")(tolerance=tolerance), denoiser, 100, 64)[0])
    assert costs == sorted(costs, reverse=True) and costs[0] > 3 * costs[-1]


def test_ggf_keeps_the_variance_of_data_in_many_dimensions():
    mixture = gaussian(256)
    torch.manual_seed(0)
    _, samples = spent(plugin("ggf")(tolerance=0.05), exact(mixture, "vp"), 100, 128)
    assert float(samples.var(0).sum() / mixture.variance()) == pytest.approx(1, abs=0.03)


def test_ggf_evaluates_only_the_samples_on_their_way_and_stops_when_it_is_told_to():
    denoiser = exact(ring(), "vp")
    seen = []
    handle = denoiser.net.register_forward_pre_hook(lambda net, inputs: seen.append(len(inputs[0])))
    torch.manual_seed(0)
    plugin("ggf")(tolerance=0.1).sample(denoiser, drawn(denoiser, 32), 100)
    assert sorted(seen[:-1], reverse=True) == seen[:-1] and seen[-2] < 32 and seen[-1] == 32
    seen.clear()
    stopped = plugin("ggf")(tolerance=1e-6, tries=3).sample(denoiser, drawn(denoiser, 32), 100)
    handle.remove()
    assert len(seen) == 7 and stopped.isfinite().all()


def test_the_chain_of_2015_erases_an_equal_share_in_every_step():
    method = plugin("dpm2015")()
    for schedule in method.schedules:
        denoiser = exact(ring(), schedule)
        times = method.times(denoiser, 6)
        signal = denoiser.schedule.alpha(times[1:-1]) ** 2
        assert torch.allclose(signal, 0.999 * torch.tensor([0.2, 0.4, 0.6, 0.8, 1.0]).double(), atol=1e-6)
        assert float(times[0]) == pytest.approx(denoiser.schedule.t_max) and times[-1] == 0


def test_the_bound_of_2015_is_above_the_exact_nll_and_falls_with_its_steps():
    mixture = ring()
    denoiser, method = exact(mixture, "vp"), plugin("dpm2015")()
    x = mixture.sample(1000, torch.Generator().manual_seed(2))
    truth = float(-mixture.log_prob(x).mean())
    bounds = []
    for nfe in (5, 20, 80, 320):
        torch.manual_seed(0)
        with counting(denoiser, allowance=1000 * nfe):
            bounds.append(float(sum(method.nll(denoiser, x, nfe).values()).mean()))
    assert bounds == sorted(bounds, reverse=True)
    assert truth < bounds[-1] < truth + 0.35
