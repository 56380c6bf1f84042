"""Forward processes that are learned: couplings, INDM, DiffFlow, and LSGM's bound in two stages."""

import math

import pytest
import torch

from bench.data import load
from bench.diffusion import training
from bench.diffusion.counting import counting
from bench.diffusion.couplings import Coupling, Flow
from bench.diffusion.latents import elbo
from bench.diffusion.likelihood import flow_nll
from zoo.likelihood_improvement.variational_gap.diffflow import DiffFlow
from zoo.likelihood_improvement.variational_gap.indm import INDM
from zoo.likelihood_improvement.variational_gap.lsgm_bound import LSGMBound

SHAPES = [((2,), 0), ((5,), 3), ((1, 4, 4), 2), ((3, 4, 4), 0)]


def stirred(module):
    """The module with weights that are nowhere zero."""
    for i, p in enumerate(module.parameters()):
        torch.nn.init.normal_(p, std=0.2, generator=training.seeded(i))
    return module


def nats(ask, model, x, nfe):
    torch.manual_seed(0)
    with torch.no_grad(), counting(model) as tallies:
        found = ask(model, x, nfe)
    return (sum(found.values()) if isinstance(found, dict) else found), tallies


def taught(method, data, images, nfe=10):
    torch.manual_seed(0)
    model = method.build(None, data, nfe)
    with training.session(seed=0, every=5) as session:
        method.train(model, None, data, images, nfe)
    return model.eval(), [loss for _, loss in session.curve]


@pytest.mark.parametrize(("shape", "context"), SHAPES)
def test_a_flow_s_log_determinant_is_its_jacobian_s_and_its_inverse_undoes_it(shape, context):
    flow = stirred(Flow(shape, 4, 16, context))
    x, told = torch.randn(2, *shape), torch.randn(2, context, *shape[1:]) if context else None
    y, logdet = flow(x, told)
    back, opposite = flow.inverse(y, told)
    torch.testing.assert_close(back, x, atol=1e-4, rtol=0)
    torch.testing.assert_close(opposite, -logdet, atol=1e-4, rtol=0)
    alone = lambda a: flow(a[None], None if told is None else told[:1])[0][0]
    jacobian = torch.autograd.functional.jacobian(alone, x[0]).reshape(x[0].numel(), -1)
    assert float(torch.linalg.slogdet(jacobian)[1]) == pytest.approx(float(logdet[0].detach()), abs=1e-3)


def test_a_flow_s_context_changes_it_and_a_new_flow_is_the_identity():
    x = torch.randn(3, 2)
    flow = Flow((2,), 4, 16, 1)
    assert torch.equal(flow(x, torch.ones(3, 1))[0], x)
    stirred(flow)
    assert not torch.allclose(flow(x, torch.ones(3, 1))[0], flow(x, torch.zeros(3, 1))[0])


def test_a_single_coordinate_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="two coordinates"):
        Coupling((1,), 0)


def test_indm_s_likelihood_is_the_latent_s_by_the_change_of_variables():
    data, method = load("mixture2d"), INDM(trace="exact")
    model = method.build(None, data, 20)
    stirred(model.flow)
    x = data.test[:50]
    found, tallies = nats(method.nll, model, x, 20)
    with torch.no_grad():
        z, _ = model.flow(x)
        times = model.denoiser.schedule.steps(5, "lambda").flip(0)
        latent = flow_nll(model.denoiser, z, times, "exact")
        alone = lambda a: model.flow(a[None])[0][0]
        jacobians = [torch.autograd.functional.jacobian(alone, row) for row in x]
    logdets = torch.stack([torch.linalg.slogdet(j)[1] for j in jacobians])
    torch.testing.assert_close(found, latent - logdets.double(), atol=1e-3, rtol=0)
    assert (tallies["nfe"].rows, tallies["extra"].rows) == (20 * 50, 50)


def test_indm_without_couplings_is_a_linear_diffusion():
    data, method = load("mixture2d"), INDM(couplings=0)
    model = method.build(None, data, 10)
    x = torch.randn(5, 2)
    torch.manual_seed(0)
    assert torch.equal(model.flow.inverse(x)[0], x)
    assert float(model.flow(x)[1].abs().max()) == 0


def test_indm_s_samples_are_brought_back_by_the_flow():
    data, method = load("mixture2d"), INDM()
    model = method.build(None, data, 5)
    x = model.prior(6, training.seeded(0))
    with torch.no_grad():
        plain = method.sample(model, x, 5)
        stirred(model.flow)
        torch.testing.assert_close(model.flow(method.sample(model, x, 5))[0], plain, atol=1e-4, rtol=0)


