"""Several processes that train one model."""

import json
import os
import subprocess
import sys

import pytest
import torch
from running import ROOT, bench
from torch import nn

from bench.diffusion import team, training
from bench.diffusion.team import ALONE, Team, Uneven


class Doubling:
    """Stands in for Accelerate in a team of two whose other member has three times our gradient, no flag."""

    device = "cpu"

    def reduce(self, tensor, how):
        return tensor * 2 if how == "mean" else tensor.clone()


def test_one_process_is_a_team_that_changes_nothing(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert team.started("cpu") == (ALONE, "cpu")
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.full((3,), 2.0)
    ALONE.average([weight])
    assert (
        ALONE.leads
        and ALONE.share(7) == 7
        and ALONE.agreed(True)
        and torch.equal(weight.grad, torch.full((3,), 2.0))
    )


def test_gradients_are_averaged_in_place_and_weights_without_one_passed_over():
    weights = [nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(1))]
    weights[0].grad, weights[1].grad = torch.arange(6.0).view(2, 3), torch.ones(4)
    Team(0, 2, Doubling()).average(weights)
    assert torch.equal(weights[0].grad, 2 * torch.arange(6.0).view(2, 3))
    assert torch.equal(weights[1].grad, torch.full((4,), 2.0)) and weights[2].grad is None


def test_the_first_process_decides_for_all():
    assert Team(0, 2, Doubling()).agreed(True)
    assert not Team(1, 2, Doubling()).agreed(True)


def test_a_batch_that_cannot_be_dealt_out_is_refused():
    with pytest.raises(Uneven, match="a number that divides 128"):
        Team(0, 3).share(128)


def test_each_process_draws_its_share_of_the_batch_and_all_images_count():
    class Data:
        train = torch.linspace(-1, 1, 64)[:, None]
        scale = staticmethod(lambda x: x)

    def seen(rank: int) -> list[torch.Tensor]:
        batches: list[torch.Tensor] = []
        model = nn.Linear(1, 1)

        def loss(x0, generator):
            batches.append(x0)
            return model(x0).squeeze(1) ** 2

        with training.session(team=Team(rank, 2)) as session:
            training.fit(loss, model, Data, 64, batch=16)
        assert session.images == 64
        return batches

    first, second = seen(0), seen(1)
    assert [len(batch) for batch in first + second] == [8] * 8
    assert not torch.equal(torch.cat(first), torch.cat(second))


@pytest.mark.slow
def test_two_processes_under_torchrun_train_one_base_which_one_process_finishes():
    pytest.importorskip("accelerate")
    words = ["train", "digits", "--images", "2560", "--seed", "81", "--threads", "1"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "bench"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [*command, *words, "--minutes", "0.0001"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("sha256: ") == 1 and "images: 1280" in found.stdout  # ten batches of 128
    result = bench(*words)
    assert result.exit_code == 0 and "images: 2560" in result.output
    folder = result.output.split("folder: ")[1].split()[0]
    with open(f"{folder}/card.json") as card:
        assert json.load(card)["processes"] == 1
