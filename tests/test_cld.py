"""Critically-damped Langevin diffusion: moments, the exact score, SSCS, and gDDIM on it."""

import math
from functools import lru_cache

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from bench.data import load
from bench.diffusion import training
from bench.diffusion.cld import CLD, AugmentedDenoiser, applied, hybrid_loss, lower, spread
from bench.diffusion.counting import counting
from bench.diffusion.exact import ExactNetwork, GaussianMixture
from bench.diffusion.networks import MLP
from bench.diffusion.training import seeded
from bench.models import bases, recipes
from zoo.sampling_acceleration.ode_solver.gddim import GDDIM, rotations, stirred
from zoo.sampling_acceleration.sde_solver.cld import CLD as SSCS

PROCESSES = [CLD(), CLD(beta=3.0, friction=1.4, gamma=0.1)]
DRAWS = 4000


def drift(process: CLD) -> torch.Tensor:
    pull = process.beta / process.mass
    return torch.tensor([[0, pull], [-process.beta, -process.friction * pull]], dtype=torch.float64)


def spreading(process: CLD) -> torch.Tensor:
    """G G^T."""
    return torch.tensor([[0, 0], [0, 2 * process.friction * process.beta]], dtype=torch.float64)


def ring(dtype=torch.float64) -> AugmentedDenoiser:
    data = load("mixture2d")
    if dtype == torch.float32:
        return recipes.new_cld(data)
    net = ExactNetwork(data.exact, data.shape, data.sigma_data)
    return AugmentedDenoiser(net, data.shape, "x0", data.sigma_data)


def far(samples: torch.Tensor) -> float:
    """The Wasserstein-1 distance to the ring, the mean over 32 directions; 0.01 to 0.03 for exact draws."""
    truth = load("mixture2d").exact.sample(40_000, seeded(99))
    angles = torch.arange(32, dtype=torch.float64) * math.pi / 32
    directions = torch.stack([angles.cos(), angles.sin()])
    places = (torch.arange(len(samples), dtype=torch.float64) + 0.5) / len(samples)
    wanted = torch.quantile(truth @ directions, places, 0)
    return float(((samples.double() @ directions).sort(0).values - wanted).abs().mean())


def sampled(method, nfe: int, n: int = DRAWS) -> torch.Tensor:
    model = ring(torch.float32)
    torch.manual_seed(0)
    with torch.no_grad(), counting(model, nfe * n):
        return method.sample(model, method.start(model, n, seeded(0, 0)), nfe)


@pytest.mark.parametrize("process", PROCESSES)
def test_moments_solve_the_moment_equations(process):
    f, gg = drift(process), spreading(process)
    for t in (1e-3, 0.03, 0.4, 1.0):
        torch.testing.assert_close(process.transition(t), torch.linalg.matrix_exp(f * t))
        start = torch.diag(torch.tensor([0, process.gamma * process.mass], dtype=torch.float64)).flatten()

        def slope(_, c):
            c = torch.from_numpy(c).reshape(2, 2)
            return (f @ c + c @ f.T + gg).flatten().numpy()

        found = solve_ivp(slope, (0, t), start.numpy(), rtol=1e-11, atol=1e-14, method="DOP853").y[:, -1]
        torch.testing.assert_close(
            process.covariance(t), torch.from_numpy(found).reshape(2, 2), rtol=1e-8, atol=1e-12
        )


def test_the_noise_of_a_short_step_keeps_its_digits():
    h = 1e-6
    process = CLD()
    pull, rate = process.beta / process.mass, 2 * process.friction * process.beta
    leading = [[rate * pull**2 * h**3 / 3, rate * pull * h**2 / 2], [rate * pull * h**2 / 2, rate * h]]
    torch.testing.assert_close(
        process.noise(h), torch.tensor(leading, dtype=torch.float64), rtol=1e-4, atol=0
    )


