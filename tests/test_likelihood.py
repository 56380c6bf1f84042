"""Likelihoods against exact ones, bounds against sums written out independently."""

import math

import pytest
import torch
from scipy import stats
from torch import nn

from bench.data import load
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.exact import ExactNetwork
from bench.diffusion.likelihood import bin_log_density, divergence, flow_nll, normal_kl
from bench.diffusion.networks import UNet
from bench.diffusion.schedule import SCHEDULES, Table
from zoo.foundations.ddpm import DDPM
from zoo.likelihood_improvement.exact_likelihood.probability_flow import ProbabilityFlow

DATA = load("mixture2d")
X = DATA.test[:400].double()


def exact_denoiser(schedule: str) -> Denoiser:
    return Denoiser(
        ExactNetwork(DATA.exact, (2,), DATA.sigma_data), SCHEDULES[schedule](), (2,), "x0", DATA.sigma_data
    )


def truth(denoiser: Denoiser) -> torch.Tensor:
    """-log p of X with the noise that the schedule still has at t_min, where its flow begins."""
    r = denoiser.schedule.sigma(denoiser.schedule.t_min) / denoiser.schedule.alpha(denoiser.schedule.t_min)
    return -DATA.exact.log_prob(X, r)


@pytest.mark.parametrize("schedule", ["vp", "subvp", "ve", "edm"])
@pytest.mark.parametrize(("rows", "tolerance"), [(200, 1e-3), (1000, 1e-4)])
def test_the_flow_s_likelihood_is_the_exact_one(schedule, rows, tolerance):
    denoiser = exact_denoiser(schedule)
    nats = ProbabilityFlow(trace="exact").nll(denoiser, X, rows)
    assert abs(float((nats - truth(denoiser)).mean())) < tolerance
    if float(denoiser.schedule.lam(denoiser.schedule.t_min)) >= 6.2:
        assert abs(float((nats + DATA.exact.log_prob(X)).mean())) < tolerance


def test_a_schedule_that_starts_earlier_says_the_density_of_where_it_starts():
    """VP begins at lambda 4.56: its truncation is larger than the solver's error."""
    denoiser = exact_denoiser("vp")
    truncation = float((truth(denoiser) + DATA.exact.log_prob(X)).mean())
    assert abs(truncation) > 1e-4


def test_hutchinson_s_trace_is_unbiased_and_its_error_is_what_its_spread_says():
    denoiser = exact_denoiser("edm")
    times = denoiser.schedule.steps(20).flip(0)
    torch.manual_seed(0)
    draws = torch.stack([flow_nll(denoiser, X[:100], times, "hutchinson").mean() for _ in range(16)])
    exact = flow_nll(denoiser, X[:100], times, "exact").mean()
    assert abs(float(draws.mean() - exact)) < 4 * float(draws.std()) / math.sqrt(16)


def test_every_bound_lies_above_the_truth_and_more_steps_tighten_it():
    exact = -float(DATA.exact.log_prob(X).mean())
    for variance in ("beta", "posterior"):
        torch.manual_seed(0)
        method, denoiser = DDPM(variance=variance), exact_denoiser("ddpm")
        bounds = [float(sum(method.nll(denoiser, X, k).values()).mean()) for k in (10, 50, 300)]
        assert bounds[0] > bounds[1] > bounds[2] > exact


