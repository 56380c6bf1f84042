"""Denoising diffusion GANs, and diffusion models that refine a VAE."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from bench.data import load
from bench.diffusion.counting import Counted, counting
from bench.diffusion.training import seeded, session
from bench.models import recipes
from zoo.sampling_acceleration.hybrid import ddgan
from zoo.sampling_acceleration.hybrid.ddgan import DDGAN
from zoo.sampling_acceleration.hybrid.diffuse_vae import DiffuseVAE

DATA = load("mixture2d")
POINT = torch.tensor([0.6, -0.3])


class Knowing(nn.Module):
    """A generator that knows that all data are POINT."""

    def forward(self, x: Tensor, lam: Tensor, z: Tensor) -> Tensor:
        return POINT.expand_as(x)


def knowing() -> nn.ModuleDict:
    model = nn.ModuleDict({n: Counted(Knowing()) for n in ("4", "2", "1")})
    model.shape = (2,)
    return model


@pytest.mark.parametrize(("nfe", "spent"), [(1, 1), (2, 2), (3, 2), (4, 4), (50, 4)])
def test_ddgan_takes_the_longest_chain_that_the_budget_holds(nfe, spent):
    model, method = knowing(), DDGAN()
    with counting(model) as tallies:
        x = method.sample(model, method.start(model, 10, seeded(0)), nfe)
    assert tallies["nfe"].rows == 10 * spent
    assert torch.allclose(x, POINT.expand_as(x), atol=1e-6)  # the last step ends on the generator's x0


def test_ddgan_of_one_chain_refuses_a_smaller_budget():
    method = DDGAN(steps=4)
    model = method.build(None, DATA, 4)
    assert list(model) == ["4"]
    with pytest.raises(ValueError, match="ddgan:steps=2"):
        method.sample(model, method.start(model, 3, seeded(0)), 2)


def test_a_perfect_generator_leaves_the_critic_nothing_to_tell(monkeypatch):
    plays = []
    monkeypatch.setattr(ddgan, "contest", lambda play, *more, **settings: plays.append(play))
    DDGAN().fit_chain(Knowing(), 4, DATA, 0)
    seen = plays[0](POINT.expand(200_000, 2), seeded(0))
    lam, x_s = seen.given
    assert len(lam.unique()) == 4
    for level in lam.unique():
        rows = lam[:, 0] == level
        real, fake = (torch.cov(torch.cat([x[rows] - POINT, x_s[rows]], 1).T) for x in (seen.real, seen.fake))
        assert torch.allclose(real, fake, atol=0.04)
        assert torch.allclose(seen.real[rows].mean(0), seen.fake[rows].mean(0), atol=0.04)


def test_the_times_of_a_chain_are_even_and_end_at_the_data():
    times = DDGAN().times(4).tolist()
    assert len(times) == 5 and times[-1] == 0
    assert [s - t for s, t in pairwise(times)] == pytest.approx([0.25] * 4, abs=2e-3)


def test_ddgan_shares_its_budget_among_its_chains():
    method = DDGAN()
    with session(seed=0) as opened:
        method.train(method.build(None, DATA, 4), None, DATA, 600, 4)
    assert opened.loops == 3
    assert opened.images == pytest.approx(600, abs=3 * 64)


def test_a_ddgan_of_one_step_sees_half_the_images_of_the_longer_chains(monkeypatch):
    seen = []
    monkeypatch.setattr(
        ddgan, "contest", lambda play, net, critic, data, images, **settings: seen.append(images)
    )
    method = DDGAN()
    model = method.build(None, DATA, 4)
    method.train(model, None, DATA, 700, 4)
    assert dict(zip(model, seen)) == {"4": 280, "2": 280, "1": 140}


@pytest.mark.parametrize("name", ["mixture2d", "mixture-digits"])
def test_diffuse_vae_starts_with_the_vaes_sample_beside_the_noise(name):
    data, method = load(name), DiffuseVAE()
    vae = recipes.seeded_build(recipes.RECIPES["vae"], data, 0)
    model = method.build(vae, data, 5)
    with session(seed=0), torch.enable_grad():
        method.train(model, vae, data, 128, 5)
    with torch.no_grad(), counting(model, allowance=5 * 6) as tallies:
        x = method.start(model, 6, seeded(0))
        assert x.shape == (6, 2 * data.shape[0], *data.shape[1:])
        drawn = method.sample(model, x, 5)
    assert drawn.shape == (6, *data.shape)
    assert (tallies["nfe"].rows, tallies["extra"].rows) == (30, 6)


def test_the_vaes_sample_steers_the_diffusion():
    method = DiffuseVAE(eta=0.0)
    vae = recipes.seeded_build(recipes.RECIPES["vae"], DATA, 0)
    torch.manual_seed(0)
    model = method.build(vae, DATA, 5)
    with torch.no_grad():
        x = method.start(model, 6, seeded(0))
        start, shown = x.chunk(2, 1)
        assert not torch.allclose(
            method.sample(model, x, 2), method.sample(model, torch.cat([start, -shown], 1), 2)
        )