def test_the_score_of_a_mixture_is_the_gradient_of_its_augmented_density():
    model, mixture = ring(), load("mixture2d").exact
    process, t = model.process, 0.08
    a, sigma = process.mean(t), process.covariance(t)
    two = torch.eye(2, dtype=torch.float64)
    u = process_draws(model, mixture.sample(8, seeded(1)), t).requires_grad_(True)
    logs = []
    for k in range(len(mixture.weights)):
        own = mixture.basis[k] * mixture.excess[k] @ mixture.basis[k].T + mixture.floor[k] * two
        cov = torch.kron(torch.outer(a, a), own) + torch.kron(sigma, two)
        normal = torch.distributions.MultivariateNormal(torch.kron(a, mixture.means[k]), cov)
        logs.append(mixture.weights[k].log() + normal.log_prob(u))
    (wanted,) = torch.autograd.grad(torch.stack(logs).logsumexp(0).sum(), u)
    torch.testing.assert_close(model(u.detach(), t).score, wanted)


def process_draws(model: AugmentedDenoiser, x0: torch.Tensor, t: float) -> torch.Tensor:
    noise = torch.randn(len(x0), 2 * x0.shape[1], generator=seeded(2)).to(x0)
    return spread(model.process.mean(t), x0) + applied(model.process.cholesky(t), noise)


