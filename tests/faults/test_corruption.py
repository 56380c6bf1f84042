"""Files that were damaged: told from whole ones, made again where they can be, and said where they cannot."""

import random
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from nursery import FEW, Order
from running import bench, facts

from bench import store
from bench.metrics.computed import cached
from bench.models import bases

pytestmark = pytest.mark.faults
WORDS = ("--data", "mixture2d", "--threads", "1", "--quiet", "--metric", "fid", "--nfe", "4")
SMALL = (*WORDS, "--samples", "80", "--images", "2000")


def bit_flipped(path: Path) -> None:
    """One bit of the second half: a header survives, its tensors do not."""
    content = bytearray(path.read_bytes())
    place = random.Random(0).randrange(len(content) // 2, len(content))
    content[place] ^= 16
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def overwritten(path: Path) -> None:
    path.write_bytes(random.Random(0).randbytes(path.stat().st_size))


DAMAGE = (bit_flipped, cut_short, emptied, overwritten)


def one_of_many(damage, kills: int) -> None:
    """The short version has one damage of each kind of file that takes a run to make."""
    if kills <= FEW and damage is not bit_flipped:
        pytest.skip("part of the long version")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TAXOBENCH_CACHE", str(tmp_path / "cache"))
    bases.shared.cache_clear()
    return tmp_path / "cache"


def killed_with(nursery, order: Order, pattern: str) -> list[Path]:
    """Run until a file of this pattern lies there, and kill the run; the files of the pattern."""
    nursery.start(order)
    deadline = time.monotonic() + 60
    found: list[Path] = []
    while not found and time.monotonic() < deadline:
        assert nursery.wait(0.002) is None, "it ended before there was such a file"
        found = list(Path(order.watched).glob(pattern))
    nursery.kill()
    nursery.wait()
    return list(Path(order.watched).glob(pattern))


def order(place: Path, *words: str) -> Order:
    line = ("run", *words, *WORDS, "--results", str(place / "runs"))
    return Order((line,), str(place / "cache"), str(place / "output"), watched=str(place))


@pytest.fixture(scope="module")
def whole(nursery, tmp_path_factory):
    """The rows of a run, by its words; each run is made once."""
    found: dict[tuple, list] = {}

    def rows(*words: str) -> list:
        if words not in found:
            undisturbed = order(tmp_path_factory.mktemp("whole"), *words)
            assert nursery.run(undisturbed) == [0], Path(undisturbed.output).read_text()
            found[words] = facts(Path(undisturbed.watched) / "runs")
        return found[words]

    return rows


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_chunk_is_drawn_again(nursery, tmp_path, whole, damage, kills):
    one_of_many(damage, kills)
    words = ("ddpm", "--samples", "1500")
    chunks = killed_with(nursery, order(tmp_path, *words), "runs/work/*/*.safetensors")
    assert chunks
    for path in chunks:
        damage(path)
    assert nursery.run(order(tmp_path, *words)) == [0], (tmp_path / "output").read_text()
    assert facts(tmp_path / "runs") == whole(*words)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_of_a_training_is_not_gone_on_from(nursery, tmp_path, whole, damage, kills):
    one_of_many(damage, kills)
    words = ("consistency_distillation", "--samples", "80", "--images", "6000")
    (checkpoint,) = killed_with(nursery, order(tmp_path, *words), "cache/models/*/loop-*.safetensors")
    damage(checkpoint)
    assert nursery.run(order(tmp_path, *words)) == [0], (tmp_path / "output").read_text()
    assert facts(tmp_path / "runs") == whole(*words)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_model_is_said_and_trained_again(tmp_path, cache, damage):
    assert bench("run", "gits", *SMALL, results=tmp_path / "whole").exit_code == 0
    (path,) = cache.glob("models/gits-*/model.safetensors")
    damage(path)
    result = bench("run", "gits", *SMALL, results=tmp_path / "again")
    assert result.exit_code == 0 and "trained again" in result.output
    assert facts(tmp_path / "again") == facts(tmp_path / "whole")


CARDS = ('{"sha256": "0"', "[]", "null", "3", "", "\x00", '{"sha256": "0"}', '{"sha256": 3}', "{}")
CARDS += ('{"sha256": "0", "images": "many", "seconds": null}', "[" * 100_000)


@pytest.mark.parametrize("content", CARDS, ids=range(len(CARDS)))
def test_a_model_with_a_damaged_card_is_trained_again(tmp_path, cache, content):
    assert bench("run", "gits", *SMALL, results=tmp_path / "whole").exit_code == 0
    (path,) = cache.glob("models/gits-*/card.json")
    path.write_text(content)
    result = bench("run", "gits", *SMALL, results=tmp_path / "again")
    assert result.exit_code == 0 and "Traceback" not in result.output, result.output
    assert facts(tmp_path / "again") == facts(tmp_path / "whole")


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_was_computed_once_is_computed_again_where_its_file_is_damaged(cache, damage):
    computed = []

    def compute() -> dict[str, torch.Tensor]:
        computed.append(1)
        return {"mean": torch.arange(50.0), "none": torch.zeros(0)}

    first = cached("reference", ("of something",), compute)
    (path,) = cache.rglob("*.safetensors")
    damage(path)
    again = [cached("reference", ("of something",), compute) for _ in range(2)]
    assert len(computed) == 2
    assert all(torch.equal(found["mean"], first["mean"]) for found in again)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_row_file_that_was_damaged_is_said_or_its_torn_end_cut_off(tmp_path, cache, damage):
    assert bench("run", "ddim", *SMALL, results=tmp_path).exit_code == 0
    whole = facts(tmp_path)
    damage(tmp_path / "rows.jsonl")
    result = bench("table", results=tmp_path)
    assert result.exit_code in (0, 1) and "Traceback" not in result.output
    if result.exit_code and damage is not emptied:
        assert "damaged" in result.output or "no rows" in result.output or "not a row" in result.output
    if damage in (cut_short, emptied):
        assert bench("run", "ddim", *SMALL, results=tmp_path).exit_code == 0
        assert facts(tmp_path) == whole


def test_rows_cut_anywhere_are_whole_rows_after_the_next_append(tmp_path, cache):
    assert bench("run", "ddim", *SMALL, results=tmp_path / "runs").exit_code == 0
    content = (tmp_path / "runs" / "rows.jsonl").read_bytes()
    one, two = store.read(tmp_path / "runs")
    lines = (one.line() + "\n").encode(), (two.line() + "\n").encode()
    assert content == b"".join(lines)
    for cut in random.Random(0).sample(range(len(content)), 100):
        folder = tmp_path / f"cut-{cut}"
        folder.mkdir()
        (folder / "rows.jsonl").write_bytes(content[:cut])
        whole_before = content[:cut].count(b"\n")
        assert len(store.read(folder)) == whole_before
        store.append(folder, [two])
        assert (folder / "rows.jsonl").read_bytes() == b"".join(lines[:whole_before]) + lines[1]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_sample_images_are_left_out_of_figures_and_reports(tmp_path, cache, damage):
    words = (
        "run",
        "ddim",
        "--data",
        "mixture-digits",
        "--threads",
        "1",
        "--quiet",
        "--nfe",
        "4",
        "--samples",
        "80",
    )
    assert bench(*words, "--metric", "fid", results=tmp_path).exit_code == 0
    (path,) = tmp_path.glob("samples/*.npz")
    with np.load(path) as file:
        assert file["samples"].shape == (16, 1, 8, 8)
    damage(path)
    for command in (("report",), ("plot", "--kind", "samples"), ("merge", tmp_path, tmp_path / "merged")):
        result = bench(*command, results=tmp_path) if command[0] != "merge" else bench(*command)
        assert result.exit_code in (0, 1) and "Traceback" not in result.output, result.output
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_protocol_stops_no_table(tmp_path, cache, damage):
    assert bench("run", "ddim", *SMALL, results=tmp_path).exit_code == 0
    for path in tmp_path.glob("protocols/*.json"):
        damage(path)
    result = bench("table", results=tmp_path)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in (0, 1) and "Traceback" not in result.output
