"""Checkpoints, pipelines and bases from files that were damaged or made up: a sentence, no traceback and no
hang, and nothing that a file brings along is run.
"""

import io
import json
import pickle
import shutil

import click
import numpy as np
import pytest
import torch
from fuzzing import Payload, assert_said, changed, damaged, within
from hypothesis import given
from hypothesis import strategies as st
from running import bench
from safetensors.torch import save

from bench import data as data_sets
from bench.models import bases, recipes

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder that one test after another may write to."""
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def vectors(place):
    """A data set of vectors, whose network is small."""
    np.savez(place / "vectors.npz", x_train=np.random.default_rng(0).normal(size=(100, 2)).astype("f4"))
    return f"npz:{place / 'vectors.npz'}"


@pytest.fixture(scope="module")
def checkpoint(vectors, place):
    """A folder with a trained network and its card, as training leaves it."""
    from bench.models import bases

    found = place / "checkpoint"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TAXOBENCH_CACHE", str(place / "cache"))
        bases.base_of("denoiser@100", data_sets.load(vectors))
        (folder,) = (place / "cache" / "models").iterdir()
        shutil.copytree(folder, found)
    return found


def tried(spec: str, data: str) -> None:
    """Open a base, or be told in a sentence why it cannot be."""
    try:
        with within():
            bases.base_of(spec, data_sets.load(data))
    except click.ClickException:
        pass


@given(inputs=st.data())
def test_a_damaged_checkpoint_is_said(checkpoint, vectors, place, inputs):
    folder = place / "given"
    shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
    name = inputs.draw(st.sampled_from(("model.safetensors", "card.json")))
    (folder / name).write_bytes(inputs.draw(damaged((checkpoint / name).read_bytes())))
    tried(str(folder), inputs.draw(st.sampled_from((vectors, "mixture2d"))))


@given(inputs=st.data())
def test_a_card_with_fields_of_another_kind_is_said(checkpoint, vectors, place, inputs):
    folder = place / "carded"
    shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
    (card,) = inputs.draw(changed([json.loads((checkpoint / "card.json").read_text())]).filter(bool))[:1]
    (folder / "card.json").write_text(json.dumps(card))
    tried(str(folder), vectors)


@pytest.mark.parametrize("sizes", [{"width": 10**6}, {"blocks": 10**9}, {"shape": [10**9]}, {"width": -1}])
def test_a_card_that_asks_for_a_network_too_large_for_its_weights_is_refused(
    checkpoint, vectors, place, sizes
):
    folder = place / "immodest"
    shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
    card = json.loads((checkpoint / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | {"architecture": card["architecture"] | sizes}))
    with pytest.raises(click.ClickException), within(20):
        bases.base_of(str(folder), data_sets.load(vectors))


@given(inputs=st.data())
def test_a_checkpoint_in_damaged_pieces_is_said(checkpoint, vectors, place, inputs):
    from bench.diffusion import pieces

    folder = place / "pieces"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(checkpoint, folder)
    pieces.cut(folder / "model.safetensors", 100_000)
    path = inputs.draw(st.sampled_from(sorted(folder.glob("model*"))))
    if path.suffix == ".json" and inputs.draw(st.booleans()):
        (index,) = inputs.draw(changed([json.loads(path.read_text())]).filter(bool))[:1]
        path.write_text(json.dumps(index))
    else:
        path.write_bytes(inputs.draw(damaged(path.read_bytes())))
    tried(str(folder), vectors)


@pytest.fixture(scope="module")
def pipeline(place):
    """A small pipeline of diffusers for digits."""
    from pipelines import ddim

    ddim(place / "pipeline")
    return place / "pipeline"


@given(inputs=st.data())
def test_a_damaged_pipeline_is_said(pipeline, place, inputs):
    folder = place / "damaged-pipeline"
    shutil.copytree(pipeline, folder, dirs_exist_ok=True)
    names = (
        "unet/config.json",
        "scheduler/scheduler_config.json",
        "unet/diffusion_pytorch_model.safetensors",
    )
    name = inputs.draw(st.sampled_from(names))
    sound = (pipeline / name).read_bytes()
    if name.endswith("json") and inputs.draw(st.booleans()):
        (config,) = inputs.draw(changed([json.loads(sound)]).filter(bool))[:1]
        (folder / name).write_text(json.dumps(config))
    else:
        (folder / name).write_bytes(inputs.draw(damaged(sound)))
    tried(f"diffusers:{folder}", "digits")


def test_weights_of_a_pipeline_that_are_a_pickle_are_not_run(pipeline, place):
    folder, touched = place / "pickled-pipeline", place / "touched-by-pipeline"
    shutil.copytree(pipeline, folder)
    (weights,) = folder.glob("unet/*.safetensors")
    weights.unlink()
    for content in archives_with(Payload(touched)).values():
        weights.with_suffix(".bin").write_bytes(content)
        tried(f"diffusers:{folder}", "digits")
        assert not touched.exists()


PLACES = r"(denoiser|vae|gan|guided|conditional|x\.py|/dev/null|\.)[@:]?[0-9a-z=./:@-]{0,8}"


@given(spec=st.text(max_size=12) | st.from_regex(PLACES, fullmatch=True))
def test_any_text_as_a_base_is_one_or_refused(spec):
    from bench.models import specs

    try:
        found = specs.parsed(spec, recipes.RECIPES)
    except click.ClickException:
        return
    if found.kind != "recipe":  # which would be trained
        tried(spec, "mixture2d")


@given(inputs=st.data())
def test_a_damaged_chunk_counts_as_none(place, inputs):
    from bench.running.chunks import checksum, read_chunk

    tensors = {"samples": torch.zeros(2, 2)}
    content = save(tensors, {"chunk": '{"number": 0}', "sha256": checksum(tensors, '{"number": 0}')})
    path = place / "0.safetensors"
    path.write_bytes(inputs.draw(damaged(content)))
    with within():
        read_chunk(path)


# Nothing in a file is run


def archives_with(payload: Payload) -> dict[str, bytes]:
    """Files of the kinds that some programs unpickle."""
    found = {"pickle": pickle.dumps(payload)}
    for name, write in (
        ("npy", np.save),
        ("npz", lambda file, array: np.savez(file, samples=array, x_train=array)),
    ):
        file = io.BytesIO()
        write(file, np.array([payload, payload], dtype=object))
        found[name] = file.getvalue()
    file = io.BytesIO()
    torch.save({"weight": payload}, file)
    return found | {"pt": file.getvalue()}


KINDS = ("pickle", "npy", "npz", "pt")


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_that_a_file_brings_along_is_run(checkpoint, place, kind):
    touched = place / f"touched-by-{kind}"
    content = archives_with(Payload(touched))[kind]
    pickle.loads(content) if kind == "pickle" else None
    if kind == "pickle":
        assert touched.exists()  # or this test would show nothing
        touched.unlink()
    folder = place / f"with-{kind}"
    shutil.copytree(checkpoint, folder)
    (folder / "model.safetensors").write_bytes(content)
    (folder / "samples").mkdir()
    for ending in ("npz", "pt", "png", "txt", "safetensors", "csv"):
        (folder / f"file.{ending}").write_bytes(content)
        for command in (
            ("score", folder / f"file.{ending}", "--data", "mixture2d"),
            ("run", "ddim", "--data", f"npz:{folder / f'file.{ending}'}", "--dry-run"),
            ("run", "ddim", "--data", f"text:{folder / f'file.{ending}'}", "--dry-run"),
            ("run", "ddim", "--data", f"mixture:{folder / f'file.{ending}'}", "--dry-run"),
            ("run", "ddim", "--data", f"folder:{folder}@8", "--dry-run"),
            ("run", "ddim", "--base", folder / f"file.{ending}", "--dry-run"),
            ("run", "ddim", "--base", folder, "--dry-run"),
            ("run", "ddim", "--extractor", folder / f"file.{ending}", "--dry-run"),
            ("run", "ddim", "--data", "mixture2d", "--statistics", folder / f"file.{ending}", "--dry-run"),
        ):
            with within():
                assert_said(bench(*command))
            assert not touched.exists(), command
