"""The exact-likelihood leaf: bounds of the plug-in SDE, dequantisation, and the losses that train for
likelihood, against what is known.
"""

import dataclasses
import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from bench.data import load
from bench.diffusion import dequantise, training
from bench.diffusion.bounds import continuous_bound
from bench.diffusion.counting import counting
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.dequantise import TruncatedNormal, Uniform, Variational
from bench.diffusion.exact import ExactNetwork
from bench.diffusion.likelihood import divergence
from bench.diffusion.schedule import SCHEDULES, VP
from bench.diffusion.score_models import even_times, span
from zoo.likelihood_improvement.exact_likelihood import high_order_dsm, idode
from zoo.likelihood_improvement.exact_likelihood.high_order_dsm import HighOrderDSM
from zoo.likelihood_improvement.exact_likelihood.huang_bound import HuangBound
from zoo.likelihood_improvement.exact_likelihood.idode import IDODE
from zoo.likelihood_improvement.exact_likelihood.score_flow import ScoreFlow
from zoo.likelihood_improvement.exact_likelihood.soft_truncation import SoftTruncation

DATA = load("mixture2d")
X = DATA.test[:400].double()
LEVELS = 17


def exact_denoiser(schedule: str) -> Denoiser:
    net = ExactNetwork(DATA.exact, (2,), DATA.sigma_data)
    return Denoiser(net, SCHEDULES[schedule](), (2,), "x0", DATA.sigma_data)


