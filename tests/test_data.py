"""Data sets: names, splits, the stored form, files that users bring, and what is said when they are wrong."""

import os
import subprocess
import sys

import click
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_digits

import bench.data
from bench.data import Data, load


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache folder for each test, and nothing remembered from the one before."""
    monkeypatch.setenv("TAXOBENCH_CACHE", str(tmp_path / "cache"))
    load.cache_clear()
    yield tmp_path / "cache" / "data"
    load.cache_clear()


def keras(folder, name="mnist", shape=(28, 28), seed=0):
    """A small file as Keras ships it, at its place in the cache."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for half, n in (("train", 30), ("test", 12)):
        arrays[f"x_{half}"] = rng.integers(0, 256, (n, *shape), np.uint8)
        arrays[f"y_{half}"] = rng.integers(0, 10, n, np.uint8)
    np.savez(folder / f"{name}.npz", **arrays)
    return arrays


def says(words, name):
    """Loading `name` fails with one sentence that has these words."""
    with pytest.raises(click.ClickException, match=words) as caught:
        load(name)
    assert "\n" not in caught.value.message


def test_importing_the_package_imports_no_torch():
    code = "import sys, bench.data as d; d.names(); print({'torch', 'numpy', 'PIL'} & sys.modules.keys())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_a_misspelt_name_is_answered_with_the_right_one():
    says("did you mean fashion-mnist", "fashion_mnist")
    says("there are digits, mnist", "zzz")


def test_digits_split_is_the_one_agreed_on():
    data, images = load("digits"), load_digits()
    order = np.random.default_rng(0).permutation(1797)
    assert (data.train.shape, data.train.dtype, data.levels) == ((1437, 1, 8, 8), torch.uint8, 17)
    assert (data.test.numpy()[:, 0] == images.images[order[1437:]]).all()
    assert (data.labels.numpy() == images.target[order[:1437]]).all()
    assert (data.test_labels.numpy() == images.target[order[1437:]]).all()


def test_levels_run_from_minus_one_to_one_and_come_back():
    data = load("digits")
    scaled = data.scale(torch.arange(17, dtype=torch.uint8))
    torch.testing.assert_close(scaled, torch.linspace(-1, 1, 17))
    assert data.quantise(scaled).tolist() == list(range(17))


def test_quantising_clips_and_takes_the_nearest_level():
    data = load("digits")
    x = torch.tensor([-3.0, 3.0, 2 * 5.4 / 16 - 1, 2 * 5.6 / 16 - 1])
    torch.testing.assert_close(data.quantise(x), torch.tensor([0, 16, 5, 6], dtype=torch.uint8))


def test_data_without_levels_are_left_as_they_are():
    data = load("mixture2d")
    x = torch.tensor([[-3.0, 0.123]], dtype=torch.float64)
    torch.testing.assert_close(data.quantise(x), x.float(), rtol=0, atol=0)
    torch.testing.assert_close(data.scale(x.float()), x.float(), rtol=0, atol=0)


def test_sigma_data_is_the_spread_of_all_training_values():
    data = load("digits")
    values = data.scale(data.train).double()
    assert data.sigma_data == pytest.approx(values.std(correction=0).item(), rel=1e-6)


def test_a_data_set_is_its_own_view():
    data = load("digits")
    assert data.view("image") is data and data.back(data.test, "image") is data.test
    with pytest.raises(ValueError, match="no view as 'sphere'"):
        data.view("sphere")


def test_fingerprint_changes_with_each_thing_it_covers():
    x = torch.arange(8, dtype=torch.uint8).reshape(8, 1)
    make = lambda name="a", shape=(1,), train=x, test=x, levels=8: Data(name, "", shape, train, test, levels)
    other = x.flip(0)
    changed = make("b"), make(shape=(1, 1)), make(train=other), make(test=other), make(levels=9)
    assert make().fingerprint == make().fingerprint
    assert len({data.fingerprint for data in (make(), *changed)}) == 6


