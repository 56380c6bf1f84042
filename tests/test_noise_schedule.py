"""Learned and chosen noise schedules: the bounds of VDM and of the cosine chain, and noise estimation."""

import math

import pytest
import torch

from bench.data import load
from bench.diffusion import training
from bench.diffusion.counting import Counted, counting
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.exact import ExactNetwork
from bench.diffusion.schedule import SCHEDULES, slope
from zoo.likelihood_improvement.noise_schedule.iddpm_cosine import IDDPMCosine
from zoo.likelihood_improvement.noise_schedule.san_roman import SanRoman, noises
from zoo.likelihood_improvement.noise_schedule.vdm import ENDS, VDM, Learned, loss

DATA = load("mixture2d")
X = DATA.test[:300]
ENTROPY = -DATA.exact.log_prob(X.double())


def exact(schedule) -> Denoiser:
    """The known distribution's own denoiser under any schedule."""
    net = ExactNetwork(DATA.exact, (2,), DATA.sigma_data)
    with torch.no_grad():
        return Denoiser(net, schedule, (2,), "x0", DATA.sigma_data, known=(-math.inf, math.inf))


def bent() -> Learned:
    """A learned schedule that is no straight line."""
    schedule = Learned(*ENDS, hidden=16)
    with torch.no_grad():
        schedule.log_height.copy_(torch.linspace(-4, 0, 16))
    return schedule


def nats(method, model, nfe: int, x=X) -> torch.Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        return sum(method.nll(model, x, nfe).values())


def test_vdm_s_bound_lies_above_the_entropy_and_falls_with_the_steps():
    gaps = [nats(VDM(), exact(Learned(*ENDS, 16)), k) - ENTROPY for k in (10, 40, 160)]
    means = [float(gap.mean()) for gap in gaps]
    assert means[0] > means[1] > means[2] > -3 * float(gaps[2].std()) / len(X) ** 0.5


def test_vdm_s_continuous_bound_is_the_entropy_where_the_denoiser_is_exact():
    gap = nats(VDM(steps="continuous"), exact(bent()), 40) - ENTROPY
    assert abs(float(gap.mean())) < 4 * float(gap.std()) / len(X) ** 0.5


def test_the_continuous_bound_depends_on_the_schedule_s_ends_alone():
    straight, other = (nats(VDM(steps="continuous"), exact(s), 40) for s in (Learned(*ENDS, 16), bent()))
    gap = straight - other
    assert abs(float(gap.mean())) < 4 * float(gap.std()) / len(X) ** 0.5
    raised = Learned(ENDS[0] + 8, ENDS[1], 16)
    assert float((nats(VDM(steps="continuous"), exact(raised), 40) - straight).mean()) > 0.1


def test_vdm_s_steps_add_up_to_the_divergences_of_its_chain():
    """Each term is the divergence between the two normals of a step, written out from their means."""
    schedule, k = bent(), 7
    model = exact(schedule)
    torch.manual_seed(0)
    with torch.no_grad():
        found = VDM().nll(model, X, k)["diffusion"]
        torch.manual_seed(0)
        expected = torch.zeros(len(X), dtype=torch.float64)
        for i in range(k):
            s, t = (1e-3 + (1 - 1e-3) * (i + j) / k for j in (0, 1))
            a_s, a_t, v_s, v_t = (float(f(u)) for f in (schedule.alpha, schedule.sigma) for u in (s, t))
            v_s, v_t = v_s**2, v_t**2
            eps = torch.randn_like(X)
            z = a_t * X + v_t**0.5 * eps
            forward = v_t - (a_t / a_s) ** 2 * v_s
            variance = forward * v_s / v_t
            error = X - model(z, torch.tensor(t, dtype=torch.float64)).x0
            expected += ((a_s * forward / v_t * error.double()) ** 2).sum(1) / (2 * variance)
    assert torch.allclose(found, expected, rtol=1e-4)


def test_a_learned_schedule_rises_between_its_ends_whatever_its_weights():
    torch.manual_seed(0)
    schedule = Learned(-8.0, 3.0, hidden=32)
    with torch.no_grad():
        for weight in (schedule.log_steep, schedule.middle, schedule.log_height):
            weight.add_(torch.randn_like(weight))
        gamma = schedule.gamma(torch.linspace(schedule.t_min, schedule.t_max, 500, dtype=torch.float64))
        assert bool((gamma.diff() > 0).all())
        assert gamma[[0, -1]].tolist() == pytest.approx([-8.0, 3.0])
        assert torch.allclose(schedule.alpha(0.3) ** 2 + schedule.sigma(0.3) ** 2, torch.ones(()).double())


def test_the_interior_learns_the_variance_and_the_ends_the_bound():
    """One backward pass: the gradient of the squared estimate for the one, of the estimate for the other."""
    model = exact(bent())
    model.schedule.requires_grad_(True)
    first = loss(model, X, training.seeded(3))
    (interior,) = torch.autograd.grad(first.sum(), model.schedule.log_height, retain_graph=True)
    (ends,) = torch.autograd.grad(first.sum(), model.schedule.ends)

    def squares(heights):
        """The same estimates from the same draws, without hooks, squared."""
        generator, schedule = training.seeded(3), bent()
        del schedule._parameters["log_height"]
        schedule.log_height = heights
        place = (torch.rand((), generator=generator, dtype=torch.float64) + torch.arange(len(X)) / len(X)) % 1
        span = schedule.ends[1] - schedule.ends[0]
        gamma, rate = schedule.ends[0] + span * schedule.shape(place), span * slope(schedule.shape, place)
        eps = torch.randn(X.shape, generator=generator)
        alpha, sigma = torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt()
        out = model.at(alpha.float()[:, None] * X + sigma.float()[:, None] * eps, alpha, sigma)
        value = rate * (eps - out.eps).double().square().sum(1) / 2
        return (value**2).sum() / value.detach().mean()

    heights = bent().log_height.detach().clone().requires_grad_()
    (squared,) = torch.autograd.grad(squares(heights), heights)
    assert torch.allclose(interior, squared, rtol=1e-4, atol=1e-6 * float(squared.abs().max()))
    assert ends.abs().max() > 0


