"""Likelihood by a better reverse variance: learned between two, analytic, by a second head; and STF."""

import importlib
import inspect
import math
from itertools import pairwise

import pytest
import torch

from bench.data import load
from bench.diffusion import training
from bench.diffusion.counting import counting
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.exact import ExactNetwork
from bench.diffusion.likelihood import normal_kl
from bench.diffusion.schedule import SCHEDULES, cosine_table, ddpm_table, linear_table
from bench.diffusion.steps import posterior
from bench.diffusion.training import denoising_loss, seeded
from bench.method import Method
from bench.models import recipes
from zoo.likelihood_improvement.reverse_variance.iddpm import HISTORY, remember
from zoo.likelihood_improvement.reverse_variance.stf import stable

DATA = load("mixture2d")
FOLDER = {"ddpm": "foundations", "analytic_ddpm": "sampling_acceleration.analytic"}


def plugin(name: str, **fields) -> Method:
    folder = FOLDER.get(name, "likelihood_improvement.reverse_variance")
    module = importlib.import_module(f"zoo.{folder}.{name}")
    own = [c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__]
    return next(c for c in own if issubclass(c, Method))(**fields)


def fitted(name: str, images: int, **fields):
    """A method and its model on mixture2d; the base given is exact."""
    method = plugin(name, **fields)
    base = recipes.exact_denoiser(DATA).under(SCHEDULES[method.schedules[0]]()) if method.base else None
    torch.manual_seed(0)
    model = method.build(base, DATA, 10)
    with training.session(seed=0) as session:
        method.train(model, base, DATA, images, 10)
    return method, model.eval(), session


def excess(method: Method, model, nfe: int, rows: int = 1000) -> tuple[float, float]:
    """How far a likelihood lies above the exact value in nats, and the standard error of that."""
    torch.manual_seed(1)
    with torch.no_grad():
        found = method.nll(model, DATA.test[:rows], nfe)
    total = sum(found.values()) if isinstance(found, dict) else found
    gap = total + DATA.exact.log_prob(DATA.test[:rows].double())
    return float(gap.mean()), float(gap.std() / rows**0.5)


# The processes


def test_the_cosine_table_ends_with_no_beta_above_its_most():
    table = cosine_table(50)
    betas = 1 - torch.exp(table.log_alpha_bar.diff())
    assert float(betas.max()) == pytest.approx(0.999)
    assert float(table.alpha(0.5)) == pytest.approx(float(SCHEDULES["vp_cosine"]().alpha(0.5)), rel=1e-9)


def test_the_linear_table_of_a_thousand_steps_is_ddpm_s_and_others_end_alike():
    assert torch.allclose(linear_table(1000).log_alpha_bar, ddpm_table().log_alpha_bar)
    assert float(linear_table(4000).lam(1.0)) == pytest.approx(float(ddpm_table().lam(1.0)), abs=0.04)


# iDDPM