def test_a_bound_with_every_step_is_the_sum_of_the_terms_of_the_paper():
    """T = K = 6 on a small table, against the chain's Gaussians written out, in float64."""
    betas = torch.tensor([0.02, 0.1, 0.2, 0.3, 0.5, 0.7], dtype=torch.float64)
    alpha_bar = torch.cumprod(1 - betas, 0)
    denoiser = Denoiser(
        ExactNetwork(DATA.exact, (2,), DATA.sigma_data), Table(alpha_bar), (2,), "x0", DATA.sigma_data
    )
    x0 = X[:50]
    torch.manual_seed(3)
    found = DDPM(variance="beta").nll(denoiser, x0, 6)
    torch.manual_seed(3)
    kl = torch.zeros(50, dtype=torch.float64)
    for t in range(6, 0, -1):
        bar, before = alpha_bar[t - 1], alpha_bar[t - 2] if t > 1 else torch.ones((), dtype=torch.float64)
        beta, alpha = betas[t - 1], 1 - betas[t - 1]
        x = bar.sqrt() * x0 + (1 - bar).sqrt() * torch.randn(x0.shape).double()
        guess = denoiser(x, t / 6).x0
        mean = lambda x0: before.sqrt() * beta / (1 - bar) * x0 + alpha.sqrt() * (1 - before) / (1 - bar) * x  # noqa: B023
        if t == 1:
            density = torch.distributions.Normal(mean(guess), beta.sqrt()).log_prob(x0).sum(1)
            torch.testing.assert_close(found["reconstruction"], -density)
            continue
        q = torch.distributions.Normal(mean(x0), ((1 - before) / (1 - bar) * beta).sqrt())
        kl += torch.distributions.kl_divergence(q, torch.distributions.Normal(mean(guess), beta.sqrt())).sum(
            1
        )
    torch.testing.assert_close(found["diffusion"], kl)
    prior = torch.distributions.kl_divergence(
        torch.distributions.Normal(alpha_bar[-1].sqrt() * x0, (1 - alpha_bar[-1]).sqrt()),
        torch.distributions.Normal(torch.zeros(()).double(), (1 - alpha_bar[-1]).sqrt()),
    ).sum(1)
    torch.testing.assert_close(found["prior"], prior)


def test_a_bin_s_probability_is_the_normal_s_and_all_bins_sum_to_one():
    levels = torch.arange(17, dtype=torch.float64)[:, None] * (2 / 16) - 1
    for mean, variance in ((0.3, 0.01), (-1.2, 0.0004), (0.9, 4.0)):
        found = bin_log_density(levels, torch.full_like(levels, mean), variance, 17) + math.log(2 / 16)
        assert float(found.exp().sum()) == pytest.approx(1.0, abs=1e-9)
        inner = stats.norm(mean, variance**0.5)
        expected = inner.cdf(levels[8] + 1 / 16) - inner.cdf(levels[8] - 1 / 16)
        assert float(found[8].exp()) == pytest.approx(float(expected[0]), rel=1e-6, abs=1e-12)
    far = bin_log_density(torch.ones(1, 1), -torch.ones(1, 1), 1e-4, 17)
    assert bool(far.isfinite().all())


def test_kl_of_normals_is_torch_s():
    a, b = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(a, 0.3**0.5), torch.distributions.Normal(b, 0.7**0.5)
    )
    torch.testing.assert_close(normal_kl(a, 0.3, b, 0.7), expected.sum(1))


def test_forward_and_reverse_divergence_agree_through_the_unet_s_attention():
    torch.manual_seed(0)
    net = UNet((1, 8, 8), (8, 16), 1).double()
    nn.init.normal_(net.unet.conv_out.weight)
    z, probe = torch.randn(2, 1, 8, 8, dtype=torch.float64), torch.randn(2, 1, 8, 8, dtype=torch.float64)
    f = lambda y: net(y, torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(
        divergence(f, z, "hutchinson", probe, "forward"), divergence(f, z, "hutchinson", probe, "reverse")
    )


def test_an_exact_trace_is_the_jacobian_s_by_either_mode():
    matrix = torch.randn(3, 3, dtype=torch.float64)
    f = lambda y: torch.sin(y @ matrix.T)
    z = torch.randn(5, 3, dtype=torch.float64)
    expected = torch.stack([torch.autograd.functional.jacobian(f, row[None])[0, :, 0].trace() for row in z])
    for mode in ("forward", "reverse"):
        torch.testing.assert_close(divergence(f, z, "exact", mode=mode)[1], expected)
