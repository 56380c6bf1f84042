"""Data seen as another kind, and methods for it: what lies on levels is tokens, and a box."""

import math

import pytest
import torch
from running import ran

from bench import store
from bench.data import load

DICE = '''"""Every token as likely as every other: an even distribution over levels."""

import math

import torch
from torch import nn

from bench.diffusion.counting import Counted
from bench.method import Method


class Even(nn.Module):
    def forward(self, x):
        return x


class Dice(Method):
    """Dice"""

    paper = "arXiv:2107.03006"
    leaf = "discrete"
    base = None
    kinds = {"tokens"}
    schedules = ()
    likelihood = "elbo"
    dequantise = "none"

    def build(self, base, data, nfe):
        model = Counted(Even())
        model.shape, model.levels = data.shape, data.levels
        return model

    def start(self, model, n, generator, device="cpu"):
        return torch.randint(model.levels, (n, *model.shape), generator=generator).to(device)

    def sample(self, model, x, nfe):
        return model(x)

    def nll(self, model, x, nfe):
        assert x.dtype == torch.int64
        return {"all": torch.full((len(x),), x[0].numel() * math.log(model.levels)).double()}
'''


def test_images_on_levels_can_be_seen_as_tokens_and_come_back_the_same():
    digits = load("digits")
    tokens = digits.view("tokens")
    assert digits.kinds == ("image", "tokens", "box") and tokens.kind == "tokens"
    seen = tokens.scale(digits.test)
    assert seen.dtype == torch.int64 and int(seen.max()) == digits.levels - 1
    back = digits.back(seen, "tokens")
    assert torch.equal(back, digits.scale(digits.test))
    assert torch.equal(digits.quantise(back), digits.test)


def test_what_has_no_levels_has_no_view_as_tokens():
    with pytest.raises(ValueError, match="has no view as 'tokens'"):
        load("mixture-digits").view("tokens")


def test_a_method_sees_data_as_its_own_kind_where_it_is_for_that():
    digits = load("digits")
    assert digits.seen_by({"image", "tokens"}).kind == "image"
    assert digits.seen_by({"tokens"}).kind == "tokens"


def test_a_method_for_tokens_is_measured_on_images_in_the_units_of_images(tmp_path):
    plugin = tmp_path / "dice.py"
    plugin.write_text(DICE)
    said = ran("dice", "--plugin", plugin, "--metric", "nll", "--metric", "memorisation", results=tmp_path)
    rows = [row for row in store.read(tmp_path) if row.method == "dice"]
    bits = {row.value for row in rows if row.metric == "nll[elbo]"}
    assert bits and all(value == pytest.approx(math.log2(load("digits").levels)) for value in bits)
    assert "Dice" in said and {row.metric for row in rows} == {"nll[elbo]", "memorisation"}
