"""verify, gc and doctor: damage is found and mended, what serves nobody is freed, a result never."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from filelock import FileLock
from running import bench, facts, ran

WORDS = ["ddim", "--data", "mixture-digits", "--metric", "fid"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Path:
    """A results folder and a cache of a small run, with a trained model among them."""
    folder = tmp_path_factory.mktemp("measured")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TAXOBENCH_CACHE", str(folder / "cache"))
        ran(*WORDS, results=folder / "runs")
        bench("train", "digits", "--images", "128")
    return folder


@pytest.fixture
def place(measured, tmp_path, monkeypatch) -> Path:
    """A copy of it to damage."""
    shutil.copytree(measured, tmp_path / "place")
    monkeypatch.setenv("TAXOBENCH_CACHE", str(tmp_path / "place" / "cache"))
    return tmp_path / "place"


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def first(place: Path, pattern: str) -> Path:
    return sorted(place.glob(pattern))[0]


def digit_of_a_value(place: Path) -> str:
    path = place / "runs" / "rows.jsonl"
    flip(path, path.read_bytes().index(b'"value":') + 12)
    return "line 1 was changed since it was written"


def byte_of_a_line(place: Path) -> str:
    path = place / "runs" / "rows.jsonl"
    flip(path, path.read_bytes().index(b"\n") + 1)
    return "line 2 is damaged"


def end_of_the_rows(place: Path) -> str:
    path = place / "runs" / "rows.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    return "is torn"


def protocol(place: Path) -> str:
    path = first(place, "runs/protocols/*.json")
    path.write_text(path.read_text().replace("float32", "float16"))
    return "is not what its fingerprint stands for"


def images(place: Path) -> str:
    path = first(place, "runs/samples/*.npz")
    path.write_bytes(path.read_bytes()[:100])
    return path.name


def weights(place: Path) -> str:
    flip(first(place, "cache/models/*/model.safetensors"), -5)
    return "holds weights that are not its card's"


def card(place: Path) -> str:
    first(place, "cache/models/*/card.json").write_text("{")
    return "has a card that cannot be read"


def chunk(place: Path) -> str:
    path = place / "runs" / "work" / "abc" / "0.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"torn")
    return "is not what its checksum says"


DAMAGES = [digit_of_a_value, byte_of_a_line, end_of_the_rows, protocol, images, weights, card, chunk]


def test_nothing_is_damaged_after_a_run(place):
    result = bench("verify", place / "runs")
    assert result.exit_code == 0 and "damaged: 0" in result.output
    assert all(kind in result.output for kind in ("row", "protocol", "samples", "model", "cached"))


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_said_and_moved_aside_and_the_next_run_makes_it_again(damage, place):
    before = facts(place / "runs")
    said = damage(place)
    found = bench("verify", place / "runs")
    assert found.exit_code == 1 and said in found.output, found.output
    assert bench("verify", place / "runs", "--repair").exit_code == 0
    assert said not in bench("verify", place / "runs").output
    ran(*WORDS, results=place / "runs")
    assert facts(place / "runs") == before
    assert bench("verify", place / "runs").exit_code == 0


def test_a_protocol_that_is_missing_is_written_anew_by_the_next_run(place):
    path = first(place, "runs/protocols/*.json")
    path.unlink()
    result = bench("verify", place / "runs")
    assert result.exit_code == 1 and f"{path} is missing" in result.output
    ran(*WORDS, results=place / "runs")
    assert bench("verify", place / "runs").exit_code == 0


def leave(path: Path, age: float = 0.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * 1000)
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def results_of(place: Path) -> dict[str, bytes]:
    kept = [place / "runs" / "rows.jsonl", *place.glob("runs/protocols/*"), *place.glob("runs/samples/*")]
    return {str(path): path.read_bytes() for path in kept}


def test_gc_frees_what_serves_nobody_and_no_result(place):
    before, key = results_of(place), facts(place / "runs")[-1]["key"]
    chunk = leave(place / "runs" / "work" / key / "0.safetensors")
    going_on = leave(place / "runs" / "work" / "unfinished" / "0.safetensors")
    half = leave(place / "runs" / "samples" / ".a.npz.999999999-abcdef.part", age=7200)
    fresh = leave(place / "runs" / "samples" / ".b.npz.999999999-abcdef.part")
    lock = leave(place / "runs" / "work" / "abc.lock")
    assert "would be freed" in bench("gc", "--dry-run", results=place / "runs").output and chunk.exists()
    assert bench("gc", results=place / "runs").exit_code == 0
    assert not any(path.exists() for path in (chunk, half, lock))
    assert going_on.exists() and fresh.exists() and list(place.glob("cache/models/*/model.safetensors"))
    fresh.unlink()
    assert results_of(place) == before


def test_gc_keeps_within_a_bound_and_leaves_what_is_held(place):
    model = first(place, "cache/models/*/model.safetensors")
    with FileLock(model.parent / ".lock"):
        result = bench("gc", "--keep-gb", "0", results=place / "runs")
        assert result.exit_code == 0 and "1 in use" in result.output
    assert model.exists() and not list(place.glob("cache/reference/*"))
    data = leave(place / "cache" / "data" / "thing.npz")
    bench("gc", "--keep-gb", "0", results=place / "runs")
    assert not model.exists() and data.exists()
    bench("gc", "--keep-gb", "0", "--data", results=place / "runs")
    assert not data.exists()


def test_gc_frees_by_age(place):
    old = leave(place / "cache" / "reference" / "old.safetensors", age=10 * 86400)
    bench("gc", "--older-than", "5", results=place / "runs")
    assert not old.exists() and list(place.glob("cache/models/*/model.safetensors"))


def test_a_file_name_that_is_no_text_is_printed_all_the_same(tmp_path):
    found = bench("doctor", results=tmp_path / "\udcff")
    assert found.exit_code == 0 and r"\udcff" in found.output


def test_doctor_says_what_is_here_and_fails_on_what_is_wrong(tmp_path):
    sound = bench("doctor", "--format", "json", results=tmp_path)
    findings = {found["what"]: found for found in json.loads(sound.output)}
    assert sound.exit_code == 0 and findings["torch"]["ok"] and findings["extractor digits"]["ok"]
    (tmp_path / "file").touch()
    wrong = bench("doctor", results=tmp_path / "file" / "runs")
    assert wrong.exit_code == 1 and "cannot be written" in wrong.output
