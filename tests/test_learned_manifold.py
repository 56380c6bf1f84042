"""Diffusion in fewer dimensions than the data: latents, subspaces, and what they claim to be equal to."""

import math

import pytest
import torch
from torch import nn

from bench.data import load
from bench.diffusion import training
from bench.diffusion.counting import counting
from bench.diffusion.latents import (
    Autoencoder,
    LatentDiffusion,
    Mixed,
    Subspace,
    cross_entropy,
    latent_bound,
    latent_denoiser,
    latent_shape,
    net_of,
)
from bench.diffusion.schedule import VP, ddpm_table
from bench.models import recipes
from zoo.data_generalisation.learned_manifold.dvdp import DVDP
from zoo.data_generalisation.learned_manifold.ldm import LDM
from zoo.data_generalisation.learned_manifold.lsgm import LSGM
from zoo.data_generalisation.learned_manifold.subspace import SubspaceDiffusion
from zoo.sampling_acceleration.ode_solver.ddim import DDIM


def taught(method, base, data, images, nfe=10):
    """The method's model after a short training, and the losses on the way."""
    torch.manual_seed(0)
    model = method.build(base, data, nfe)
    with training.session(seed=0, every=5) as session:
        method.train(model, base, data, images, nfe)
    return model.eval(), [loss for _, loss in session.curve]


def drawn(method, model, n, nfe):
    torch.manual_seed(0)
    with torch.no_grad(), counting(model) as tallies:
        samples = method.sample(model, method.start(model, n, training.seeded(0)), nfe)
    return samples, tallies


def exact_base(name):
    return recipes.exact_denoiser(load(name)).under(ddpm_table())


@pytest.mark.parametrize("name", ["mixture2d", "mixture-digits"])
def test_subspace_at_full_dimension_gives_exactly_the_base_s_samples(name):
    base, method = exact_base(name), SubspaceDiffusion(keep=1.0)
    model = method.build(base, load(name), 10)
    ours, _ = drawn(method, model, 4, 10)
    theirs, _ = drawn(DDIM(), base, 4, 10)
    assert torch.equal(ours, theirs)


def test_the_smaller_network_takes_the_noisier_steps_and_one_evaluation_a_step_is_counted():
    data = load("mixture-digits")
    method = SubspaceDiffusion(switch=2.0)
    model = method.build(exact_base("mixture-digits"), data, 10)
    rows = {}
    for name in ("small", "denoiser"):
        counted = model[name].net
        counted.register_forward_hook(
            lambda m, i, o, name=name: rows.update({name: rows.get(name, 0) + len(o)})
        )
    _, tallies = drawn(method, model, 2, 10)
    assert tallies["nfe"].rows == 20 == rows["small"] + rows["denoiser"]
    times = ddpm_table().steps(10, "time", end="zero")
    noisier = int((-model["denoiser"].schedule.lam(times[:-1]) >= math.log(2)).sum())
    assert rows["small"] == 2 * (noisier - 1)


@pytest.mark.parametrize(("name", "keep"), [("mixture-digits", 0.25), ("digits", 1 / 16), ("mixture2d", 0.5)])
def test_a_subspace_is_orthonormal_and_what_it_leaves_out_has_the_variance_it_says(name, keep):
    data = load(name)
    space = Subspace(data, keep)
    y = torch.randn(5, *space.sub)
    torch.testing.assert_close(space.down(space.up(y)), y)
    x = torch.randn(5, *data.shape)
    torch.testing.assert_close(space.down(space.across(x)), torch.zeros(5, *space.sub), atol=1e-5, rtol=0)
    clean = data.scale(data.train)
    left = math.prod(data.shape) - math.prod(space.sub)
    found = (space.across(clean) - space.offset).square().flatten(1).sum(1).mean() / left
    assert float(found) == pytest.approx(float(space.variance), rel=0.05)


def test_what_a_subspace_leaves_out_is_restored_with_the_moments_of_noised_data():
    data = load("mixture-digits")
    space, x0 = Subspace(data, 0.25), data.train[:4000]
    alpha, sigma = torch.tensor(0.5, dtype=torch.float64), torch.tensor(0.9, dtype=torch.float64)
    x = 0.5 * x0 + 0.9 * torch.randn(x0.shape, generator=training.seeded(1))
    lifted = space.lifted(space.down(x), torch.randn(x0.shape, generator=training.seeded(2)), alpha, sigma)
    torch.testing.assert_close(space.down(lifted), space.down(x), atol=1e-4, rtol=0)
    assert float((lifted.mean(0) - x.mean(0)).abs().max()) < 0.1
    assert float(lifted.var()) == pytest.approx(float(x.var()), rel=0.02)


def test_images_that_no_square_divides_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match="no squares of 3"):
        Subspace(load("digits"), 1 / 9)


