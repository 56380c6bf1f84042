"""The flow's likelihood: estimated traces, what they cost and how far they err, and steps by a tolerance."""

import math

import pytest
import torch

from bench.data import load
from bench.diffusion.counting import counting
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.exact import ExactNetwork
from bench.diffusion.likelihood import flow_estimates, probes_for, traces
from bench.diffusion.schedule import SCHEDULES
from zoo.likelihood_improvement.exact_likelihood.probability_flow import ProbabilityFlow

DATA = load("mixture2d")
X = DATA.test[:400].double()


def exact_denoiser(schedule: str) -> Denoiser:
    net = ExactNetwork(DATA.exact, (2,), DATA.sigma_data)
    return Denoiser(net, SCHEDULES[schedule](), (2,), "x0", DATA.sigma_data)


# The trace


def test_hutch_pp_is_exact_where_its_sketch_spans_the_jacobian():
    u, v = torch.randn(2, 30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = u @ v.T
    f = lambda y: y @ matrix.T
    z = torch.randn(4, 30, dtype=torch.float64)
    for mode in ("forward", "reverse"):
        _, found = traces(f, z, "hutch++", probes_for(z, "hutch++", 6), mode)
        torch.testing.assert_close(found, torch.full((2, 4), float(matrix.trace()), dtype=torch.float64))


def test_hutch_pp_is_unbiased_and_beats_hutchinson_where_the_spectrum_decays():
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(40, 40, dtype=torch.float64))[0]
    matrix = basis @ torch.diag(1 / torch.arange(1, 41, dtype=torch.float64) ** 2) @ basis.T
    f = lambda y: torch.sin(y @ matrix.T)
    z = torch.zeros(400, 40, dtype=torch.float64)
    spread = {}
    for trace in ("hutchinson", "hutch++"):
        _, found = traces(f, z, trace, probes_for(z, trace, 12))
        estimate = found.mean(0)
        spread[trace] = float(estimate.std())
        assert abs(float(estimate.mean() - matrix.trace())) < 4 * spread[trace] / math.sqrt(400)
    assert spread["hutch++"] < spread["hutchinson"] / 3


def test_several_probes_cost_derivatives_and_no_evaluations():
    denoiser = exact_denoiser("edm")
    for trace, probes, vjps in (("hutchinson", 4, 4), ("hutch++", 6, 6), ("exact", 1, 2)):
        with counting(denoiser) as tallies:
            ProbabilityFlow(trace=trace, probes=probes).nll(denoiser, X[:10], 40)
        assert (tallies["nfe"].rows, tallies["nfe"].vjps) == (400, 400 * vjps)


def test_hutchinson_s_standard_error_is_reported_and_covers():
    denoiser = exact_denoiser("edm")
    times = denoiser.schedule.steps(16).flip(0)
    exact = flow_estimates(denoiser, X, times, "exact")[0]
    torch.manual_seed(0)
    terms = ProbabilityFlow(probes=16).nll(denoiser, X, 64)
    z = (terms["nll"] - exact) / terms["stderr"]
    assert 0.9 < float((z.abs() < 2.13).double().mean()) < 0.99  # of Student's t with 15 degrees, 95 %


def test_an_impossible_number_of_probes_is_refused_with_a_sentence():
    with pytest.raises(ValueError, match="3, 6, 9"):
        ProbabilityFlow(trace="hutch++", probes=4).nll(exact_denoiser("edm"), X[:4], 40)


# Adaptive integration


def test_adaptive_integration_keeps_the_budget_and_stops_where_its_tolerance_is_met():
    denoiser = exact_denoiser("edm")
    method = ProbabilityFlow(trace="exact", integration="adaptive", tolerance=1e-5)
    spent, gaps = {}, {}
    for nfe in (32, 100, 1000):
        torch.manual_seed(0)
        with counting(denoiser, nfe * len(X)) as tallies:
            nats = method.nll(denoiser, X, nfe)
        spent[nfe] = tallies["nfe"].rows / len(X)
        gaps[nfe] = abs(float((nats + DATA.exact.log_prob(X)).mean()))
    assert spent[1000] < 250
    assert gaps[32] > 3 * gaps[100] >= gaps[1000] and gaps[1000] < 3e-3


@pytest.mark.parametrize("n", [1, 5, 64])
def test_adaptive_integration_of_a_few_rows_keeps_the_budget_too(n):
    denoiser = exact_denoiser("vp")
    for tolerance in (1e-2, 1e-7):
        method = ProbabilityFlow(integration="adaptive", tolerance=tolerance)
        with counting(denoiser, 32 * n):
            assert bool(method.nll(denoiser, X[:n], 32).isfinite().all())