def test_indm_trains_its_flow_with_its_diffusion_and_its_bound_falls():
    data, method = load("mixture2d"), INDM()
    x, bounds = data.test[:500], []
    for images in (1, 15_000):
        model, _ = taught(method, data, images)
        found, tallies = nats(method.bound, model, x, 20)
        assert tallies["nfe"].rows == 20 * 500
        bounds.append(float(found.mean()))
    assert float(model.flow(x)[1].detach().abs().mean()) > 0.05
    assert bounds[0] > bounds[1] > -float(data.exact.log_prob(x.double()).mean())


def test_diffflow_s_path_bound_without_a_learned_forward_process_is_ddpm_s_up_to_its_noise():
    data = load("mixture2d")
    method = DiffFlow(drift=False)
    torch.manual_seed(0)
    model = method.build(None, data, 8)
    x = data.test[:1].expand(20_000, 2).contiguous()
    found, _ = nats(method.nll, model, x, 8)
    expected = terms_written_out(model, x)
    error = math.hypot(float(found.std()), float(expected.std())) / len(x) ** 0.5
    assert abs(float(found.mean() - expected.mean())) < 4 * error


def terms_written_out(model, x0):
    """The K-step bound of the same chain by the divergences of normals, from x_s drawn in one go from x0."""
    schedule, times = model.denoiser.schedule, model.times
    generator = training.seeded(5)
    alpha, sigma = schedule.alpha(times[-1]), schedule.sigma(times[-1])
    total = (alpha**2 * x0.double().square()).sum(1) / (2 * sigma**2)
    for k in range(len(times) - 1):
        t, s = times[k], times[k + 1]
        noise = torch.randn(x0.shape, generator=generator)
        x = (schedule.alpha(s) * x0 + schedule.sigma(s) * noise).float()
        with torch.no_grad():
            mean, variance = (a.detach().double() for a in model.back(x, k))
        if k == 0:
            total += ((x0 - mean) ** 2).sum(1) / (2 * variance) + torch.log(2 * math.pi * variance)
            continue
        ratio = schedule.alpha(s) / schedule.alpha(t)
        step = schedule.sigma(s) ** 2 - ratio**2 * schedule.sigma(t) ** 2
        true = step * schedule.sigma(t) ** 2 / schedule.sigma(s) ** 2
        aim = (ratio * schedule.sigma(t) ** 2 * x + schedule.alpha(t) * step * x0) / schedule.sigma(s) ** 2
        total += (
            ((aim - mean) ** 2).sum(1) / (2 * variance) + true / variance - 1 - torch.log(true / variance)
        )
    return total


def test_diffflow_spends_half_its_budget_on_each_chain_and_its_forward_drift_is_silent_at_first():
    data = load("mixture2d")
    model = DiffFlow().build(None, data, 8)
    x = data.test[:10]
    learned, tallies = nats(DiffFlow().nll, model, x, 8)
    assert tallies["nfe"].rows == 8 * 10
    fixed, tallies = nats(DiffFlow(drift=False).nll, model, x, 8)
    assert tallies["nfe"].rows == 4 * 10
    assert torch.equal(learned, fixed)


def test_diffflow_learns_its_forward_drift_and_lowers_its_bound():
    data, method = load("mixture2d"), DiffFlow()
    model, losses = taught(method, data, 8_000, nfe=4)
    x = torch.randn(4, 2)
    assert float(model.drift(x, torch.zeros(4)).detach().abs().max()) > 0.01
    assert sum(losses[-8:]) < sum(losses[:8])


def test_the_second_stage_of_the_two_stage_bound_leaves_the_autoencoder_as_the_first_made_it():
    data, method = load("mixture2d"), LSGMBound(alone=0.5)
    model, _ = taught(method, data, 2_560)
    torch.manual_seed(0)
    first = method.build(None, data, 10)
    with training.session(seed=0):
        training.fit(lambda x, g: elbo(first, x, g), first.autoencoder, data, 1_280, batch=64, clip=10.0)
    for name, tensor in first.autoencoder.state_dict().items():
        assert torch.equal(model.autoencoder.state_dict()[name], tensor), name
    assert not torch.equal(model.denoiser.net.net.logit, first.denoiser.net.net.logit)
