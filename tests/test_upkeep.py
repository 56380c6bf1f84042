"""verify, gc and doctor: damage is found and mended, what serves nobody is freed, a result never."""

import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock
from measured_rows import row
from running import bench, facts, ran

from bench import store
from bench.upkeep import verifying

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


@pytest.fixture
def rows(tmp_path, monkeypatch) -> Path:
    """The rows.jsonl of a folder with three failures, which refer to nothing, and an empty cache."""
    monkeypatch.setenv("TAXOBENCH_CACHE", str(tmp_path / "cache"))
    store.append(tmp_path / "runs", map(failure, (5, 6, 7)))
    return tmp_path / "runs" / "rows.jsonl"


def failure(budget: int):
    return row("ddim", "", budget, None, error="it was stopped", replicates=[])


def faults_of(rows: Path) -> list[str]:
    return [found.fault for found in verifying.rows(rows.parent) if found.fault]


def lines_of(rows: Path) -> list[bytes]:
    return rows.read_bytes().splitlines(keepends=True)


def test_a_folder_that_does_not_exist_is_not_verified_and_an_empty_one_is(tmp_path, monkeypatch):
    monkeypatch.setenv("TAXOBENCH_CACHE", str(tmp_path / "cache"))
    result = bench("verify", tmp_path / "nosuch")
    assert result.exit_code == 2 and "nosuch' does not exist." in result.output.splitlines()[-1]
    assert not (tmp_path / "nosuch").exists()
    (tmp_path / "runs").mkdir()
    result = bench("verify", tmp_path / "runs")
    assert result.exit_code == 0 and result.output == "read again: nothing; damaged: 0.\n"


def one_taken_out(rows: Path) -> int:
    rows.write_bytes(b"".join(lines_of(rows)[::2]))
    return 1


def all_taken_out(rows: Path) -> int:
    rows.write_bytes(b"")
    return 3


def the_file_deleted(rows: Path) -> int:
    rows.unlink()
    return 3


@pytest.mark.parametrize("loss", [one_taken_out, all_taken_out, the_file_deleted])
def test_rows_that_were_noted_and_are_not_there_are_said_and_are_no_damage(loss, rows):
    count = loss(rows)
    result = bench("verify", rows.parent)
    noted = f"{'1 row was' if count == 1 else '3 rows were'} noted in {rows.parent / store.SUMS} and "
    assert result.exit_code == 0 and result.output.startswith(noted) and "damaged: 0" in result.output
    assert json.loads(bench("verify", rows.parent, "--format", "json").output)["missing"] == count


def test_a_row_that_is_there_or_is_damaged_is_not_said_to_be_missing(rows):
    assert "noted" not in bench("verify", rows.parent).output
    first, second, third = lines_of(rows)
    rows.write_bytes(first.replace(b"stopped", b"started") + second + third[:-9])
    result = bench("verify", rows.parent, "--repair")
    assert "damaged: 2, of which 2 moved aside" in result.output and "noted" not in result.output
    assert bench("verify", rows.parent).output == "read again: 1 x row; damaged: 0.\n"
    rows.write_bytes(b"")
    assert bench("verify", rows.parent).output.startswith("1 row was noted")


def test_a_disk_that_fails_at_the_first_checksums_leaves_none_of_them(rows, monkeypatch):
    def failing(*paths) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (rows.parent / store.SUMS).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing)
        with pytest.raises(OSError, match="No space"):
            store.append(rows.parent, [failure(8)])
    assert store.sums(rows.parent) == set() and faults_of(rows) == []
    store.append(rows.parent, [failure(8)])
    assert len(store.sums(rows.parent)) == 4 and faults_of(rows) == []


@pytest.mark.parametrize("left", [b"", b"0123"], ids=["nothing", "a torn one"])
def test_checksums_of_which_none_is_there_are_taken_anew(left, rows):
    (rows.parent / store.SUMS).write_bytes(left)
    assert faults_of(rows) == []
    store.append(rows.parent, [failure(8)])
    assert len(store.sums(rows.parent)) == 4 and faults_of(rows) == []


@contextmanager
def appending(rows: Path, line: bytes) -> Iterator[None]:
    """When the block begins another thread holds the lock and has written half a line; it ends soon."""
    begun = threading.Event()

    def append() -> None:
        with FileLock(rows.parent / ".lock"), rows.open("ab", buffering=0) as file:
            file.write(line[:99])
            begun.set()
            time.sleep(0.2)
            store.record_sums(rows.parent, [line])
            file.write(line[99:] + b"\n")

    thread = threading.Thread(target=append)
    thread.start()
    begun.wait()
    yield
    thread.join()


def test_rows_are_read_when_an_append_that_is_under_way_has_ended(rows):
    with appending(rows, failure(8).line().encode()):
        assert faults_of(rows) == []


def test_rows_are_read_without_a_lock_that_is_held_on_or_cannot_be_had(rows, monkeypatch):
    monkeypatch.setattr(verifying, "PATIENCE", 0.05)
    with FileLock(rows.parent / ".lock"):
        assert len(list(verifying.rows(rows.parent))) == 3
    (rows.parent / ".lock").unlink()
    (rows.parent / ".lock").mkdir()
    assert len(list(verifying.rows(rows.parent))) == 3


def test_a_row_that_is_appended_while_the_checksums_are_read_was_not_changed(rows, monkeypatch):
    sums, line = store.sums, failure(8).line().encode()

    def sums_and_then_a_row(folder: Path) -> set[str]:
        found = sums(folder)
        with rows.open("ab") as file:
            file.write(line + b"\n")
        return found

    monkeypatch.setattr(store, "sums", sums_and_then_a_row)
    assert faults_of(rows) == []


def test_a_repair_waits_for_an_append_and_keeps_its_rows(rows):
    content, line = rows.read_bytes(), failure(8).line().encode()
    with appending(rows, line):
        verifying.repair([verifying.Found("row", rows, "is torn", b"", 4)], rows.parent, rows.parent)
    assert rows.read_bytes() == content + line + b"\n"
    assert faults_of(rows) == []


def test_a_model_with_a_folder_in_it_is_moved_aside_as_often_as_it_is_damaged(rows, tmp_path):
    for _ in range(3):
        card = leave(tmp_path / "cache" / "models" / "one" / "card.json")
        leave(card.parent / "parts" / "first")
        leave(card.parent / ".lock")
        result = bench("verify", rows.parent, "--repair")
        assert result.exit_code == 0 and "1 moved aside" in result.output, result.output
        assert [path.name for path in card.parent.iterdir()] == [".lock"]
    aside = tmp_path / "cache" / "damaged" / "models"
    assert {path.name for path in aside.iterdir()} == {"one", "one.2", "one.3"}
    assert all((path / "parts" / "first").exists() for path in aside.iterdir())


def test_a_last_row_that_lacks_only_its_newline_is_kept_by_an_append_and_by_a_repair(rows):
    content = rows.read_bytes()
    rows.write_bytes(content[:-1])
    assert bench("verify", rows.parent, "--repair").exit_code == 0
    assert rows.read_bytes() == content
    rows.write_bytes(content[:-1])
    store.append(rows.parent, [failure(8)])
    assert rows.read_bytes() == content + failure(8).line().encode() + b"\n"
    assert faults_of(rows) == [] and verifying.missing(rows.parent) == 0


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