@pytest.mark.parametrize("name, shape", [("mnist", (28, 28)), ("cifar10", (32, 32, 3))])
def test_keras_files_become_mapped_arrays_with_channels_first(cache, name, shape):
    arrays = keras(cache, name, shape)
    data = load(name)
    images = arrays["x_train"][:, None] if len(shape) == 2 else arrays["x_train"].transpose(0, 3, 1, 2)
    assert (data.levels, data.shape, data.train.dtype) == (256, images.shape[1:], torch.uint8)
    assert (data.train.numpy() == images).all() and data.train.is_contiguous()
    assert (data.test_labels.numpy() == arrays["y_test"]).all()
    assert all(path.suffix == ".npy" and path.parent == cache for path in data.sources)


def test_writing_to_a_mapped_tensor_does_not_change_the_file(cache):
    arrays = keras(cache)
    load("mnist").train.zero_()
    (cache / "mnist.npz").unlink()  # else the arrays would be made anew
    load.cache_clear()
    assert (load("mnist").train.numpy()[:, 0] == arrays["x_train"]).all()


def test_arrays_are_unpacked_once_and_serve_without_the_npz(cache):
    keras(cache)
    before = [path.stat().st_ino for path in load("mnist").sources]
    (cache / "mnist.npz").unlink()
    load.cache_clear()
    assert [path.stat().st_ino for path in load("mnist").sources] == before


def test_a_replaced_npz_replaces_the_arrays_and_the_fingerprint(cache):
    keras(cache)
    first, arrays = load("mnist").fingerprint, keras(cache, seed=1)
    load.cache_clear()
    os.utime(cache / "mnist.npz", (1, 1))  # even with an older file
    assert (load("mnist").train.numpy()[:, 0] == arrays["x_train"]).all()
    assert load("mnist").fingerprint != first


def test_fingerprint_of_mapped_arrays_is_that_of_the_same_arrays_in_memory(cache):
    keras(cache)
    data = load("mnist")
    assert data.fingerprint == Data("mnist", "image", data.shape, data.train, data.test, 256).fingerprint


def test_mapped_arrays_are_hashed_once(cache, monkeypatch):
    keras(cache)
    first = load("mnist").fingerprint
    load.cache_clear()
    monkeypatch.setattr(bench.data, "_digest", lambda array: pytest.fail("hashed again"))
    assert load("mnist").fingerprint == first


def test_missing_data_say_which_command_brings_them_and_where_to_put_a_file(cache):
    says(r"`bench data fetch cifar10`, or put cifar10\.npz .* at .*cache/data/cifar10\.npz", "cifar10")


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:200], lambda b: b[:900] + b"?" + b[901:]])
def test_a_corrupted_file_is_one_sentence(cache, damage):
    keras(cache)
    broken = damage((cache / "mnist.npz").read_bytes())
    (cache / "mnist.npz").write_bytes(broken)
    says("cannot be read", "mnist")
    says("cannot be read", f"npz:{cache}/mnist.npz")


