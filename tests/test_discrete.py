"""Noise on tokens, and the methods that take it away: on the chain whose posterior is exact."""

import math
from functools import lru_cache
from itertools import product

import pytest
import torch

from bench import registry
from bench.data import load
from bench.diffusion.categorical import Gaussian, Mixing, cosine, draw
from bench.diffusion.counting import counting
from bench.diffusion.markov import MarkovChain, peaked
from bench.diffusion.tokens import both, grid, step_bound, token_denoiser
from bench.metrics.ngrams import runs, shares

CHAINS = ["d3pm_uniform", "d3pm_absorbing", "d3pm_gaussian", "multinomial"]
BOUNDS = [*CHAINS, "tauldr", "mdlm", "ardm"]


@lru_cache
def made(name: str, **fields):
    """A method and its model on the exact chain."""
    method = registry.find(name, registry.plugins()).make(dict(fields))
    data = load("markov")
    model = method.build(None, data, 10).eval()
    method.train(model, None, data, 100, 10)
    return method, model


def excess(name: str, nfe: int, n: int = 200, **fields) -> tuple[float, float]:
    """How far a bound lies above the exact likelihood, as a share of it, and its standard error."""
    method, model = made(name, **fields)
    x = load("markov").scale(load("markov").test[:n])
    torch.manual_seed(0)
    with torch.no_grad():
        found = method.nll(model, x, nfe)
    total = sum(found.values()) if isinstance(found, dict) else found
    exact = -load("markov").exact.log_prob(x)
    gap = total - exact
    return float(gap.mean() / exact.mean()), float(gap.std() / n**0.5 / exact.mean())


def pairs(name: str, nfe: int, n: int = 500, **fields) -> float:
    """The total variation between the pairs of tokens in samples and the true ones."""
    method, model = made(name, **fields)
    chain = load("markov").exact
    torch.manual_seed(0)
    with torch.no_grad():
        x = method.sample(model, method.start(model, n, torch.Generator().manual_seed(1)), nfe)
    seen = shares(runs(x, chain.levels, 2), chain.levels**2)
    return float((seen - chain.ngrams(2)).abs().sum() / 2)


def kernels():
    return [
        Mixing(3, cosine),
        Mixing(3, keep=lambda t: 1 - t, masked=lambda t: t),
        Mixing(3, keep=lambda t: 1 - t, masked=lambda t: 0.9 * t),
        Gaussian(3, torch.linspace(0.1, 0.9, 20).double()),
    ]


def matrix(link, states: int) -> torch.Tensor:
    return link.column(torch.arange(states)[:, None])[:, 0].T


@pytest.mark.parametrize("kernel", kernels())
def test_the_transitions_of_a_kernel_are_distributions_and_compose(kernel):
    steps = [matrix(kernel.between(t, s), kernel.states) for t, s in ((0.0, 0.25), (0.25, 0.6), (0.0, 0.6))]
    assert torch.allclose(steps[2].sum(1), torch.ones(kernel.states).double())
    assert torch.allclose(steps[0] @ steps[1], steps[2])
    p = torch.tensor([[0.2, 0.5, 0.3]]).double()
    assert torch.allclose(kernel.between(0.0, 0.6).spread(p), p @ steps[2][:3])


@pytest.mark.parametrize("kernel", kernels())
def test_a_reverse_step_is_what_bayes_says(kernel):
    whole, ahead, back = (kernel.between(*ts) for ts in ((0.0, 0.6), (0.0, 0.25), (0.25, 0.6)))
    prior = torch.tensor([0.2, 0.5, 0.3]).double()
    for x in range(kernel.states):
        joint = matrix(ahead, kernel.states)[:3] * matrix(back, kernel.states)[:, x]  # of x_0 and x_t
        if not float(joint.sum()):
            continue
        truth = prior @ joint / (prior @ joint).sum()
        q, p = both(back, ahead, prior.log()[None, None], torch.tensor([[x]]), torch.tensor([[1]]))
        assert torch.allclose(p[0, 0], truth)
        if float(joint[1].sum()):
            assert torch.allclose(q[0, 0], joint[1] / joint[1].sum())
        assert torch.allclose(whole.column(torch.tensor([[x]]))[0, 0, :3], joint.sum(1))


