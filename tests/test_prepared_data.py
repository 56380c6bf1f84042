"""celeba64 and imagenet64 from their originals, and archives that are not what they should be."""

import io
import tarfile
import zipfile
from dataclasses import replace

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from bench.cli import main
from bench.data import bring, load, pictures
from bench.data.prepared import PREPARATIONS, celeba_image, imagenet_image


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache folder for each test, and nothing remembered from the one before."""
    monkeypatch.setenv("TAXOBENCH_CACHE", str(tmp_path / "cache"))
    load.cache_clear()
    yield tmp_path / "cache" / "data"
    load.cache_clear()


def encoded(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def plain(value: int, width: int = 178, height: int = 218) -> bytes:
    return encoded(np.full((height, width, 3), value, np.uint8))


FACES = {f"img/{number:06}.png": plain(number % 251) for number in (1, 7, 162_770, 162_771, 182_638, 202_599)}
PHOTOS = {
    f"top/{split}/{label}/{i}.png": plain(50 * i + len(label), 80, 64)
    for split in ("train", "val")
    for label in ("n01", "n0002")
    for i in range(3)
}


def folder(path, files):
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def zipped(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in reversed(files.items()):
            archive.writestr(name, content)
    return path


def tarred(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in reversed(files.items()):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def refused(words, name, path):
    """Importing `path` fails with one sentence that has these words, and leaves nothing behind."""
    with pytest.raises(click.ClickException, match=words) as caught:
        bring(name, path)
    assert "\n" not in caught.value.message
    with pytest.raises(click.ClickException, match=f"bench data import {name} PATH"):
        load(name)


def test_a_face_is_the_centred_140_pixels_of_an_aligned_image():
    pixels = np.zeros((218, 178, 3), np.uint8)
    pixels[39:179, 19:159] = 200  # (218 - 140) / 2 and (178 - 140) / 2 from the edges
    assert (np.asarray(celeba_image(Image.fromarray(pixels), "a")) == 200).all()
    pixels[40:178, 20:158] = 0  # only the square's own rim is left, which the filter still sees
    small = np.asarray(celeba_image(Image.fromarray(pixels), "a"))
    assert (small[0] > 0).all() and (small[:, -1] > 0).all() and (small[2:-2, 2:-2] == 0).all()


def test_a_face_is_resized_with_an_antialiased_linear_filter():
    pixels = np.random.default_rng(0).integers(0, 256, (218, 178, 3), np.uint8)
    square = torch.from_numpy(pixels[39:179, 19:159]).permute(2, 0, 1)[None].float()
    expected = torch.nn.functional.interpolate(square, (64, 64), mode="bilinear", antialias=True)[0]
    found = torch.from_numpy(np.array(celeba_image(Image.fromarray(pixels), "a"))).permute(2, 0, 1)
    assert (found - expected).abs().max() <= 1.01  # levels


def test_a_photograph_is_halved_by_boxes_and_cropped_to_its_centre():
    pixels = np.random.default_rng(0).integers(0, 256, (256, 512, 3), np.uint8)
    found = np.asarray(imagenet_image(Image.fromarray(pixels), "a")).astype(float)
    boxes = pixels.reshape(64, 4, 128, 4, 3).mean((1, 3))[
        :, 32:96
    ]  # two halvings, and nothing left to resize
    assert abs(found - boxes).max() < 2  # levels: each halving rounds
    assert imagenet_image(Image.new("RGB", (40, 30)), "a").size == (64, 64)
    assert imagenet_image(Image.new("RGB", (641, 333)), "a").size == (64, 64)


@pytest.mark.parametrize("pack, name", [(folder, "a"), (zipped, "a.zip"), (tarred, "a.tar.gz")])
def test_faces_are_split_by_their_numbers_wherever_they_lie(tmp_path, pack, name):
    bring("celeba64", pack(tmp_path / name, FACES))
    data = load("celeba64")
    assert (data.shape, data.levels, data.train.dtype, data.labels) == ((3, 64, 64), 256, torch.uint8, None)
    assert data.train[:, 0, 0, 0].tolist() == [n % 251 for n in (1, 7, 162_770)]
    assert data.test[:, 0, 0, 0].tolist() == [n % 251 for n in (182_638, 202_599)]


def test_a_set_of_which_not_all_images_are_there_is_said_to_be_one(tmp_path, monkeypatch):
    words = ["data", "import", "celeba64", str(folder(tmp_path / "a", FACES))]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0 and "3 and 2 images" in done.stdout
    assert "celeba64 is of 162,770 and 19,962 images when it is whole" in done.stderr
    monkeypatch.setitem(PREPARATIONS, "celeba64", replace(PREPARATIONS["celeba64"], whole=(3, 2)))
    assert not CliRunner().invoke(main, words).stderr


def test_the_same_originals_give_the_same_fingerprint_however_they_are_packed(tmp_path):
    bring("imagenet64", folder(tmp_path / "a", PHOTOS))
    first = load("imagenet64").fingerprint
    load.cache_clear()
    bring("imagenet64", tarred(tmp_path / "a.tar.gz", PHOTOS))
    assert load("imagenet64").fingerprint == first


def test_photographs_keep_their_split_and_are_labelled_in_the_order_of_class_names(tmp_path):
    bring("imagenet64", zipped(tmp_path / "a.zip", PHOTOS))
    data = load("imagenet64")
    assert (len(data.train), data.labels.tolist()) == (6, [0, 0, 0, 1, 1, 1])  # n0002 before n01
    assert data.train[:, 0, 0, 0].tolist() == [5, 55, 105, 3, 53, 103]
    assert data.test_labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_photographs_without_a_split_have_a_tenth_held_out(tmp_path):
    files = {f"n{i % 2}/{i}.png": plain(i, 64, 64) for i in range(30)}
    bring("imagenet64", folder(tmp_path / "a", files))
    data = load("imagenet64")
    assert (len(data.train), len(data.test), len(data.test_labels)) == (27, 3, 3)
    values = torch.cat([data.train, data.test])[:, 0, 0, 0]
    assert torch.equal(values % 2, torch.cat([data.labels, data.test_labels]))


def test_what_is_missing_is_one_sentence():
    for name, what in (("celeba64", "img_align_celeba"), ("imagenet64", "train/CLASS")):
        with pytest.raises(click.ClickException, match=f"bench data import {name} PATH.*{what}"):
            load(name)


@pytest.mark.parametrize("part", ["train", "test", "labels", "test_labels"])
def test_a_damaged_prepared_file_is_one_sentence_that_says_what_to_do(tmp_path, cache, part):
    bring("imagenet64", folder(tmp_path / "a", PHOTOS))
    path = cache / f"imagenet64.{part}.npy"
    sound = np.load(path)
    saved = lambda array: lambda: np.save(path, array, allow_pickle=True)
    for damage in (
        lambda: path.write_bytes(b""),
        lambda: path.write_bytes(b"junk"),
        lambda: path.write_bytes(path.read_bytes()[:-1]),
        saved(np.array([{}, None], dtype=object)),
        saved(sound.astype("f4")),
        saved(sound[..., None]),
    ):
        saved(sound)()
        damage()
        load.cache_clear()
        with pytest.raises(
            click.ClickException, match=f"imagenet64.{part}.npy .*: delete it, and run `bench"
        ):
            load("imagenet64")


def test_originals_that_will_not_do_are_refused_with_a_reason(tmp_path):
    refused("there is no file or folder", "celeba64", tmp_path / "none")
    refused("holds no images", "celeba64", folder(tmp_path / "empty", {"a.txt": b""}))
    refused("cannot be read", "celeba64", folder(tmp_path, {"noise.zip": b"noise"}) / "noise.zip")
    refused("has no number", "celeba64", folder(tmp_path / "names", {"face.png": plain(1)}))
    refused("no images of the test split", "celeba64", folder(tmp_path / "few", {"000001.png": plain(1)}))
    refused("is 64 x 64", "celeba64", folder(tmp_path / "small", FACES | {"000002.png": plain(1, 64, 64)}))
    refused("cannot be read as an image", "celeba64", folder(tmp_path / "bad", FACES | {"000002.png": b"x"}))
    refused("lies in no folder of a class", "imagenet64", folder(tmp_path / "flat", {"a.png": plain(1)}))
    kaggle = {"CLS-LOC/train/n01/a.png": plain(1), "CLS-LOC/val/b.png": plain(2)}
    refused("val/b.png .* lies in no folder of a class", "imagenet64", folder(tmp_path / "kaggle", kaggle))
    with pytest.raises(click.ClickException, match="`bench data fetch cifar10` brings it"):
        bring("cifar10", tmp_path)


@pytest.mark.parametrize("name", ["../000002.png", "/000002.png", "a/../../000002.png"])
def test_an_archive_that_reaches_outside_itself_is_refused(tmp_path, name):
    for pack in (zipped, tarred):
        refused("outside itself", "celeba64", pack(tmp_path / "a", FACES | {name: plain(1)}))


def test_an_archive_with_a_link_is_refused(tmp_path):
    with tarfile.open(tarred(tmp_path / "a.tar", {}), "w") as archive:
        link = tarfile.TarInfo("000001.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    refused("holds a link", "celeba64", tmp_path / "a.tar")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        link = zipfile.ZipInfo("000001.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/hostname")
    refused("holds a link", "celeba64", tmp_path / "a.zip")


def test_a_torn_archive_is_refused_and_leaves_nothing_behind(tmp_path, cache):
    whole = tarred(tmp_path / "a.tar.gz", FACES).read_bytes()
    (tmp_path / "torn.tar.gz").write_bytes(whole[: len(whole) // 2])
    refused("torn.tar.gz cannot be read", "celeba64", tmp_path / "torn.tar.gz")
    assert [path for path in cache.iterdir() if path.suffix == ".npy"] == []


def test_an_image_of_absurd_size_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "LARGEST", 100)
    for pack in (zipped, tarred):
        refused("larger than", "celeba64", pack(tmp_path / "a", {"000001.png": b"0" * 101}))


def test_the_import_command_says_what_it_wrote(tmp_path):
    ran = CliRunner().invoke(main, ["data", "import", "celeba64", str(folder(tmp_path / "a", FACES))])
    assert ran.exit_code == 0 and "3 and 2 images" in ran.output
    assert load("celeba64").fingerprint in ran.output
    ran = CliRunner().invoke(main, ["data", "import", "celeba64", str(tmp_path / "none")])
    assert (ran.exit_code, ran.output.count("\n")) == (1, 1)