@pytest.mark.parametrize("shape", [(2,), (1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_an_autoencoder_has_fewer_latents_and_returns_the_data_s_shape(shape):
    model = Autoencoder(shape, outputs=2)
    assert math.prod(latent_shape(shape)) <= max(2, math.prod(shape) // 4)
    x = torch.randn(2, *shape)
    mean, log_std = model.encoded(x)
    assert mean.shape == log_std.shape == (2, *model.latent)
    assert model.decoded(mean).shape == x.shape
    assert net_of(model.latent)(mean, torch.zeros(2)).shape == mean.shape


def test_an_autoencoder_s_latents_have_unit_variance_and_its_decoder_undoes_the_scaling():
    data = load("digits")
    model = Autoencoder(data.shape)
    x = data.scale(data.train[:200])
    before = model.decoded(model.encoded(x)[0])
    model.standardise(data)
    with torch.no_grad():
        z = model.encoded(data.scale(data.train))[0]
    assert float(z.mean().abs()) < 1e-3
    assert float(z.std(0).mean()) == pytest.approx(1, abs=0.01)
    torch.testing.assert_close(model.decoded(model.encoded(x)[0]), before, atol=1e-4, rtol=1e-4)


def test_ldm_counts_its_denoiser_as_nfe_and_its_decoder_as_extra():
    data = load("digits")
    method = LDM()
    model, losses = taught(method, Autoencoder(data.shape).requires_grad_(False), data, 2560)
    samples, tallies = drawn(method, model, 8, 5)
    assert samples.shape == (8, *data.shape)
    assert (tallies["nfe"].rows, tallies["extra"].rows) == (8 * 5, 8)
    assert losses[-1] < losses[0]


def test_the_mixed_score_is_exact_for_normal_latents_where_the_network_says_nothing():
    net = latent_denoiser((3,), VP(), mixed=True)
    net.net.net.logit.data.fill_(-40.0)
    x, t = torch.randn(6, 3), torch.tensor(0.3, dtype=torch.float64)
    torch.testing.assert_close(net(x, t).x0, VP().alpha(t).float() * x, atol=1e-5, rtol=1e-4)
    assert isinstance(net.net.net, Mixed)


def normal_prior():
    """A latent denoiser that is exact for unit normal latents."""
    denoiser = latent_denoiser((4,), VP(), mixed=True)
    denoiser.net.net.logit.data.fill_(-40.0)
    return denoiser


def test_the_cross_entropy_of_normal_latents_is_a_normal_s():
    z = torch.randn(40_000, 4, generator=training.seeded(0))
    with torch.no_grad():
        found = cross_entropy(normal_prior(), z, training.seeded(1)).mean()
    entropy = 4 / 2 * math.log(2 * math.pi * math.e)
    assert float(found) == pytest.approx(entropy, abs=0.15)


class Half(nn.Module):
    """The encoder or the decoder of a linear model whose posterior is known."""

    def __init__(self, columns):
        super().__init__()
        self.columns = columns

    def forward(self, x):
        return self.columns(x)


def test_lsgm_s_bound_of_a_linear_model_with_its_exact_posterior_is_the_log_density():
    # x = z + 0.5 noise in two dimensions, z unit normal: p(x) = N(0, 1.25), q(z | x) = N(0.8 x, 0.2)
    autoencoder = Autoencoder((2,), outputs=2)
    autoencoder.encoder.net = Half(lambda x: torch.cat([0.8 * x, torch.full_like(x, math.log(0.2) / 2)], 1))
    autoencoder.decoder.net = Half(lambda z: torch.cat([z, torch.full_like(z, math.log(0.5))], 1))
    denoiser = latent_denoiser((2,), VP(), mixed=True)
    denoiser.net.net.logit.data.fill_(-40.0)
    model = LatentDiffusion(autoencoder, denoiser)
    x = torch.randn(3000, 2, generator=training.seeded(0)) * 1.25**0.5
    torch.manual_seed(0)
    with torch.no_grad():
        found = sum(latent_bound(model, x, 20).values())
    exact = x.double().square().sum(1) / 2.5 + math.log(2 * math.pi * 1.25)
    error = float((found - exact).std()) / 3000**0.5
    assert abs(float((found - exact).mean())) < 4 * error + 0.01


def test_lsgm_s_bound_falls_with_training_and_stays_above_the_entropy():
    data = load("mixture2d")
    method = LSGM()
    x, bounds = data.test[:500], []
    for images in (1, 15_000):
        model, _ = taught(method, None, data, images)
        torch.manual_seed(0)
        with torch.no_grad(), counting(model) as tallies:
            bounds.append(float(sum(method.nll(model, x, 20).values()).mean()))
        assert tallies["nfe"].rows == 20 * 500
    assert bounds[0] > bounds[1] > -float(data.exact.log_prob(x.double()).mean())


def test_dvdp_fades_the_finer_part_to_nothing_at_its_turning_point_and_the_coarser_never():
    data = load("digits")
    model = DVDP(halvings=2).build(None, data, 10)
    x = data.scale(data.test[:3])
    now = lambda t: torch.tensor(t, dtype=torch.float64)
    torch.testing.assert_close(model.faded(x, now(0.0)), x)
    space, coarsest = model.spaces
    torch.testing.assert_close(model.faded(x, now(0.5)), model.faded(space.up(space.down(x)), now(0.5)))
    torch.testing.assert_close(model.faded(x, now(1.0)), coarsest.up(coarsest.down(x)))


def test_dvdp_asks_the_network_of_each_dimension_and_only_while_that_dimension_lasts():
    data = load("digits")
    method = DVDP()
    model, _ = taught(method, None, data, 256)
    sides = []
    for net in model.nets:
        net.net.register_forward_pre_hook(lambda m, inputs: sides.append(inputs[0].shape[-1]))
    samples, tallies = drawn(method, model, 2, 8)
    assert samples.shape == (2, *data.shape)
    assert tallies["nfe"].rows == 16
    assert sides == sorted(sides) and set(sides) == {4, 8}


def test_dvdp_with_networks_that_know_x0_returns_it():
    data = load("digits")
    method, x0 = DVDP(), data.scale(data.test[:4])
    model = method.build(None, data, 10)
    model.denoised = lambda x, t: x0
    samples = method.sample(model, model.prior(4, training.seeded(0)), 6)
    torch.testing.assert_close(samples, x0, atol=1e-5, rtol=0)