def damaged(path, how):
    """The .npy file at `path` as an accident would leave it."""
    content = path.read_bytes()
    if how == "objects":
        np.save(path, np.array([{}, None], dtype=object), allow_pickle=True)
    elif how == "floats":
        np.save(path, np.load(path).astype("f4"))
    elif how == "another shape":
        np.save(path, np.load(path)[:, :3].reshape(len(np.load(path)), -1))
    elif how == "text":
        np.save(path, np.array(["a", "b"]))
    elif how == "a number":
        np.save(path, np.uint8(3))
    else:
        path.write_bytes({"empty": b"", "junk": b"junk" * 50, "half": content[: len(content) // 2]}[how])


DAMAGE = ("empty", "junk", "half", "objects", "floats", "another shape", "text", "a number")


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_array_in_the_cache_is_one_sentence_that_says_what_to_do(cache, how):
    keras(cache)
    load("mnist")
    (cache / "mnist.npz").unlink()  # else the arrays would be made anew
    for part in ("train", "test"):
        load.cache_clear()
        sound = (cache / f"mnist.{part}.npy").read_bytes()
        damaged(cache / f"mnist.{part}.npy", how)
        says(rf"mnist\.{part}\.npy .*: delete it, .*`bench data fetch mnist`", "mnist")
        (cache / f"mnist.{part}.npy").write_bytes(sound)
    load("mnist")


def test_labels_in_the_cache_are_as_many_as_images(cache):
    keras(cache)
    load("mnist")
    (cache / "mnist.npz").unlink()
    load.cache_clear()
    np.save(cache / "mnist.labels.npy", np.zeros(29, np.int64))
    says(r"mnist\.labels\.npy holds int64 of shape \(29,\), not what was prepared: delete it", "mnist")


@pytest.mark.parametrize(
    "words, change",
    [
        ("y_train in .*mnist.npz holds 30 of type <U1", {"y_train": np.full(30, "a")}),
        ("y_test in .*mnist.npz holds 3 of type uint8", {"y_test": np.zeros(3, np.uint8)}),
        ("x_test in .*mnist.npz is empty", {"x_test": np.zeros((0, 28, 28), np.uint8)}),
        ("x_test in .*mnist.npz .*another shape", {"x_test": np.zeros((12, 27, 28), np.uint8)}),
    ],
)
def test_a_keras_file_of_strange_arrays_says_which(cache, words, change):
    np.savez(cache / "mnist.npz", **keras(cache) | change)
    says(words, "mnist")


def test_a_keras_file_without_labels_says_what_it_needs(cache):
    np.savez(cache / "mnist.npz", x_train=keras(cache)["x_train"])
    says("should hold the arrays x_train, x_test", "mnist")


def test_fetch_turns_a_torchvision_download_into_the_npz(cache, monkeypatch):
    class Downloaded:
        def __init__(self, root, train, download):
            root.mkdir(exist_ok=True)
            n = 4 if train else 2
            self.data, self.targets = np.full((n, 32, 32, 3), n, np.uint8), list(range(n))

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Downloaded)
    assert bench.data.fetch("cifar10") == cache / "cifar10.npz"
    assert sorted(path.name for path in cache.iterdir()) == ["cifar10.npz"]
    data = load("cifar10")
    assert (data.train.shape, data.test_labels.tolist()) == ((4, 3, 32, 32), [0, 1])


def test_fetch_without_internet_says_where_a_file_goes(cache, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("Error downloading\nmany more lines")

    monkeypatch.setattr(torchvision.datasets, "MNIST", refuse)
    with pytest.raises(click.ClickException, match=r"put mnist\.npz .* at .*mnist\.npz") as caught:
        bench.data.fetch("mnist")
    assert "\n" not in caught.value.message


def test_fetch_leaves_alone_what_is_there_or_needs_no_download(cache):
    keras(cache)
    before = (cache / "mnist.npz").stat()
    assert bench.data.fetch("mnist").stat() == before
    assert bench.data.fetch("digits") is None


def test_an_npz_of_samples_holds_out_a_tenth(tmp_path):
    samples = np.random.default_rng(0).integers(0, 256, (50, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "a.npz", samples=samples)
    data = load(f"npz:{tmp_path}/a.npz")
    assert (data.kind, data.shape, data.levels, len(data.test)) == ("image", (3, 4, 4), 256, 5)
    both = torch.cat([data.train, data.test]).numpy().transpose(0, 2, 3, 1)
    assert sorted(map(bytes, both)) == sorted(map(bytes, samples))


def test_an_npz_keeps_its_own_split_labels_and_floats(tmp_path):
    x = np.linspace(-1, 1, 6 * 9).reshape(6, 3, 3)
    np.savez(tmp_path / "a.npz", x_train=x, x_test=x[:2], y_train=np.arange(6), y_test=np.arange(2))
    data = load(f"npz:{tmp_path}/a.npz")
    assert (data.shape, data.levels, data.labels.tolist()) == ((1, 3, 3), None, list(range(6)))
    torch.testing.assert_close(data.train[:, 0], torch.from_numpy(x).float())


def test_rows_of_floats_are_vectors(tmp_path):
    np.savez(tmp_path / "a.npz", np.random.default_rng(0).normal(size=(20, 7)) * 5)
    data = load(f"npz:{tmp_path}/a.npz")
    assert (data.kind, data.shape, len(data.test)) == ("vector", (7,), 2)


REFUSED = {
    "it needs x_train": {"weights": np.zeros(3)},
    "save uint8 images, or floats": {"samples": np.zeros((4, 8, 8), np.int64)},
    "scale them to": {"samples": np.full((4, 8, 8), 255.0)},
    "not finite": {"samples": np.full((4, 8, 8), np.nan)},
    "C being 1 or 3": {"samples": np.zeros((4, 8, 8, 7), np.uint8)},
    "vectors are floats": {"samples": np.zeros((4, 8), np.uint8)},
    "2 or more": {"samples": np.zeros((1, 8, 8), np.uint8)},
    "at least one row": {"samples": np.zeros((0, 8, 8), np.uint8)},
    "differ in shape": {"x_train": np.zeros((4, 8, 8), np.uint8), "x_test": np.zeros((4, 9, 9), np.uint8)},
    "Object arrays cannot be loaded": {"samples": np.array([{}, {}], dtype=object)},
}


@pytest.mark.parametrize("words, arrays", REFUSED.items(), ids=REFUSED)
def test_an_npz_that_will_not_do_is_refused_with_a_reason(tmp_path, words, arrays):
    says("there is no file", f"npz:{tmp_path}/a.npz")
    np.savez(tmp_path / "a.npz", **arrays)
    says(words, f"npz:{tmp_path}/a.npz")


def pictures(folder, n=20):
    """Images of one colour each, three times as wide as high, with red margins that the crop cuts off."""
    for i in range(n):
        image = np.zeros((10, 30, 3), np.uint8)
        image[:, :10] = image[:, 20:] = (255, 0, 0)
        image[:, 10:20] = (0, 10 * i, 100)
        (folder / f"{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i % 2}" / f"{i}.png")


def test_a_folder_of_images_is_cropped_resized_and_split(tmp_path):
    pictures(tmp_path / "a")
    data = load(f"folder:{tmp_path}/a@4")
    assert (data.shape, data.levels, data.train.dtype) == ((3, 4, 4), 256, torch.uint8)
    assert (len(data.train), len(data.test)) == (18, 2)
    both = torch.cat([data.train, data.test])
    assert (both[:, 0].unique().tolist(), both[:, 2].unique().tolist()) == ([0], [100])
    assert both[:, 1, 0, 0].sort().values.tolist() == [10 * i for i in range(20)]


def test_a_folder_is_converted_once_until_it_changes(tmp_path):
    pictures(tmp_path / "a")
    sources = load(f"folder:{tmp_path}/a@4").sources
    before = [path.stat().st_ino for path in sources]
    load.cache_clear()
    assert [path.stat().st_ino for path in load(f"folder:{tmp_path}/a@4").sources] == before
    load.cache_clear()
    (tmp_path / "a" / "0" / "0.png").unlink()
    data = load(f"folder:{tmp_path}/a@4")
    assert (data.sources != sources, len(data.train) + len(data.test)) == (True, 19)


def test_a_damaged_conversion_of_a_folder_is_one_sentence(tmp_path):
    pictures(tmp_path / "a")
    name = f"folder:{tmp_path}/a@4"
    source = load(name).sources[0]
    load.cache_clear()
    damaged(source, "half")
    says(r"train\.npy is damaged .*: delete it, and it is made again from the images", name)
    source.unlink()
    assert len(load(name).train) == 18


def test_the_same_pictures_elsewhere_have_the_same_fingerprint(tmp_path):
    pictures(tmp_path / "a")
    pictures(tmp_path / "b")
    a, b = (load(f"folder:{tmp_path}/{name}@4") for name in "ab")
    assert a.sources != b.sources  # converted apart: their times differ
    assert a.fingerprint == b.fingerprint


def test_a_folder_that_will_not_do_is_refused_with_a_reason(tmp_path):
    pictures(tmp_path / "a", n=3)
    says("at which size", f"folder:{tmp_path}/a")
    says("at which size", f"folder:{tmp_path}/a@big")
    for size in ("0", "4097", "9" * 21, "9" * 5000):
        says("at which size .*up to 4096 pixels", f"folder:{tmp_path}/a@{size}")
    says("there is no folder", f"folder:{tmp_path}/b@8")
    (tmp_path / "empty").mkdir()
    says("2 or more", f"folder:{tmp_path}/empty@8")
    (tmp_path / "a" / "broken.png").write_bytes(b"\x89PNG nothing")
    says(r"broken\.png cannot be read as an image", f"folder:{tmp_path}/a@8")
