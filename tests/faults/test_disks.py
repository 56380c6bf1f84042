"""Disks that are full or may only be read: one sentence, what was done is kept, and the next run goes on."""

import errno
import os
import resource
import subprocess
from contextlib import contextmanager

import pytest
from measured_rows import row
from running import bench, facts

from bench import store
from bench.models import bases
from bench.running import tasks

pytestmark = pytest.mark.faults
WORDS = ("run", "ddim", "gits", "--data", "mixture2d", "--samples", "80", "--threads", "1", "--quiet")
WORDS += ("--images", "2000", "--metric", "fid")


def run(folder, nfe: str = "4,5,6"):
    return bench(*WORDS, "--nfe", nfe, results=folder)


def assert_said(result) -> None:
    """One sentence, and what to do."""
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    assert result.output.strip().splitlines()[-1].startswith("Error: ")


@pytest.fixture
def whole(tmp_path):
    """The rows of a run on a sound disk."""
    assert run(tmp_path / "whole").exit_code == 0
    return facts(tmp_path / "whole")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB; skipped where mounting is not permitted."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this user may not mount a file system")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@contextmanager
def filled(place, left: int):
    """The file system is full inside the block, but for so many bytes."""
    filler = place / "filler"
    free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
    filler.write_bytes(bytes(max(0, free - left)))
    yield
    filler.unlink()


@pytest.mark.parametrize("left", [0, 4096, 24576])
@pytest.mark.parametrize("full", ["results", "cache"])
def test_a_full_disk_stops_the_run_with_a_sentence_and_loses_nothing(
    tmp_path, small_disk, whole, monkeypatch, left, full
):
    place = small_disk / "runs" if full == "results" else tmp_path / "runs"
    monkeypatch.setenv(
        "TAXOBENCH_CACHE", str(tmp_path / "cache" if full == "results" else small_disk / "cache")
    )
    bases.shared.cache_clear()
    assert run(place, "4").exit_code == 0
    before = facts(place)
    with filled(small_disk, left):
        result = run(place)
        if result.exit_code:
            assert_said(result)
        after = facts(place)
        assert all(row in after for row in before)
    result = run(place)
    assert result.exit_code == 0, result.output
    assert facts(place) == whole


@pytest.mark.parametrize("most", [0, 512, 4096])
def test_a_file_that_may_not_grow_stops_the_run_with_a_sentence_and_loses_nothing(
    tmp_path, whole, monkeypatch, most
):
    monkeypatch.setenv("TAXOBENCH_CACHE", str(tmp_path / "cache"))
    bases.shared.cache_clear()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        result = run(tmp_path / "runs")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_said(result)
    assert run(tmp_path / "runs").exit_code == 0
    assert facts(tmp_path / "runs") == whole


@pytest.mark.parametrize("room", [100, 1500])
def test_of_rows_for_which_there_is_no_room_none_is_appended(tmp_path, room):
    rows = [row("ddim", "distance", budget, 1.0) for budget in (5, 6, 7)]
    store.append(tmp_path, rows[:1])
    content = (tmp_path / "rows.jsonl").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) + room, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            store.append(tmp_path, rows[1:])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "rows.jsonl").read_bytes() == content


@pytest.mark.parametrize("first", [1, 2, 5, 9])
def test_a_disk_that_fails_when_it_is_flushed_loses_nothing(tmp_path, whole, monkeypatch, first):
    flushed, flush = [], os.fsync

    def failing(file) -> None:
        flushed.append(file)
        if len(flushed) >= first:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(file)

    monkeypatch.setenv("TAXOBENCH_CACHE", str(tmp_path / "cache"))
    bases.shared.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", failing)
        result = run(tmp_path / "runs")
    assert_said(result)
    rows = store.read(tmp_path / "runs")
    assert all(row.value is not None for row in rows)
    assert run(tmp_path / "runs").exit_code == 0
    assert facts(tmp_path / "runs") == whole


@contextmanager
def read_only(place):
    """Nothing can be written below a folder inside the block; skipped where that cannot be had."""
    if os.geteuid():
        place.chmod(0o555)
        yield
        place.chmod(0o755)
        return
    # the administrator writes where permissions forbid it, but not to what is mounted to be read
    bound = subprocess.run(["mount", "--bind", place, place], capture_output=True, check=False)
    if bound.returncode:
        pytest.skip("this user may not mount a file system")
    subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
    yield
    subprocess.run(["umount", "-l", place], check=True)


def test_a_folder_that_may_only_be_read_is_said_before_anything_is_drawn(tmp_path):
    place = tmp_path / "runs"
    place.mkdir()
    with read_only(place):
        result = run(place)
    assert_said(result)
    assert str(place) in result.output


def test_tables_are_made_of_a_folder_that_may_only_be_read(tmp_path):
    place = tmp_path / "runs"
    assert run(place, "4").exit_code == 0
    with read_only(place):
        result = bench("table", results=place)
        report = bench("report", "--out", tmp_path / "report.html", results=place)
        refused = bench("table", "--write", results=place)
    assert result.exit_code == report.exit_code == 0, result.output + report.output
    assert_said(refused)


def test_a_cache_that_may_only_be_read_is_said_in_a_sentence(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setenv("TAXOBENCH_CACHE", str(cache))
    bases.shared.cache_clear()
    with read_only(cache):
        result = run(tmp_path / "runs")
    assert_said(result)


def test_a_cache_that_this_user_may_not_write_ends_the_run_and_a_file_of_the_method_fails_it(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("TAXOBENCH_CACHE", str(tmp_path / "cache"))
    with pytest.raises(PermissionError):
        tasks.raise_for_disk(
            PermissionError(errno.EACCES, "denied", str(tmp_path / "cache" / "models" / "a"))
        )
    tasks.raise_for_disk(PermissionError(errno.EACCES, "denied", str(tmp_path / "its own")))
    tasks.raise_for_disk(PermissionError("without a file"))


def test_what_is_no_file_is_not_replaced_by_one(tmp_path):
    assert run(tmp_path / "runs", "4").exit_code == 0
    os.mkfifo(tmp_path / "pipe")  # as /dev/null would be by an administrator
    assert_said(bench("report", "--out", tmp_path / "pipe", results=tmp_path / "runs"))
    assert (tmp_path / "pipe").is_fifo()