def test_vdm_learns_every_part_of_its_schedule_and_tells_its_terms_apart():
    digits = load("digits")
    torch.manual_seed(0)
    method = VDM(hidden=32)
    model = method.build(None, digits, 8)
    before = {name: p.clone() for name, p in model.schedule.named_parameters()}
    with training.session(seed=0):
        method.train(model, None, digits, 2 * 128, 8)
    assert all(not torch.equal(before[name], p) for name, p in model.schedule.named_parameters())
    x = digits.scale(digits.test[:20])
    with torch.no_grad(), counting(model, 8 * 20) as tallies:
        terms = method.nll(model, x, 8)
    assert set(terms) == {"prior", "diffusion", "reconstruction"}
    assert tallies["nfe"].rows == 8 * 20
    # The first noise is far below a level's width: the level is certain, its density one over the width.
    assert float(terms["reconstruction"].mean() / 64) == pytest.approx(math.log(2 / 16), abs=0.05)


def test_fourier_features_see_the_levels():
    """From level to level the fine ones stay as they are and the coarse ones change their sign."""
    digits = load("digits")
    net = VDM().build(None, digits, 8).net.net
    levels = torch.linspace(-1, 1, digits.levels)
    fine, coarse = (torch.cos(frequency * levels) for frequency in net.frequencies)
    assert torch.allclose(fine, fine[:1].expand_as(fine), atol=1e-4)
    assert torch.allclose(coarse[1:], -coarse[:-1], atol=1e-4)


def test_the_cosine_chain_s_bound_lies_above_the_entropy_and_falls_with_the_steps():
    model = exact(SCHEDULES["vp_cosine"]().narrowed((-5.1, 7.0)))
    gaps = [nats(IDDPMCosine(), model, k) - ENTROPY for k in (10, 40, 160)]
    means = [float(gap.mean()) for gap in gaps]
    assert means[0] > means[1] > means[2] > -3 * float(gaps[2].std()) / len(X) ** 0.5


def test_the_cosine_and_the_linear_chain_are_trained_alike():
    cosine, linear = (IDDPMCosine(schedule=name).build(None, DATA, 10) for name in ("vp_cosine", "ddpm"))
    middle = torch.tensor(0.5, dtype=torch.float64)
    assert float(cosine.schedule.alpha(middle)) ** 2 == pytest.approx(0.4938, abs=1e-3)
    assert float(linear.schedule.alpha(middle)) ** 2 == pytest.approx(0.0786, abs=1e-3)
    assert cosine.form == linear.form == "eps"
    assert [p.shape for p in cosine.parameters()] == [p.shape for p in linear.parameters()]


@pytest.mark.parametrize("kind", ["linear", "fibonacci"])
@pytest.mark.parametrize("n", [1, 2, 5, 20])
def test_the_noises_of_a_schedule_multiply_to_what_is_left(kind, n):
    wanted = torch.tensor([4e-5, 0.01, 0.3, 0.9], dtype=torch.float64)
    beta = noises(kind, 1e-4, wanted, n)
    assert torch.allclose((1 - beta).prod(1), wanted, rtol=1e-9)
    assert bool((beta > 0).all()) and bool((beta < 1).all())
    if kind == "linear" and n > 2:
        assert torch.allclose(beta.diff(dim=1), beta.diff(dim=1)[:, :1].expand(-1, n - 1))
    if kind == "fibonacci" and n > 2:
        assert torch.allclose(beta[:, 2:], beta[:, 1:-1] + beta[:, :-2])


def test_noise_estimation_steers_the_steps_that_remain():
    """An estimate that all the noise is gone leaves nothing to take away; it costs no evaluation of the
    denoiser.
    """
    digits = load("mixture-digits")
    net = ExactNetwork(digits.exact, digits.shape, digits.sigma_data).float()
    base = Denoiser(net, SCHEDULES["ddpm"](), digits.shape, "x0", digits.sigma_data)
    asked = []

    class Seen(torch.nn.Module):
        def forward(self, x, lam):
            asked.append(float(lam.mean()))
            return net(x, lam)

    base.net = Counted(Seen())
    method = SanRoman()
    model = method.build(base, digits, 6)
    model.level.net = torch.nn.Module()
    model.level.net.forward = lambda x: torch.full((len(x),), math.log(1e-3))
    x = base.prior(4, training.seeded(1))
    with torch.no_grad(), counting(model, 6 * 4) as tallies:
        method.sample(model, x, 6)
    assert (tallies["nfe"].rows, tallies["extra"].rows) == (24, 20)
    told = 0.5 * math.log((1 - 1e-3) / 1e-3)
    assert asked[0] == pytest.approx(float(base.schedule.lam(1.0)), abs=1e-4)
    assert asked[1:] == pytest.approx([told] * 5, abs=1e-3)