@pytest.mark.parametrize("t", [1e-3, 0.05, 0.3, 1.0])
def test_the_noise_in_v_alone_gives_back_x0(t):
    model = ring()
    u = process_draws(model, load("mixture2d").exact.sample(8, seeded(1)), t)
    out, t = model(u, t), torch.tensor(t, dtype=torch.float64)
    torch.testing.assert_close(model.x0_of(u, t, out.eps.chunk(2, 1)[1]), out.x0, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("process", PROCESSES)
def test_r_is_what_the_flow_carries_along(process):
    at = torch.tensor([process.t_min, 1.0], dtype=torch.float64)
    first, last = process.cholesky(at) @ rotations(process, at)

    def slope(t, r):
        pull = drift(process) + spreading(process) @ torch.linalg.inv(process.covariance(t)) / 2
        return (pull @ torch.from_numpy(r).reshape(2, 2)).flatten().numpy()

    found = solve_ivp(slope, at.tolist(), first.flatten().numpy(), rtol=1e-11, atol=1e-13, method="DOP853").y
    torch.testing.assert_close(last, torch.from_numpy(found[:, -1]).reshape(2, 2), rtol=1e-7, atol=1e-8)


def test_gddim_at_eta_one_steps_by_the_posterior():
    process = CLD()
    s, t = torch.tensor([0.5, 0.2], dtype=torch.float64)
    back = process.covariance(t) @ process.transition(s - t).mT @ torch.linalg.inv(process.covariance(s))
    torch.testing.assert_close(stirred(process, s, t, 1.0), back, rtol=0, atol=5e-5)


@lru_cache
def flow_end() -> tuple[torch.Tensor, torch.Tensor]:
    """Eight states at t_max, and the x at t_min to which the probability flow takes them."""
    model = ring()
    process, u = model.process, model.prior(8, seeded(0, 0)).double()

    def slope(t, y):
        state = torch.from_numpy(y).reshape(u.shape)
        pushed = applied(drift(process), state) - applied(spreading(process) / 2, model(state, t).score)
        return pushed.flatten().numpy()

    span = (process.t_max, process.t_min)
    found = solve_ivp(slope, span, u.flatten().numpy(), rtol=1e-9, atol=1e-10, method="DOP853")
    return u, torch.from_numpy(found.y[:, -1]).reshape(u.shape)[:, :2]


@pytest.mark.parametrize(
    ("fields", "order"), [({"q": 0}, 1), ({"q": 1}, 2), ({}, 3), ({"q": 1, "corrector": True}, 3)]
)
def test_gddim_has_the_order_it_claims(fields, order):
    (u, end), model, method = flow_end(), ring(), GDDIM(**fields, denoise=False)
    errors = [float((method.sample(model, u, n) - end).norm(dim=1).median()) for n in (100, 200)]
    assert abs(np.log2(errors[0] / errors[1]) - order) < 0.35


def lone(place: float, spread: float) -> AugmentedDenoiser:
    """The exact network of one normal in one dimension."""
    one = torch.ones(1, dtype=torch.float64)
    basis, excess = torch.ones(1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    mixture = GaussianMixture(one, place * one[None], basis, excess, spread**2 * one)
    return AugmentedDenoiser(ExactNetwork(mixture, (1,), 1.0), (1,), "x0", 1.0)


def test_one_gddim_step_is_exact_for_a_single_datum():
    model = lone(1.0, 1e-6)
    u = process_draws(model, torch.ones(5, 1, dtype=torch.float64), 1.0)
    ends = [GDDIM(q=q, denoise=False).sample(model, u, n) for q, n in ((0, 1), (2, 100))]
    torch.testing.assert_close(*ends, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", [SSCS, GDDIM])
def test_denoising_at_the_end_comes_nearer_the_datum(method):
    model, away = lone(1.0, 1e-6), []
    u = process_draws(model, torch.ones(2000, 1, dtype=torch.float64), 1.0)
    for denoise in (True, False):
        torch.manual_seed(0)
        away.append(float((method(denoise=denoise).sample(model, u, 60) - 1).square().mean().sqrt()))
    assert away[0] < 0.7 * away[1] < 0.01


@pytest.mark.parametrize("method", [SSCS(), SSCS(sampler="em"), GDDIM(), GDDIM(eta=1.0)])
def test_long_runs_match_the_ring(method):
    assert far(sampled(method, 100 if isinstance(method, SSCS) else 50)) < 0.03


def test_gddim_needs_fewer_evaluations_than_euler_maruyama():
    even = SSCS(sampler="em", stride=1.0)  # the paper's plain EM
    assert far(sampled(GDDIM(), 20)) < 0.03 < 0.08 < far(sampled(even, 20))


def test_sscs_keeps_the_variance_of_normal_data():
    model = lone(0.0, 1.0)
    torch.manual_seed(0)
    x = SSCS().sample(model, model.prior(5000, seeded(0, 0)).double(), 50)
    assert abs(float(x.var()) - 1) < 0.08


def test_the_cholesky_factor_of_nothing_is_nothing():
    assert not lower(torch.zeros(2, 2, dtype=torch.float64)).any()


def test_a_trained_network_learns_the_noise_in_v():
    data = load("mixture2d")
    torch.manual_seed(0)
    model = AugmentedDenoiser(MLP(4, width=64, out=2), data.shape, "eps_v", data.sigma_data)
    loss = lambda x0, generator: hybrid_loss(model, x0, generator)
    x0 = data.train[:4000]
    with torch.no_grad():
        before = float(loss(x0, seeded(5)).mean())
    with training.session(seed=0):
        training.fit(loss, model, data, 20_000, batch=128, lr=2e-3)
    with torch.no_grad():
        assert float(loss(x0, seeded(5)).mean()) < 0.75 * before


def test_images_are_augmented_by_channels():
    data = load("mixture-digits")
    for method, nfe in ((SSCS(), 5), (GDDIM(), 5)):
        model = recipes.new_cld(data)
        u = method.start(model, 3, seeded(0, 0))
        assert u.shape == (3, 2, 8, 8)
        with torch.no_grad(), counting(model, 3 * nfe) as tallies:
            assert method.sample(model, u, nfe).shape == (3, 1, 8, 8)
        assert tallies["nfe"].rows == 3 * nfe


def test_the_base_of_known_data_needs_no_training():
    model, card = bases.base_of("cld", load("mixture2d"))
    assert card["images"] == 0
    assert model.form == "x0"
