"""Learned discretisations: the dynamic programme, and what each method learns where the truth is known."""

import itertools

import pytest
import torch

from bench.data import load
from bench.diffusion import training
from bench.diffusion.counting import counting
from bench.diffusion.dynamic import cheapest_paths
from bench.diffusion.schedule import SCHEDULES
from bench.diffusion.steps import heun
from bench.models import kept, recipes
from zoo.sampling_acceleration.discretization.amed import AMED
from zoo.sampling_acceleration.discretization.ddss import DDSS
from zoo.sampling_acceleration.discretization.genie import GENIE, derivative
from zoo.sampling_acceleration.discretization.gits import GITS
from zoo.sampling_acceleration.ode_solver.ddim import DDIM


def exact_base(schedule):
    return recipes.exact_denoiser(load("mixture2d")).under(SCHEDULES[schedule]())


def made(method, nfe, images):
    """The base, the model before and the model after training on the ring of Gaussians."""
    data, base = load("mixture2d"), exact_base(method.schedule or method.schedules[0])
    found = []
    for train in (False, True):
        with torch.random.fork_rng(devices=[]), training.session(seed=0) as session:
            torch.manual_seed(0)
            model = method.build(base, data, nfe)
            if train:
                method.train(model, base, data, images, nfe)
        found.append(model.eval())
    return base, *found, session


def where_the_flow_ends(base, x):
    """x taken along the flow by 200 fine steps."""
    times = base.schedule.steps(200, "lambda")
    z = x / base.schedule.alpha(times[0])
    for s, t in itertools.pairwise(times):
        z = heun(base, z, s, t)
    return z * base.schedule.alpha(times[-1])


def distance(a, b):
    return float((a - b).flatten(1).norm(dim=1).mean())