def exact_iddpm(v: float, T: int = 40) -> tuple[Method, Denoiser]:
    """iDDPM's model with the exact mean and the same v everywhere."""
    method = plugin("iddpm", T=T)
    model = method.build(None, DATA, 10)

    class Said(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.exact = ExactNetwork(DATA.exact, DATA.shape, DATA.sigma_data).double()

        def forward(self, x, lam):
            x0 = self.exact(x.double(), lam.double())
            return torch.cat([x0, torch.full_like(x0, v)], 1)

    exact = Denoiser(Said(), model.schedule, DATA.shape, "x0", DATA.sigma_data)
    return method, exact


@pytest.mark.parametrize("v", [-1.0, 0.0, 1.0])
def test_the_variance_lies_between_the_posterior_s_and_the_chain_s_own(v):
    method, model = exact_iddpm(v)
    times = method.times(model, 10)
    x = DATA.test[:5].double()
    for s, t in pairwise(times[:-1]):
        q = posterior(model.schedule, s, t)
        _, variance = method.reverse(model, times, x, s, t)
        wanted = torch.exp((1 - v) / 2 * q.variance.log() + (1 + v) / 2 * q.forward.log())
        assert torch.allclose(variance, wanted.expand_as(variance))
    _, last = method.reverse(model, times, x, times[-2], times[-1])
    assert (last >= posterior(model.schedule, times[-3], times[-2]).variance * (1 - 1e-9)).all()


def test_the_terms_trained_on_sum_to_the_bound_of_the_whole_chain():
    method, model = exact_iddpm(0.3)
    length, x0 = method.length(model), DATA.test[:400].double()
    torch.manual_seed(0)
    found = 0.0
    for n in range(1, length + 1):
        s = torch.full((len(x0),), n / method.T, dtype=torch.float64)
        out = model(model.noised(x0, s, torch.randn_like(x0)), s)
        number = torch.full((len(x0),), float(n), dtype=torch.float64)
        found = found + method.term(model, x0, out, out.x0, number).double() * 2 * math.log(2)
    floor = posterior(model.schedule, torch.tensor(2.0) / method.T, torch.tensor(1.0) / method.T).variance
    found = found + torch.log(2 * math.pi * math.e * floor)  # the first term is told above that of its noise
    terms = method.nll(model, x0, length)
    told = terms["diffusion"] + terms["reconstruction"]
    assert float(found.mean()) == pytest.approx(float(told.mean()), abs=4 * float((found - told).std()) / 20)


def test_the_bound_is_a_sum_of_kl_terms_written_out():
    method, model = exact_iddpm(-0.4)
    x0 = DATA.test[:50].double()
    torch.manual_seed(2)
    terms = method.nll(model, x0, 6)
    torch.manual_seed(2)
    times, total = method.times(model, 6), 0.0
    abar = model.schedule.alpha(times) ** 2
    for i in range(5):
        now, then = abar[i], abar[i + 1]
        beta = 1 - now / then
        tilde = beta * (1 - then) / (1 - now)
        x = now.sqrt() * x0 + (1 - now).sqrt() * torch.randn(x0.shape).double()
        said = model(x, times[i]).x0
        on_x0, on_x = then.sqrt() * beta / (1 - now), (now / then).sqrt() * (1 - then) / (1 - now)
        variance = torch.exp(0.3 * beta.log() + 0.7 * tilde.log())
        total = total + normal_kl(on_x * x + on_x0 * x0, tilde, on_x * x + on_x0 * said, variance)
    assert torch.allclose(terms["diffusion"], total, rtol=1e-4, atol=1e-5)


def test_in_the_hybrid_loss_the_bound_does_not_move_the_mean():
    method = plugin("iddpm", T=40)
    torch.manual_seed(0)
    model = method.build(None, DATA, 10)
    x0, n = DATA.test[:8], torch.arange(1.0, 9.0, dtype=torch.float64)
    out = model(model.noised(x0, n / 40, torch.randn(8, 2)), n / 40)
    method.term(model, x0, out, out.x0.detach(), n).sum().backward()
    weight = model.net.net.leave[-1].weight.grad  # rows: the mean's two, then the variance's
    assert weight[:2].abs().max() == 0 and weight[2:].abs().max() > 0


def test_steps_are_drawn_alike_until_each_has_a_history_and_then_by_their_terms():
    method = plugin("iddpm", T=40, objective="vlb")
    model = method.build(None, DATA, 10)
    length, generator = method.length(model), seeded(0)
    for _ in range(HISTORY):
        n, weight = method.drawn(model, length, generator)
        assert sorted(n.tolist()) == list(range(1, length + 1)) and (weight == 1).all()
        remember(model, n, n.float())  # the n-th step's term is n
    n, weight = method.drawn(model, 200_000, generator)
    share = torch.bincount(n.long(), minlength=length + 1)[1:] / len(n)
    wanted = torch.arange(1, length + 1) / (length * (length + 1) / 2)
    assert torch.allclose(share, 0.999 * wanted + 0.001 / length, atol=0.002)
    assert float((weight * n).mean()) == pytest.approx((length + 1) / 2, rel=0.01)  # unbiased


def test_a_history_keeps_the_last_values():
    model = plugin("iddpm", T=40, objective="vlb").build(None, DATA, 10)
    for value in range(HISTORY + 3):
        remember(model, torch.tensor([4.0]), torch.tensor([float(value)]))
    assert sorted(model.history[3].tolist()) == list(range(3, HISTORY + 3))
    assert model.history.sum() == model.history[3].sum()


def test_an_interrupted_training_on_the_bound_goes_on_with_its_history(tmp_path):
    def trained(images_seen: list[int], folder) -> dict:
        method = plugin("iddpm", T=20, objective="vlb")
        torch.manual_seed(0)
        model = method.build(None, DATA, 10)
        for minutes in images_seen:
            with training.session(seed=0, folder=folder, minutes=minutes, save_every=0.0):
                method.train(model, None, DATA, 128 * 6, 10)
        return model.state_dict()

    whole = trained([None], tmp_path / "whole")
    parts = trained([0.0, 0.0, None], tmp_path / "parts")
    assert int(whole["seen"].min()) >= HISTORY
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize("objective", ["hybrid", "vlb", "simple"])
def test_iddpm_learns_a_bound_above_the_truth_that_falls_with_its_steps(objective):
    method, model, _ = fitted("iddpm", 25_000, T=200, objective=objective)
    (few, error), (many, _) = excess(method, model, 5), excess(method, model, 150)
    assert -3 * error < many < few - 0.5
    assert many < 4


def test_a_learned_variance_is_far_better_than_the_posterior_s_at_few_steps_and_no_worse_than_beta():
    method, model, _ = fitted("iddpm", 25_000, T=200, objective="vlb")
    learned, found = excess(method, model, 50)[0], []
    for v in (-1.0, 1.0):
        fixed = lambda module, inputs, out, v=v: torch.cat([out[:, :2], torch.full_like(out[:, 2:], v)], 1)
        hook = model.net.register_forward_hook(fixed)
        found.append(excess(method, model, 50)[0])
        hook.remove()
    assert learned < found[0] - 3 and learned < found[1] + 0.02


def test_iddpm_spends_its_budget_and_no_more():
    method = plugin("iddpm", T=40)
    model = method.build(None, DATA, 10)
    for nfe in (1, 2, 9, 100):
        with torch.no_grad(), counting(model) as tallies:
            assert method.sample(model, model.prior(3), nfe).isfinite().all()
        assert tallies["nfe"].rows == 3 * min(nfe, method.length(model))


def test_an_unknown_objective_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="hybrid, vlb, simple"):
        plugin("iddpm", objective="other").build(None, DATA, 10)


