"""Networks that make a sample in one pass, and the training of two players."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from bench.diffusion import training
from bench.diffusion.adversarial import Round, contest
from bench.diffusion.counting import counting
from bench.diffusion.denoiser import noise_like
from bench.diffusion.generators import VAE, Encoder, Sampler, Translator


@dataclass
class Points:
    """Data of any shape, as a Data has it."""

    train: Tensor

    def scale(self, x: Tensor) -> Tensor:
        return x


NARROW = Points(0.5 + 0.1 * torch.randn(512, 1, generator=training.seeded(1)))


class Killed(Exception):
    pass


def trained(folder=None, kill_at: int | None = None, images: int = 1920, seed: int = 3) -> nn.Module:
    """A shift and a scale of noise, trained against NARROW."""
    torch.manual_seed(0)
    model, calls = nn.Linear(1, 1), 0

    def play(x0: Tensor, generator: torch.Generator) -> Round:
        nonlocal calls
        calls += 1
        if calls == kill_at:
            raise Killed
        return Round(x0, model(noise_like(x0, generator)), ())

    with training.session(folder=folder, seed=seed, save_every=0.0, every=5) as session:
        contest(play, model, lambda: Encoder((1,), 1, critic=True), NARROW, images, batch=64, lr=1e-2)
        model.seen, model.curve = session.images, session.curve
    return model


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_a_contest_that_was_killed_and_resumed_equals_one_that_was_not(tmp_path):
    whole = trained(tmp_path / "whole")
    for kill_at in (7, 9):
        with pytest.raises(Killed):
            trained(tmp_path / "killed", kill_at)
    resumed = trained(tmp_path / "killed")
    assert same(whole, resumed)
    assert resumed.seen == whole.seen == 1920
    assert not same(whole, trained(seed=4))


def test_the_generator_comes_to_the_data():
    model = trained(images=12_800)
    assert model.bias.item() == pytest.approx(0.5, abs=0.1)
    assert abs(model.weight.item()) < 0.3
    assert model.curve[-1][1] < model.curve[0][1] / 5


@pytest.mark.parametrize("shape", [(2,), (1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_each_network_serves_vectors_and_images(shape):
    x, lam = torch.randn(4, *shape), torch.zeros(4)
    assert VAE(shape).draw(4, training.seeded(0), "cpu").shape == x.shape
    assert Translator(shape, 5)(x, lam, torch.randn(4, 5)).shape == x.shape
    critic = Encoder(shape, 1, count=2, levels=1, critic=True)
    assert critic(x, lam[:, None], x).shape == (4, 1)
    assert Sampler(shape, bounded=True)(100 * torch.randn(4, 64)).abs().max() <= 1


def test_a_decoder_is_counted_apart_from_evaluations():
    model = Sampler((2,))
    with counting(model, allowance=0) as tallies:
        model.draw(6, training.seeded(0), "cpu")
    assert (tallies["extra"].rows, tallies["nfe"].rows) == (6, 0)


def test_a_vae_reconstructs_what_it_was_trained_on():
    clusters = torch.tensor([[0.8, 0.8], [-0.8, 0.2]]).repeat(32, 1)
    data = Points(clusters + 0.05 * torch.randn(64, 2, generator=training.seeded(2)))
    torch.manual_seed(0)
    model = VAE((2,))
    training.fit(model.loss, model, data, 6400, batch=64)
    error = (model.reconstructed(data.train, training.seeded(5)) - data.train).square().mean()
    assert error < 0.1 * data.train.var(0).mean()