def test_draws_have_the_frequencies_asked_for_and_never_what_is_impossible():
    torch.manual_seed(0)
    p = torch.tensor([0.0, 0.1, 0.0, 0.6, 0.3, 0.0])
    seen = torch.bincount(draw(p.expand(20_000, 6)), minlength=6) / 20_000
    assert torch.allclose(seen, p, atol=0.015)
    assert not bool(seen[p == 0].any())


def test_the_posterior_of_a_chain_is_that_of_all_its_sequences():
    chain = MarkovChain(peaked(3, 1.0, seed=0), 4)
    evidence = torch.rand(1, 4, 3, generator=torch.Generator().manual_seed(0)).double()
    own, others = torch.zeros(2, 4, 3).double()
    for tokens in product(range(3), repeat=4):
        shown = torch.stack([evidence[0, i, k] for i, k in enumerate(tokens)])
        weight = chain.log_prob(torch.tensor([tokens]))[0].exp() * shown.prod()
        for i, k in enumerate(tokens):
            own[i, k] += weight
            others[i, k] += weight / shown[i]
    found = chain.posterior(evidence.log())[0].exp(), chain.posterior(evidence.log(), own=False)[0].exp()
    assert torch.allclose(found[0], own / own.sum(1, keepdim=True))
    assert torch.allclose(found[1], others / others.sum(1, keepdim=True))


@pytest.mark.parametrize("name", BOUNDS)
def test_a_bound_lies_above_the_exact_entropy_and_within_five_percent_of_it(name):
    gap, error = excess(name, 128 if name == "d3pm_gaussian" else 64)
    assert -3 * error < gap < 0.05


@pytest.mark.parametrize("name", [*CHAINS, "ardm"])
def test_a_bound_with_few_steps_is_looser(name):
    assert excess(name, 4)[0] > excess(name, 64)[0] + 0.05


def test_the_continuous_bound_is_no_worse_than_the_discrete_one_it_generalises():
    for continuous, discrete in (("mdlm", "d3pm_absorbing"), ("tauldr", "d3pm_uniform")):
        (gap, error), (other, noise) = excess(continuous, 20), excess(discrete, 20)
        assert gap < other + 2 * math.hypot(error, noise), continuous


@pytest.mark.parametrize("name", [*BOUNDS, "analog_bits"])
def test_more_evaluations_bring_samples_nearer_to_the_chain(name):
    few, many = pairs(name, 4), pairs(name, 48)
    assert many < 0.75 * few


def test_no_method_spends_more_than_its_budget_and_mdlm_spends_less():
    for name in (*BOUNDS, "analog_bits"):
        method, model = made(name)
        x = method.start(model, 8, torch.Generator().manual_seed(0))
        with torch.no_grad(), counting(model) as tallies:
            method.sample(model, x, 40)
        assert tallies["nfe"].rows <= 8 * 40, name
        if name == "mdlm":
            assert tallies["nfe"].rows < 8 * 32  # each evaluation after the first fills a token


def test_correctors_are_paid_for_out_of_the_budget():
    method, model = made("tauldr", correctors=3, late=0.5)
    x = method.start(model, 4, torch.Generator().manual_seed(0))
    with torch.no_grad(), counting(model) as tallies:
        method.sample(model, x, 20)
    assert 4 * 14 <= tallies["nfe"].rows <= 4 * 20


def test_the_bound_of_a_chain_is_that_of_its_strided_steps():
    data = load("markov")
    x = data.scale(data.test[:50])
    kernel = Mixing(data.levels, keep=lambda t: 1 - t, masked=lambda t: t)
    torch.manual_seed(0)
    terms = step_bound(token_denoiser(data, kernel, others=True), x, grid(1000, 1))
    # all at once: the tokens are told apart from each other by their own frequencies
    told = -data.exact.initial.log()[x].sum(1)
    assert torch.allclose(sum(terms.values()), told)


def test_a_budget_on_the_gaussian_chain_can_go_where_letters_move():
    method, model = made("d3pm_gaussian", spacing="kept")
    times = method.times(model, 20)
    assert times[0] == 1 and times[-1] == 0 and len(times) == 21 and bool((times.diff() < 0).all())
    assert excess("d3pm_gaussian", 20, spacing="kept")[0] < 0.7 * excess("d3pm_gaussian", 20)[0]


def test_a_chain_that_has_fewer_steps_than_the_budget_takes_them_all():
    assert len(grid(100, 1000)) == 101
    assert (grid(10, 4) * 10).tolist() == [10, 8, 5, 2, 0]
