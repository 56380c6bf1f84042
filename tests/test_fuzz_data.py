"""Samples and data from files that were damaged or made up: a sentence and an exit code, no traceback and no
hang, and nothing is written where an archive says.
"""

import io
import os
import shutil
import struct
import tarfile
import zipfile
import zlib

import click
import numpy as np
import pytest
import torch
from fuzzing import assert_said, damaged, forget, npz_files, within
from hypothesis import given
from hypothesis import strategies as st
from running import bench
from safetensors.torch import save

from bench import data as data_sets

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder that one test after another may write to."""
    return tmp_path_factory.mktemp("place")


def scored(path, data: str) -> None:
    forget()
    with within():
        assert_said(bench("score", path, "--data", data))


@given(inputs=st.data())
def test_strange_samples_are_scored_or_refused(place, inputs):
    path = place / "samples.npz"
    path.write_bytes(inputs.draw(npz_files()))
    scored(path, inputs.draw(st.sampled_from(("mixture2d", "digits", "mixture-digits", "vmf"))))


@given(inputs=st.data())
def test_damaged_samples_are_scored_or_refused(place, inputs):
    file = io.BytesIO()
    np.savez_compressed(file, samples=np.random.default_rng(0).normal(size=(60, 2)).astype("f4"))
    path = place / "damaged.npz"
    path.write_bytes(inputs.draw(damaged(file.getvalue())))
    scored(path, "mixture2d")


def opened(name: str) -> None:
    """Load a data set and look at all of it."""
    forget()
    try:
        with within():
            data = data_sets.load(name)
            data.scale(data.train[:]), data.scale(data.test[:]), data.fingerprint, data.sigma_data
    except click.ClickException:
        pass


@given(inputs=st.data())
def test_a_strange_npz_is_a_data_set_or_refused(place, inputs):
    path = place / "data.npz"
    path.write_bytes(inputs.draw(npz_files()))
    opened(f"npz:{path}")


@pytest.mark.parametrize("prefix", ["npz", "text", "mixture"])
def test_what_is_no_regular_file_is_no_data_set(tmp_path, prefix):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path):
        forget()
        with pytest.raises(click.ClickException, match="is not a regular file") as caught, within(20):
            data_sets.load(f"{prefix}:{path}")
        assert "\n" not in caught.value.message


def test_samples_and_originals_that_are_no_regular_file_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for words in (
        ("score", tmp_path / "sound.npz", "--data", "mixture2d", "--statistics", tmp_path / "pipe"),
        ("data", "import", "celeba64", tmp_path / "pipe"),
        ("data", "import", "celeba64", "/dev/zero"),
    ):
        np.savez(tmp_path / "sound.npz", samples=np.random.default_rng(0).normal(size=(60, 2)).astype("f4"))
        with within(20):
            result = bench(*words)
        assert (result.exit_code, "is not a regular file" in result.output) == (1, True), result.output


@given(inputs=st.data())
def test_a_strange_text_is_a_data_set_or_refused(place, inputs):
    path = place / "text.txt"
    text = inputs.draw(st.text(max_size=50) | st.sampled_from(["abc ", "\ud7ff", "İ"]))
    path.write_bytes(inputs.draw(damaged(text.encode("utf-8", "replace") * 1000)))
    opened(f"text:{path}")


def picture(kind: str) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)).save(file, kind)
    return file.getvalue()


PICTURES = {kind: picture(kind) for kind in ("PNG", "JPEG", "BMP", "WEBP")}


@given(inputs=st.data())
def test_damaged_pictures_are_read_or_refused(place, inputs):
    folder = place / "pictures"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for number in range(3):
        kind = inputs.draw(st.sampled_from(sorted(PICTURES)))
        ending = inputs.draw(st.sampled_from((".png", ".jpg", ".bmp", ".webp", ".PNG", ".txt")))
        content = PICTURES[kind] if number else inputs.draw(damaged(PICTURES[kind]))
        (folder / f"{number}{ending}").write_bytes(content)
    opened(f"folder:{folder}@{inputs.draw(st.sampled_from((1, 8, 9)))}")


def test_a_picture_that_would_fill_the_memory_is_refused(place):

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    folder = place / "bomb"
    folder.mkdir(exist_ok=True)
    header = struct.pack(">IIBBBBB", 200_000, 200_000, 8, 2, 0, 0, 0)
    content = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(content)
    with pytest.raises(click.ClickException, match="cannot be read as an image"), within():
        data_sets.load(f"folder:{folder}@8")


@given(inputs=st.data())
def test_a_damaged_mixture_is_a_data_set_or_refused(place, inputs):
    basis = torch.eye(3)[None, :, :1].repeat(2, 1, 1)
    tensors = {"weights": torch.ones(2), "means": torch.randn(2, 3), "basis": basis}
    tensors |= {"excess": torch.ones(2, 1), "floor": torch.ones(2)}
    kinds = st.sampled_from((torch.float16, torch.float64, torch.int64, torch.bool))
    for name in inputs.draw(st.lists(st.sampled_from(sorted(tensors)), unique=True, max_size=2)):
        change = inputs.draw(st.sampled_from(("kind", "cut", "negative", "nan", "gone")))
        before = tensors.pop(name)
        after = {"kind": before.to(inputs.draw(kinds)), "cut": before[:1].clone(), "negative": -before}
        after |= {"nan": before * torch.nan}
        tensors |= {name: after[change]} if change in after else {}
    shape = inputs.draw(st.sampled_from(("3", "1,3", "2", "", "x", "3,-1", "-3,-1")))
    content = save(tensors, {"shape": shape})
    path = place / "mixture.safetensors"
    path.write_bytes(inputs.draw(st.just(content) | damaged(content)))
    opened(f"mixture:{path}")


@given(inputs=st.data())
def test_strange_moments_are_compared_with_or_refused(place, inputs):
    np.savez(place / "sound.npz", samples=np.random.default_rng(0).normal(size=(60, 2)).astype("f4"))
    (place / "moments.npz").write_bytes(inputs.draw(npz_files()))
    words = ("--data", "mixture2d", "--metric", "fid", "--statistics", place / "moments.npz")
    with within():
        assert_said(bench("score", place / "sound.npz", *words))


# Archives


def archive(kind: str, files: dict[str, bytes], link: str = "") -> bytes:
    """A .zip or .tar of these files, and a symbolic link to a place outside under this name."""
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as opened:
            for name, content in files.items():
                opened.writestr(name, content)
            if link:
                info = zipfile.ZipInfo(link)
                info.external_attr = 0o120777 << 16
                opened.writestr(info, "/etc")
        return file.getvalue()
    with tarfile.open(fileobj=file, mode="w:gz") as opened:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
        if link:
            member = tarfile.TarInfo(link)
            member.type, member.linkname = tarfile.SYMTYPE, "/etc"
            opened.addfile(member)
    return file.getvalue()


def brought(path, name: str = "imagenet64") -> None:
    with within():
        assert_said(bench("data", "import", name, path))


@pytest.mark.parametrize("kind", ["zip", "tar"])
@given(inputs=st.data())
def test_damaged_archives_are_brought_or_refused(kind, place, inputs):
    files = {f"{split}/n{k}/{k}.png": PICTURES["PNG"] for split in ("train", "val") for k in range(2)}
    path = place / f"archive.{kind}"
    path.write_bytes(inputs.draw(damaged(archive(kind, files))))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TAXOBENCH_CACHE", str(place / "cache"))
        brought(path, inputs.draw(st.sampled_from(("imagenet64", "celeba64"))))


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("name", ["../../outside.png", "/tmp/outside.png", "link/n0/a.png"])
def test_an_archive_writes_nothing_outside_the_cache(tmp_path, monkeypatch, kind, name):
    deep = tmp_path / "a" / "b" / "c"
    deep.mkdir(parents=True)
    monkeypatch.setenv("TAXOBENCH_CACHE", str(deep / "cache"))
    files = {f"train/n{k}/{k}.png": PICTURES["PNG"] for k in range(3)} | {name: PICTURES["PNG"]}
    (deep / "archive").write_bytes(archive(kind, files, link="link" if name.startswith("link") else ""))
    monkeypatch.chdir(deep)
    brought(deep / "archive")
    outside = [
        path for path in tmp_path.rglob("*") if path.is_file() and (deep / "cache") not in path.parents
    ]
    assert outside == [deep / "archive"]