# Analytic-DPM, SN-DPM and NPR-DPM


def test_analytic_dpm_is_analytic_ddpm_on_its_optimal_trajectory():
    fields = {"knots": 40, "points": 64}
    ours, model, _ = fitted("analytic_dpm", 0, **fields)
    theirs, other, _ = fitted("analytic_ddpm", 0, trajectory="optimal", **fields)
    assert excess(ours, model, 10, 100) == excess(theirs, other, 10, 100)


@pytest.mark.parametrize("name", ["sn_dpm", "npr_dpm"])
def test_the_planned_trajectory_has_a_lower_bound_than_the_even_one_and_stays_above_the_truth(name):
    method, model, session = fitted(name, 30_000, candidates=40, points=32)
    planned, error = excess(method, model, 10)
    assert -3 * error < planned < excess(plugin(name, trajectory="even"), model, 10)[0] - 0.3
    assert session.rows == 40 * 32


@pytest.mark.parametrize("name", ["sn_dpm", "npr_dpm"])
def test_every_budget_has_a_chain_of_its_length(name):
    method, model, _ = fitted(name, 256, candidates=20, points=8)
    for nfe in (1, 2, 7, 21, 30):
        times = model.times(nfe)
        assert len(times) == nfe + 1 and (times.diff() < 0).all()
        assert times[0] == model.base.schedule.t_max and times[-1] == 0
        with torch.no_grad(), counting(model) as tallies:
            assert method.sample(model, model.prior(3), nfe).isfinite().all()
        assert tallies["nfe"].rows == 3 * nfe


# STF


def test_the_stable_target_is_the_posterior_mean_over_the_reference_batch():
    among, z, r = torch.randn(7, 2), torch.randn(3, 2), torch.tensor([0.1, 1.0, 10.0])
    for i in range(3):
        weights = torch.tensor(
            [math.exp(-float(((z[i] - y) ** 2).sum()) / (2 * float(r[i]) ** 2)) for y in among]
        )
        wanted = (weights[:, None] * among).sum(0) / weights.sum()
        assert torch.allclose(stable(z, r, among)[i], wanted, atol=1e-5)


def test_stable_targets_vary_less_the_larger_the_reference_batch():
    """The trace of the targets' covariance at given z, over draws of x0 given z and of the reference."""
    r, generator = torch.tensor([0.5]), seeded(5)
    z = DATA.train[:20] + r * torch.randn(20, 2, generator=generator)
    chances = torch.softmax(-(torch.cdist(z, DATA.train) ** 2) / (2 * r**2), 1)
    traces = []
    for size in (1, 8, 64):
        own = torch.multinomial(chances, 40, replacement=True, generator=generator)
        others = torch.randint(10_000, (20, 40, size - 1), generator=generator)
        among = DATA.train[torch.cat([own[..., None], others], 2)]
        targets = torch.stack([torch.cat([stable(z[k, None], r, y) for y in among[k]]) for k in range(20)])
        traces.append(float(targets.var(1).sum(-1).mean()))
    assert traces[1] < traces[0] / 2 and traces[2] < traces[1] / 2


def test_the_loss_with_an_aim_that_is_the_data_is_the_loss_without():
    model = recipes.new_denoiser(DATA)
    x0 = DATA.train[:32]
    plain = denoising_loss(model, x0, seeded(1))
    assert torch.allclose(plain, denoising_loss(model, x0, seeded(1), lambda z, r: x0), atol=1e-3)


def test_stf_learns_a_better_likelihood_than_plain_score_matching_within_one_budget():
    method, model, _ = fitted("stf", 40_000, reference=1024, trace="exact")
    torch.manual_seed(0)
    plain = method.build(None, DATA, 10)
    with training.session(seed=0):
        training.fit(lambda x0, g: denoising_loss(plain, x0, g), plain, DATA, 40_000, lr=method.lr)
    value, error = excess(method, model, 32, 200)
    assert -3 * error < value < excess(method, plain.eval(), 32, 200)[0] - 0.1
