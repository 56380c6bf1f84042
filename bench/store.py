"""The results folder: append-only rows.jsonl, the protocols the rows refer to, and both as a data frame."""

import json
import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import click

from bench.cache import write_json
from bench.job import SCHEMA, Row

FIELDS = set(Row.__dataclass_fields__)


def append(folder: Path, rows: Iterable[Row]) -> None:
    """Append rows under a lock and flush them to disk; a torn last line, left by a kill or a full disk, is
    cut off first.
    """
    from filelock import FileLock

    text = "".join(row.line() + "\n" for row in rows).encode()
    if not text:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"), (folder / "rows.jsonl").open("a+b") as file:
        start = whole_length(file)
        file.truncate(start)
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            file.truncate(start)  # all of a cell's rows or none
            raise


def whole_length(file) -> int:
    """The length of the file up to the end of its last whole line."""
    end = file.seek(0, 2)
    while end > 0:
        size = min(end, 1 << 16)
        file.seek(end - size)
        cut = file.read(size).rfind(b"\n")
        if cut >= 0:
            return end - size + cut + 1
        end -= size
    return 0


def read(folder: Path) -> list[dict]:
    """The rows of a folder, the newest of those that answer one question; failures only where nothing
    answers it since.

    A torn last line is passed over; a damaged line elsewhere is an error that says where.
    """
    path = folder / "rows.jsonl"
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last line's end is torn, or nothing
    kept: dict[tuple, dict] = {}
    for number, line in enumerate(lines, 1):
        row = parsed(line, path, number)
        if row["error"] is None:
            kept.pop((row["key"], None), None)
            kept[row["key"], row["metric"]] = row
        elif (row["key"], row["metric"]) not in kept:
            kept[row["key"], None] = row
    return list(kept.values())


def parsed(line: bytes, path: Path, number: int) -> dict:
    """A line as a row; an error that names the line where it is none."""
    try:
        row = json.loads(line)
    except ValueError:
        raise click.ClickException(f"{path}, line {number} is damaged: remove it, and run again.") from None
    if not isinstance(row, dict) or not FIELDS.issuperset(row) or "key" not in row:
        raise click.ClickException(f"{path}, line {number} is not a row of this version.")
    if row.get("schema") != SCHEMA:
        raise click.ClickException(
            f"{path}, line {number} has schema {row.get('schema')}; this version reads {SCHEMA}."
        )
    return row


class Answers:
    """The (cell key, metric) pairs that a growing rows.jsonl answers; each line is read once."""

    def __init__(self, path: Path):
        self.path = path
        self.forget(None)

    def forget(self, inode: int | None) -> None:
        self.inode, self.end, self.lines = inode, 0, 0
        self.pairs: set[tuple[str, str]] = set()

    def now(self) -> set[tuple[str, str]]:
        """All pairs up to the last whole line."""
        if not self.path.exists():
            self.forget(None)
            return self.pairs
        with self.path.open("rb") as file:
            stat = os.fstat(file.fileno())
            if stat.st_ino != self.inode or stat.st_size < self.end:
                self.forget(stat.st_ino)
            file.seek(self.end)
            more = file.read()
        for line in more.split(b"\n")[:-1]:
            row = parsed(line, self.path, self.lines + 1)
            self.lines, self.end = self.lines + 1, self.end + len(line) + 1
            if row["error"] is None:
                self.pairs.add((row["key"], row["metric"]))
        return self.pairs


@lru_cache
def answers(path: Path) -> Answers:
    return Answers(path)


def answered(folder: Path) -> set[tuple[str, str]]:
    """The (cell key, metric) pairs that the folder answers; failures answer nothing."""
    return answers(folder.resolve() / "rows.jsonl").now()


def frame(folder: str | Path = "runs"):
    """The rows of a results folder as a data frame; `replicates` are lists, `parameters` dicts."""
    import pandas as pd

    return pd.DataFrame(read(Path(folder)), columns=list(Row.__dataclass_fields__))


def record_protocol(folder: Path, fingerprint: str, facts: dict) -> None:
    """Keep what a fingerprint stands for beside the rows that carry it."""
    path = folder / "protocols" / f"{fingerprint}.json"
    if not path.exists():
        write_json(path, facts)


@lru_cache
def protocol(folder: Path, fingerprint: str) -> dict:
    """What a fingerprint stands for; empty where the folder does not say."""
    try:
        return json.loads((folder / "protocols" / f"{fingerprint}.json").read_text())
    except (OSError, ValueError):
        return {}