@pytest.mark.parametrize("growth", [1.0, 1.3])
def test_the_cheapest_path_is_the_one_that_trying_all_finds(growth):
    cost = torch.rand(8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    totals, paths = cheapest_paths(cost, 7, growth)
    for k in range(1, 8):
        tried = [(0, *inner, 7) for inner in itertools.combinations(range(1, 7), k - 1)]
        price = lambda p: sum(growth**n * float(cost[a, b]) for n, (a, b) in enumerate(itertools.pairwise(p)))
        best = min(tried, key=price)
        assert tuple(paths[k - 1, : k + 1].tolist()) == best
        assert float(totals[k - 1]) == pytest.approx(price(best))


def test_a_step_that_is_not_allowed_is_on_no_path():
    cost = torch.tensor([[0.0, 1.0, torch.inf], [0, 0, 1], [0, 0, 0]])
    totals, paths = cheapest_paths(cost, 2)
    assert totals.tolist() == [torch.inf, 2.0]
    assert paths[1].tolist() == [0, 1, 2]


def test_gits_finds_grids_on_which_ddim_errs_less():
    base, before, after, session = made(GITS(p=1), 5, 0)
    x = base.prior(200, torch.Generator().manual_seed(1))
    with torch.no_grad():
        truth = where_the_flow_ends(base, x)
        for nfe in (3, 5, 10, 20):
            usual, found = (GITS(p=1).sample(model, x, nfe) for model in (before, after))
            assert distance(found, truth) < 0.9 * distance(usual, truth), nfe
    assert session.rows == 256 * 60


def test_gits_answers_budgets_beyond_its_fine_grid():
    method, data, base = GITS(points=11), load("mixture2d"), exact_base("edm")
    model = method.build(base, data, 30)
    with torch.no_grad(), counting(model) as tallies:
        samples = method.sample(model, base.prior(4), 30)
    assert tallies["nfe"].rows == 4 * 30
    assert bool(samples.isfinite().all())


@pytest.mark.parametrize(("nfe", "spent"), [(1, 1), (2, 2), (5, 5), (6, 6)])
def test_amed_spends_odd_budgets_on_the_analytical_first_step(nfe, spent):
    method, base = AMED(), exact_base("edm")
    model = method.build(base, load("mixture2d"), nfe)
    with torch.no_grad(), counting(model) as tallies:
        method.sample(model, base.prior(4), nfe)
    assert tallies["nfe"].rows == 4 * spent


def test_amed_learns_to_follow_the_flow():
    base, before, after, _ = made(AMED(), 5, 10_000)
    x = base.prior(200, torch.Generator().manual_seed(1))
    with torch.no_grad():
        truth = where_the_flow_ends(base, x)
        assert distance(AMED().sample(after, x, 5), truth) < 0.7 * distance(
            AMED().sample(before, x, 5), truth
        )


def test_training_amed_leaves_the_shared_base_as_it_was():
    data, base = load("mixture2d"), recipes.new_denoiser(load("mixture2d")).under(SCHEDULES["edm"]())
    known = kept.sha256_of(base)
    model = AMED().build(base, data, 3)
    AMED().train(model, base, data, 300, 3)
    assert kept.sha256_of(base) == known
    assert all(p.requires_grad and p.grad is None for p in base.parameters())


def test_training_amed_holds_the_activations_of_one_step_at_a_time():
    held = [peak_of_saved(lambda nfe=nfe: train_amed(nfe)) for nfe in (4, 20)]
    assert 0 < held[1] < 2 * held[0]


def train_amed(nfe: int) -> None:
    data = load("digits")
    base = recipes.new_denoiser(data).under(SCHEDULES["edm"]())
    AMED().train(AMED().build(base, data, nfe), base, data, 64 * nfe // 2, nfe)


def peak_of_saved(work) -> int:
    """The most numbers that autograd held at once for backward passes while `work` was done."""
    now, peak = 0, 0

    class Held:
        def __init__(self, tensor):
            nonlocal now, peak
            self.tensor, now = tensor, now + tensor.numel()
            peak = max(peak, now)

        def __del__(self):
            nonlocal now
            now -= self.tensor.numel()

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        work()
    return peak


def test_untrained_genie_is_ddim_without_its_last_step():
    method, base = GENIE(spacing="time"), exact_base("vp")
    model = method.build(base, load("mixture2d"), 10)
    x = base.prior(16, torch.Generator().manual_seed(1))
    times = base.schedule.steps(10, "time")
    expected = x / base.schedule.alpha(times[0])
    with torch.no_grad():
        for s, t in itertools.pairwise(torch.exp(-base.schedule.lam(times))):
            expected = expected + (t - s) * base.at(expected, 1.0, s).eps
        assert torch.allclose(
            method.sample(model, x, 10), expected * base.schedule.alpha(times[-1]), atol=1e-5
        )


def test_genie_learns_how_the_noise_changes_along_the_flow():
    base, _, model, _ = made(GENIE(), 5, 12_000)
    g = torch.tensor(0.5, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    z = load("mixture2d").exact.sample(300, generator).float() + 0.5 * torch.randn(
        300, 2, generator=generator
    )
    with torch.no_grad():
        out, step = model.at(z, 1.0, g), 1e-2
        ahead = base.at(z + step * out.eps, 1.0, g + step).eps
        truth = (ahead - out.eps) / step
        left = (derivative(out, g) - truth).square().mean() / truth.square().mean()
    assert float(left) < 0.5


@pytest.mark.parametrize("nfe", [1, 5])
def test_untrained_ddss_is_ddim(nfe):
    base = exact_base("ddpm")
    x = base.prior(16, torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = DDSS().sample(DDSS().build(base, load("mixture2d"), nfe), x, nfe)
        assert torch.allclose(found, DDIM().sample(base, x, nfe), atol=1e-4)


def test_ddss_draws_likelier_samples_than_ddim_at_five_evaluations():
    base, before, after, _ = made(DDSS(), 5, 10_000)
    x, exact = base.prior(500, torch.Generator().manual_seed(1)), load("mixture2d").exact
    with torch.no_grad():
        nll = [
            -float(exact.log_prob(DDSS().sample(model, x, 5).double()).mean()) for model in (before, after)
        ]
    assert nll[1] < nll[0] - 1


def test_the_scales_ddss_tells_its_network_are_those_of_its_states():
    """With the true x0 for the network's, states are a x0 + noise of the scales that the recursion gives."""
    base = exact_base("ddpm")
    model = DDSS().build(base, load("mixture2d"), 4)
    with torch.no_grad():
        for p in model.coefficients.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3)))
    told = []
    truth = torch.tensor([0.3, -0.7])

    class Oracle(torch.nn.Module):
        def at(self, x, alpha, sigma):
            told.append((x, float(alpha), float(sigma)))
            return type("Told", (), {"x0": truth.expand_as(x)})

        known = base.known

    model.base = Oracle()
    noise = torch.randn(200_000, 2, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    with torch.no_grad():
        model(model.start[0].float() * truth + model.start[1].float() * noise)
    for x, alpha, sigma in told:
        assert torch.allclose(x.mean(0), alpha * truth, atol=0.01)
        assert float(x.std(0).mean()) == pytest.approx(sigma, rel=0.01)
