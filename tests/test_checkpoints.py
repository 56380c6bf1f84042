"""Denoisers in folders: rebuilt as their cards state, refused in a sentence, and found in the package."""

import json
import shutil

import click
import pytest
import torch
from running import bench

from bench.cache import write_json
from bench.data import load
from bench.diffusion.denoiser import Denoiser, untrained
from bench.diffusion.networks import image_net
from bench.models import bases, checkpoints, specs
from bench.models.kept import read_card
from bench.models.recipes import RECIPES

DIGITS = load("digits")
SPECS = ("denoiser@256", "ddpm@256", "conditional@256")


def saved(folder, model: Denoiser, **card):
    checkpoints.saved(model, card, folder)
    return folder


def same(a: Denoiser, b: Denoiser) -> bool:
    x, labels = torch.randn(3, *a.shape), torch.tensor([1, 2, 3])
    with torch.no_grad():
        one, other = (m.given(labels if m.shares is not None else None).at(x, 1.0, 0.7).x0 for m in (a, b))
    return torch.equal(one, other)


@pytest.mark.parametrize("spec", SPECS)
def test_a_folder_is_rebuilt_as_its_card_states(spec, tmp_path):
    folder = tmp_path / "base"
    result = bench("export", "digits", spec, folder, "--to", "folder")
    assert result.exit_code == 0, result.output
    model, card = bases.base_of(spec, DIGITS)
    again, read = bases.base_of(str(folder), DIGITS)
    assert same(model.eval(), again) and read["sha256"] == card["sha256"]
    for name in ("form", "sigma_data", "known", "shape", "levels"):
        assert getattr(again, name) == getattr(model, name)


def test_what_training_leaves_in_the_cache_is_a_folder_too(own_cache):
    from pathlib import Path

    _, card = bases.base_of("denoiser@256", DIGITS)
    folders = [
        path
        for path in Path(own_cache, "models").iterdir()
        if read_card(path).get("sha256") == card["sha256"]
    ]
    assert bases.base_of(str(folders[0]), DIGITS)[1]["sha256"] == card["sha256"]


def test_other_widths_and_vectors_are_rebuilt(tmp_path):
    wide = untrained(DIGITS, widths=((8, 16, 16), 2)).eval()
    assert same(wide, bases.base_of(str(saved(tmp_path / "wide", wide)), DIGITS)[0])
    ring = load("mixture2d")
    vectors = untrained(ring).eval()
    assert same(vectors, bases.base_of(str(saved(tmp_path / "ring", vectors)), ring)[0])


def test_a_card_from_before_it_stated_the_network_is_of_the_default_one(tmp_path):
    saved(tmp_path, untrained(DIGITS), recipe="denoiser")
    card = json.loads((tmp_path / "card.json").read_text())
    del card["architecture"]
    write_json(tmp_path / "card.json", card)
    assert bases.base_of(str(tmp_path), DIGITS)[1]["sha256"] == card["sha256"]


def test_what_is_not_a_denoiser_of_the_data_is_refused_in_a_sentence(tmp_path):
    good = saved(tmp_path / "good", untrained(DIGITS))

    def changed(name: str, **facts):
        shutil.copytree(good, tmp_path / name)
        card = json.loads((good / "card.json").read_text()) | facts
        write_json(tmp_path / name / "card.json", card)
        return tmp_path / name

    stated = json.loads((good / "card.json").read_text())["architecture"]
    (tmp_path / "empty").mkdir()
    refused = {
        tmp_path / "empty": "holds no card.json",
        changed("a", architecture=None, recipe="vae"): "holds a vae whose card does not state a denoiser",
        changed("b", architecture=stated | {"network": "vit"}): "no network is called 'vit'",
        changed("c", architecture=stated | {"widths": [16, 16]}): "holds another network",
        changed(
            "d", architecture=stated | {"shape": [1, 16, 16]}
        ): r"for shape \(1, 16, 16\), and digits has",
        changed("e", sha256="0" * 64): "is not what its card says",
    }
    for folder, sentence in refused.items():
        with pytest.raises(click.ClickException, match=sentence):
            bases.base_of(str(folder), DIGITS)


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (
            "def make(data):\n    raise KeyError('no such\\nweights')",
            "make.data. in .*own.py failed: KeyError: ",
        ),
        ("make = 3", r"own.py has no function make\(data\)"),
        ("make = lambda data: {'a': 1}", "make.data. in .*own.py returned dict"),
        ("make = lambda data: None", "make.data. in .*own.py returned NoneType"),
        ("1 / 0", "own.py cannot be imported: ZeroDivisionError: division by zero"),
    ],
)
def test_a_strangers_file_that_gives_no_network_is_said(code, sentence, tmp_path):
    (tmp_path / "own.py").write_text(code)
    with pytest.raises(click.ClickException, match=sentence) as refusal:
        bases.base_of(f"{tmp_path / 'own.py'}:make", DIGITS)
    assert "\n" not in refusal.value.message


