"""Checkpoints in pieces: cut, read like whole ones, and what is said where one is missing."""

import json

import pytest
import torch
from running import bench
from safetensors.torch import save_file

from bench.diffusion import pieces

TENSORS = {f"layer.{i}": torch.randn(40, 10) for i in range(7)}  # 1,600 bytes each


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path, {"step": "3"})
    return path


def same(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == TENSORS.keys() and all(torch.equal(found[name], t) for name, t in TENSORS.items())


def test_pieces_are_no_larger_than_asked_and_read_like_the_whole(path):
    files = pieces.cut(path, 4000)
    assert len(files) == 4 and not path.exists()
    assert files[0].name == "model-00001-of-00004.safetensors"
    assert all(file.stat().st_size <= 4000 for file in files)
    tensors, metadata = pieces.read(path)
    assert same(tensors) and metadata == {"step": "3"}
    weight_map = json.loads(pieces.index_of(path).read_text())["weight_map"]
    assert weight_map.keys() == TENSORS.keys() and set(weight_map.values()) == {file.name for file in files}


def test_pieces_can_be_cut_smaller_and_small_files_stay_whole(path):
    assert pieces.cut(path, 10**6) == [path]
    pieces.cut(path, 6000)
    files = pieces.cut(path, 2000)
    assert len(files) == 7 and same(pieces.read(path)[0])
    assert set(path.parent.glob("*-of-*")) == set(files)
    assert pieces.checkpoints(path.parent) == [path]
    assert pieces.cut(path, 6000) == files


def test_a_whole_file_counts_before_pieces_of_an_earlier_one(path):
    pieces.cut(path, 4000)
    save_file({"other": torch.ones(1)}, path)
    assert list(pieces.read(path)[0]) == ["other"]
    pieces.remove(path)
    assert list(path.parent.iterdir()) == [] and not pieces.there(path)


def test_a_missing_and_a_damaged_piece_are_named(path):
    first, second, *_ = pieces.cut(path, 4000)
    content = bytearray(second.read_bytes())
    content[-1] ^= 1
    second.write_bytes(bytes(content))
    with pytest.raises(pieces.Damaged, match=r"model-00002-of-00004.safetensors is damaged"):
        pieces.read(path)
    first.unlink()
    with pytest.raises(pieces.Damaged, match=r"model-00001-of-00004.safetensors is missing"):
        pieces.read(path)
    pieces.index_of(path).write_text("{}")
    with pytest.raises(pieces.Damaged, match="not the index"):
        pieces.read(path)


def test_a_tensor_larger_than_a_piece_is_refused_and_nothing_is_lost(path):
    with pytest.raises(ValueError, match=r"layer\.0 alone takes"):
        pieces.cut(path, 1000)
    assert same(pieces.read(path)[0])


@pytest.mark.parametrize(
    ("size", "count"), [("4MB", 4_000_000), ("1.5 kb", 1500), ("2GB", 2 * 10**9), ("70", 70)]
)
def test_a_size_is_a_number_with_a_unit(size, count):
    assert pieces.bytes_of(size) == count


@pytest.mark.parametrize("size", ["4X", "MB", "-4MB", "0KB", ""])
def test_what_is_no_size_is_said(size):
    with pytest.raises(ValueError, match="such as 4MB"):
        pieces.bytes_of(size)


def train(*more: str, seed: int):
    return bench("train", "digits", "--images", "640", "--threads", "1", "--seed", seed, *more)


def test_a_base_in_pieces_is_the_base_and_its_missing_piece_is_asked_for(tmp_path):
    from bench.cache import cache_dir

    whole, cut = train(seed=71), train("--shard-size", "400KB", seed=71)
    assert whole.exit_code == cut.exit_code == 0, cut.output
    assert whole.output.splitlines()[-1] == cut.output.splitlines()[-1]
    folder = cache_dir() / "models" / cut.output.split()[-1].rpartition("/")[2]
    first, *others = sorted(folder.glob("model-*.safetensors"))
    assert others and not (folder / "model.safetensors").exists()
    again = train(seed=71)
    assert (
        again.exit_code == 0
        and "sha256: " + json.loads((folder / "card.json").read_text())["sha256"] in again.output
    )
    kept = first.rename(tmp_path / first.name)
    without = train(seed=71)
    assert without.exit_code == 1 and "put it back beside its index" in without.output
    kept.rename(first)
    assert train(seed=71).exit_code == 0


def test_a_training_cut_into_pieces_goes_on_from_them(tmp_path):
    from bench.cache import cache_dir

    began = train("--minutes", "0.0001", "--shard-size", "500KB", seed=72)
    assert began.exit_code == 0 and "Not finished" in began.output
    folder = cache_dir() / "models" / began.output.split("folder: ")[1].split()[0].rpartition("/")[2]
    first = min(folder.glob("loop-1-*.safetensors"))
    assert not (folder / "loop-1.safetensors").exists()
    kept = first.rename(tmp_path / first.name)
    lost = train(seed=72)
    assert lost.exit_code == 1 and f"{first.name} is missing" in lost.output
    kept.rename(first)
    assert "images: 640" in train(seed=72).output
    assert [file.name for file in folder.glob("*.safetensors*")] == ["model.safetensors"]
