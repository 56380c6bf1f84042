"""`bench gc`: frees what can be made again, and never a result: rows, protocols and sample images stay."""

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from bench import store

DAY, HOUR = 86_400.0, 3_600.0
PART = re.compile(r"^\..*\.(\d+)(-[0-9a-f]+)?\.part$")
MADE = ("reference", "directions", "sliced", "held_out", "converged")  # folders of what was computed once


@dataclass(frozen=True)
class Waste:
    """What can be freed: `size` in bytes, `used` the time of the last use known, and the lock that whoever
    needs it holds.
    """

    path: Path
    what: str
    size: int
    used: float
    lock: Path | None = None


def of(path: Path, what: str, lock: Path | None = None) -> Waste:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    stats = [file.stat() for file in files]
    used = max((max(s.st_mtime, s.st_atime) for s in stats), default=path.stat().st_mtime)
    return Waste(path, what, sum(s.st_size for s in stats), used, lock)


def useless(results: Path, cache: Path) -> Iterator[Waste]:
    """What serves nobody: chunks of finished cells, what kills left half written, locks that nobody holds,
    and what `bench verify` moved aside in the cache.
    """
    finished = ended(results)
    for path in sorted((results / "work").glob("*")):
        if path.is_dir() and path.name in finished:
            yield of(path, "chunks of finished cells", path.with_name(f"{path.name}.lock"))
    for root in (results, cache):
        for path in sorted(root.rglob(".*.part")):
            if half_written(path):
                yield of(path, "half-written files")
    if (cache / "damaged").is_dir():
        yield of(cache / "damaged", "damaged models moved aside")
    for path in [*sorted((results / "work").glob("*.lock")), *sorted((cache / "data").glob("*.lock"))]:
        yield of(path, "locks", path)
    for path in sorted((cache / "models").glob("*/loop-*.safetensors")):
        if (path.parent / "card.json").exists():
            yield of(path, "checkpoints of finished trainings", path.parent / ".lock")


def ended(results: Path) -> set[str]:
    """The keys of cells that were answered or have failed."""
    return {row.key for row in store.read(results)}


def half_written(path: Path) -> bool:
    """Whether whoever wrote this is gone: no such process here, and nothing written for an hour."""
    named = PART.match(path.name)
    return bool(named) and not alive(int(named[1])) and time.time() - path.stat().st_mtime > HOUR


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def cached(cache: Path, data: bool) -> list[Waste]:
    """What the cache holds, the longest unused first: trained models, what was computed once, and with `data`
    the data sets.
    """
    found = [
        of(path, "trained models", path / ".lock")
        for path in (cache / "models").glob("*")
        if any(one.name != ".lock" for one in path.glob("*"))
    ]
    for name in MADE:
        found += [of(path, "references and the like") for path in (cache / name).glob("*.safetensors")]
    if data:
        found += [of(path, "data sets") for path in (cache / "data").glob("*") if path.suffix != ".lock"]
    return sorted(found, key=lambda waste: waste.used)


def beyond(found: list[Waste], keep: float | None, days: float | None) -> Iterator[Waste]:
    """What of the cache is over `keep` bytes in all, or was not used for so many days."""
    left = sum(waste.size for waste in found)
    for waste in found:
        too_old = days is not None and time.time() - waste.used > days * DAY
        if too_old or (keep is not None and left > keep):
            left -= waste.size
            yield waste


def free(waste: Waste) -> bool:
    """Free it; False where somebody holds it."""
    if waste.lock is None:
        removed(waste.path)
        return True
    lock = FileLock(waste.lock)
    try:
        lock.acquire(timeout=0)
    except (Timeout, FileNotFoundError):
        return False
    try:
        if waste.path == waste.lock:
            waste.path.unlink(missing_ok=True)  # while it is held: who waits for it sees that it is gone
        elif waste.lock.parent == waste.path:
            for one in waste.path.iterdir():
                if one != waste.lock:
                    removed(one)
        else:
            removed(waste.path)
    finally:
        lock.release()
    return True


def removed(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(FileNotFoundError):
            path.unlink()