def test_a_strangers_denoiser_of_another_shape_is_said(tmp_path):
    (tmp_path / "own.py").write_text(
        "from bench.data import load\nfrom bench.diffusion.denoiser import untrained\n"
        "make = lambda data: untrained(load('mixture2d'))"
    )
    with pytest.raises(click.ClickException, match=r"is a network for shape \(2,\), and digits has"):
        bases.base_of(f"{tmp_path / 'own.py'}:make", DIGITS)


@pytest.mark.parametrize("name", ["X.pt", "X.safetensors", "denoise"])
def test_a_single_file_of_weights_is_said_to_be_no_base(name, tmp_path):
    (tmp_path / name).write_bytes(b"weights")
    with pytest.raises(click.BadParameter, match=f"{name} is neither; single files of weights are not taken"):
        bases.base_of(str(tmp_path / name), DIGITS)


def test_a_pipeline_without_diffusers_before_it_is_told_how_it_is_given(tmp_path):
    (tmp_path / "a" / "unet").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "model_index.json").write_text("{}")
    for folder in (tmp_path / "a", tmp_path / "b"):
        with pytest.raises(click.ClickException, match=f"give diffusers:{folder}"):
            bases.base_of(str(folder), DIGITS)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("side", [1, 7, 9, 10, 36])
def test_images_of_sides_that_the_network_cannot_halve_are_refused_before_training(spec, side):
    images = torch.randint(0, 256, (50, 1, side, side), dtype=torch.uint8)
    odd = type(DIGITS)("odd", "image", (1, side, side), images, images, 256, torch.arange(50) % 10)
    with pytest.raises(
        click.ClickException, match=f"cannot take images of {side} x {side} pixels; give sides"
    ):
        bases.base_of(spec, odd)


@pytest.mark.parametrize("shape", [(1, 2, 2), (1, 6, 8), (1, 12, 16), (3, 28, 32), (1, 40, 8)])
def test_the_sides_that_are_said_to_fit_do(shape):
    with torch.no_grad():
        assert image_net(shape)(torch.zeros(1, *shape), torch.zeros(1)).shape == (1, *shape)


def test_a_base_that_came_with_the_package_is_not_trained(tmp_path, monkeypatch):
    """It is used where all that decides a training is what was asked for, and only there."""
    facts = {"recipe": "denoiser", "version": 1, "data": DIGITS.fingerprint, "images": 300, "seed": 0}
    torch.manual_seed(5)
    model = untrained(DIGITS).eval()
    saved(tmp_path / "digits", model, **facts)
    monkeypatch.setattr(checkpoints, "SHIPPED", tmp_path)
    found, card = bases.base_of("denoiser@300", DIGITS)
    assert same(model, found) and card["data"] == DIGITS.fingerprint
    for spec, seed in (("denoiser@301", 0), ("denoiser@300", 1)):
        assert checkpoints.shipped(DIGITS, facts | {"images": int(spec[9:]), "seed": seed}) is None
    assert bases.base_of("denoiser@256", DIGITS)[1]["sha256"] != card["sha256"]


def test_a_base_that_came_with_the_package_is_the_default_whatever_its_budget_was(tmp_path, monkeypatch):
    facts = {"recipe": "denoiser", "version": 1, "data": DIGITS.fingerprint, "budget": 512, "seed": 0}
    saved(tmp_path / "digits", untrained(DIGITS).eval(), **facts)
    monkeypatch.setattr(checkpoints, "SHIPPED", tmp_path)
    asked = specs.parsed("denoiser", RECIPES)
    assert bases.facts_of(asked, DIGITS, 0, None)["images"] == 512
    assert bases.facts_of(asked, DIGITS, 1, None)["images"] == bases.default_images(DIGITS)
    assert bases.facts_of(asked, DIGITS, 0, 300)["images"] == 300
    assert bases.untrained_images("denoiser", DIGITS) == 0