def levelled(n: int = 64):
    """A vector data set of 17 levels."""
    stored = torch.randint(4, 13, (n, 2), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return dataclasses.replace(
        load("digits"), name="levelled", kind="vector", shape=(2,), train=stored, test=stored, levels=LEVELS
    )


def trained(method, data, images: int):
    torch.manual_seed(0)
    model = method.build(None, data, 20)
    with training.session(seed=0, every=1) as session:
        method.train(model, None, data, images, 20)
    return model, [loss for _, loss in session.curve]


# The bound of the plug-in reverse SDE


@pytest.mark.parametrize("schedule", ["vp", "ve", "flow"])
def test_both_forms_of_the_bound_are_tight_for_the_exact_score(schedule):
    denoiser, truth = exact_denoiser(schedule), -DATA.exact.log_prob(X)
    for form in ("denoising", "implicit"):
        torch.manual_seed(0)
        gap = sum(HuangBound(form=form).nll(denoiser, X, 60).values()) - truth
        assert abs(float(gap.mean())) < 4 * float(gap.std()) / math.sqrt(len(X)) + 0.02, form


def test_the_implicit_bound_s_loss_is_what_an_imperfect_score_loses():
    """A network that says eps = 0: Stein's identity leaves D, as denoising does in the mean."""
    blank = exact_denoiser("vp")
    out = lambda x, t: SimpleNamespace(eps=0 * x)
    terms = continuous_bound(blank, X, 3, denoise=out, implicit=True)
    schedule = blank.schedule
    torch.testing.assert_close(terms["diffusion"], torch.full((len(X),), 2 * float(span(schedule))).double())
    torch.manual_seed(0)
    denoising = continuous_bound(blank, X, 200, denoise=out)["diffusion"]
    assert float(denoising.mean()) == pytest.approx(2 * float(span(schedule)), rel=0.01)


def test_the_plug_in_family_ends_where_the_data_is():
    denoiser = exact_denoiser("vp")
    torch.manual_seed(0)
    for mix in (0.0, 0.5, 1.0):
        samples = HuangBound(mix=mix).sample(denoiser, denoiser.prior(500).double(), 100)
        assert float(-DATA.exact.log_prob(samples).mean()) == pytest.approx(
            float(-DATA.exact.log_prob(X).mean()), abs=0.25
        )


# Dequantisation


def test_uniform_noise_stays_in_the_bin_and_costs_nothing():
    x = torch.full((1000, 2), 0.25)
    u, cost = Uniform(LEVELS)(x)
    assert 0.9 / (LEVELS - 1) < float((u - x).abs().max()) <= 1 / (LEVELS - 1)
    assert not bool(cost.any())


def test_the_variational_dequantiser_tells_the_density_of_its_noise(monkeypatch):
    """Against the determinant of the whole map from normal noise to the bin."""
    torch.manual_seed(0)
    flow = Variational((2,), LEVELS).double()
    for p in flow.parameters():
        torch.nn.init.normal_(p, std=0.5)
    x, noise = torch.full((1, 2), 0.25, dtype=torch.float64), torch.randn(1, 2, dtype=torch.float64)

    def spread(noise):
        monkeypatch.setattr(dequantise, "drawn", lambda *_: noise)
        return flow(x)

    jacobian = torch.autograd.functional.jacobian(lambda noise: spread(noise)[0], noise)[0, :, 0]
    log_q = torch.distributions.Normal(0, 1).log_prob(noise).sum() - jacobian.det().abs().log()
    with torch.no_grad():
        u, cost = spread(noise)
    assert float((u - x).abs().max()) < 1 / (LEVELS - 1)
    torch.testing.assert_close(cost[0], log_q.detach() + 2 * math.log(2 / (LEVELS - 1)))


def test_the_truncated_normal_s_cost_is_its_negative_entropy():
    x, half = torch.zeros(200_000, 1), 1 / (LEVELS - 1)
    for deviation in (half / 3.02, half, 10 * half):
        u, cost = TruncatedNormal(LEVELS, deviation)(x)
        z = u.double() / deviation
        mass = math.erf(half / deviation / math.sqrt(2))
        log_q = -(z**2) / 2 - math.log(math.sqrt(2 * math.pi) * deviation * mass) + math.log(2 * half)
        assert float(u.abs().max()) <= half + 1e-6
        assert float(cost[0]) == pytest.approx(float(log_q.mean()), abs=0.01)


def test_noise_of_a_training_step_is_not_the_noise_of_its_dequantisation():
    x = torch.zeros(128, 2)
    generator = training.seeded(0, 1, 0)
    torch.manual_seed(generator.initial_seed())  # as the training loop does
    torch.randint(10, (128,))
    u, _ = Uniform(LEVELS)(x, generator)
    eps = torch.randn(x.shape, generator=generator)
    assert abs(float(torch.corrcoef(torch.stack([u.flatten(), eps.flatten()]))[0, 1])) < 0.2


def test_variational_dequantisation_is_trained_with_the_score_and_told_in_its_own_term():
    data = levelled()
    before = ScoreFlow(dequantisation="variational").build(None, data, 20)
    method = ScoreFlow(dequantisation="variational")
    model, _ = trained(method, data, 1500)
    moved = [
        float((a - b).detach().abs().max())
        for a, b in zip(before.spread.parameters(), model.spread.parameters())
    ]
    assert max(moved) > 1e-3
    with torch.no_grad(), counting(model) as tallies:
        terms = method.nll(model, data.scale(data.test), 20)
    assert set(terms) == {"flow", "dequantisation"} and bool((terms["dequantisation"] != 0).any())
    assert tallies["extra"].rows == len(data.test)
    uniform = ScoreFlow().build(None, data, 20)
    assert not bool(ScoreFlow().bound(uniform, data.scale(data.test), 4)["dequantisation"].any())


# Training for likelihood


def test_likelihood_weighting_tightens_the_gap_between_the_bound_and_the_flow():
    gaps = {}
    for weighting in ("likelihood", "original"):
        method = ScoreFlow(weighting=weighting)
        model, _ = trained(method, DATA, 12_000)
        with torch.no_grad():
            x = DATA.test[:500]
            torch.manual_seed(0)
            nll, bound = (sum(ask(model, x, 40).values()) for ask in (method.nll, method.bound))
        gaps[weighting] = float((bound - nll).mean())
        assert float((nll + DATA.exact.log_prob(x.double())).mean()) > 0
    assert -0.1 < gaps["likelihood"] < gaps["original"] - 0.05


def test_drawn_times_have_an_even_log_snr_above_the_truncation():
    schedule, generator = VP(), torch.Generator().manual_seed(0)
    tau = 0.1
    lam = schedule.lam(even_times(schedule, 20_000, generator, tau)).sort().values
    even = torch.linspace(float(schedule.lam(1.0)), float(schedule.lam(tau)), 20_000, dtype=torch.float64)
    assert float((lam - even).abs().max()) < 0.03 * span(schedule, tau)


@pytest.mark.parametrize("k", [1.0, 2.0])
def test_the_truncation_time_has_the_paper_s_density(k):
    schedule, generator = VP(t_min=1e-5), torch.Generator().manual_seed(0)
    tau = SoftTruncation(k=k, draws=4000).truncations(schedule, generator)
    edges = torch.logspace(-5, 0, 11, dtype=torch.float64)
    seen = torch.stack([((tau >= a) & (tau < b)).double().mean() for a, b in pairwise(edges)])
    mass = edges[1:].log() - edges[:-1].log() if k == 1 else 1 / edges[:-1] - 1 / edges[1:]
    torch.testing.assert_close(seen, mass / mass.sum(), atol=0.03, rtol=0)


def test_every_order_s_loss_prefers_the_exact_score():
    """Each order's expected target is the derivative itself, so that a ripple on the score costs more."""
    denoiser = exact_denoiser("vp")
    t = torch.full((20_000,), 0.3, dtype=torch.float64)
    data = DATA.exact.sample(20_000, torch.Generator().manual_seed(4))
    good = high_order_dsm.losses(denoiser, data, t, torch.Generator().manual_seed(0), 3)
    worse = Denoiser(Shrunk(denoiser.net.net), denoiser.schedule, (2,), "x0", DATA.sigma_data)
    bad = high_order_dsm.losses(worse, data, t, torch.Generator().manual_seed(0), 3)
    assert all(float(a.detach().mean()) < float(b.detach().mean()) for a, b in zip(good, bad))


class Shrunk(torch.nn.Module):
    """A network whose answer has a ripple: a small error with large derivatives."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, lam):
        return self.net(x, lam) + 0.05 * torch.sin(20 * x)


@pytest.mark.parametrize("highest", [1, 2, 3])
def test_high_order_training_lowers_its_losses(highest):
    method = HighOrderDSM(highest=highest, tuned=0.5)
    model, curve = trained(method, DATA, 6_000)
    assert all(math.isfinite(value) for value in curve)
    with torch.no_grad():
        nats = sum(method.nll(model, DATA.test[:200], 40).values())
    assert bool(nats.isfinite().all())


@pytest.mark.parametrize("schedule", ["vp", "flow"])
def test_important_times_have_the_density_of_alpha_squared(schedule):
    narrow = SCHEDULES[schedule]().narrowed((-2.5, 4.0))
    lam = narrow.lam(idode.important(narrow, (torch.arange(5000, dtype=torch.float64) + 0.5) / 5000))
    edges = torch.linspace(-2.5, 4.0, 6, dtype=torch.float64)
    seen = torch.histc(lam, 5, -2.5, 4.0) / 5000
    inside = torch.stack([torch.linspace(float(a), float(b), 200) for a, b in pairwise(edges)])
    mass = (narrow.alpha(narrow.time(inside.double())) ** 2).mean(1)
    torch.testing.assert_close(seen, mass / mass.sum(), atol=2e-3, rtol=0)


@pytest.mark.parametrize(("schedule", "form"), [("vp", "v"), ("flow", "u")])
def test_the_second_order_loss_is_zero_in_the_mean_at_the_exact_velocity(schedule, form):
    """sigma div v = alpha (D - E|v - v(x)|^2) holds for the exact posterior mean; signs and factors show."""
    denoiser = exact_denoiser(schedule)
    denoiser.form = form
    exact = ExactNetwork(DATA.exact, (2,), DATA.sigma_data)
    as_x0 = Denoiser(exact, denoiser.schedule, (2,), "x0", DATA.sigma_data)
    t = torch.full((40_000,), 0.3, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    x0 = DATA.exact.sample(len(t), generator)
    eps = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    velocity = (lambda out, x: out.v) if form == "v" else (lambda out, x: out.eps - out.x0)
    x = as_x0.noised(x0, t, eps)
    value, trace = divergence(lambda y: velocity(as_x0(y, t), y), x, "exact")
    first = ((denoiser.target(x0, eps, t) - value) / idode.NORM[form]) ** 2
    gap = idode.mismatch(denoiser, t, first.sum(1), trace)
    assert abs(float(gap.mean())) < 4 * float(gap.std()) / math.sqrt(len(gap))


def test_truncated_normal_dequantisation_starts_the_flow_where_half_a_bin_is_tau():
    data = levelled()
    model = IDODE().build(None, data, 20)
    first = model.denoiser.schedule
    deviation = float(first.sigma(first.t_min) / first.alpha(first.t_min))
    assert 1 / (LEVELS - 1) / deviation == pytest.approx(3.02, rel=1e-3)
    assert model.spread.deviation == pytest.approx(deviation, rel=1e-6)
    assert float(first.lam(first.t_max)) == pytest.approx(-2.5, abs=1e-6)
