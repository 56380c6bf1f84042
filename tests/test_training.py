"""The training loop: exact resume, and what it refuses."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from bench.diffusion import training


@dataclass
class Line:
    """Data on a line, the shape of a Data."""

    train: Tensor

    def scale(self, x: Tensor) -> Tensor:
        return x


DATA = Line(torch.linspace(-1, 1, 200)[:, None])


class Killed(Exception):
    pass


def trained(folder, kill_at: int | None = None) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.1), nn.Tanh(), nn.Linear(8, 1))
    calls = 0

    def loss(x0: Tensor, generator: torch.Generator) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == kill_at:
            raise Killed
        noise = torch.randn(x0.shape, generator=generator)
        return (model(x0 + 0.1 * noise) - x0**2).squeeze(1) ** 2

    with training.session(folder=folder, seed=3, save_every=0.0) as session:
        training.fit(loss, model, DATA, 4000, batch=20)
        model.seen = session.images
    return model


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_a_training_that_was_killed_and_resumed_equals_one_that_was_not(tmp_path):
    whole = trained(tmp_path / "whole")
    for kill_at in (50, 61):
        with pytest.raises(Killed):
            trained(tmp_path / "killed", kill_at)
    resumed = trained(tmp_path / "killed")
    assert same(whole, resumed)
    assert resumed.seen == 4000


def test_a_torn_checkpoint_counts_as_none(tmp_path):
    whole = trained(tmp_path / "whole")
    path = tmp_path / "torn" / "loop-1.safetensors"
    path.parent.mkdir()
    path.write_bytes((tmp_path / "whole" / "loop-1.safetensors").read_bytes()[:500])
    assert same(whole, trained(tmp_path / "torn"))


def test_another_seed_gives_another_model(tmp_path):
    torch.manual_seed(0)
    with training.session(seed=4):
        other = nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.1), nn.Tanh(), nn.Linear(8, 1))
        training.fit(lambda x, g: (other(x) - x**2).squeeze(1) ** 2, other, DATA, 4000, batch=20)
    assert not same(trained(tmp_path), other)


def test_a_loss_that_is_not_finite_ends_the_training():
    model = nn.Linear(1, 1)
    with pytest.raises(FloatingPointError, match="no longer finite"):
        training.fit(lambda x, g: model(x).squeeze(1) * float("nan"), model, DATA, 4000, batch=20)


def test_generators_of_neighbouring_numbers_are_unrelated():
    draws = torch.stack([torch.randn(4000, generator=training.seeded(a, b)) for a in (0, 1) for b in (0, 1)])
    correlation = torch.corrcoef(draws) - torch.eye(4)
    assert correlation.abs().max() < 0.06


def test_a_batch_taken_in_parts_steps_as_a_whole_one():
    def fitted(at_once: int | None) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        most = []

        def loss(x0: Tensor, generator: torch.Generator) -> Tensor:
            most.append(len(x0))
            return (model(x0.double()) - x0.double() ** 2).squeeze(1) ** 2

        training.fit(loss, model, DATA, 2000, batch=20, at_once=at_once)
        assert max(most) == (at_once or 20)
        return model

    whole = fitted(None)
    for at_once in (7, 20):
        parts = zip(whole.parameters(), fitted(at_once).parameters(), strict=True)
        assert all(torch.allclose(p, q, rtol=1e-9, atol=1e-12) for p, q in parts)
