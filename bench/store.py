"""The results folder: append-only rows.jsonl, the protocols the rows refer to, and both as a data frame."""

import errno
import gc
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TypeVar

import click
import msgspec

from bench.cache import flush_folder, whole, write_json
from bench.row import SCHEMA, Answer, Row

Kind = TypeVar("Kind", bound=Answer)
PLAIN = re.compile(r"\w[\w-]{0,63}", re.ASCII)  # a key, a protocol: a file's name, never a path
BLOCK = 1 << 18  # bytes of rows read at once
SUMS = "rows.sha256"  # a checksum a row, by which `bench verify` tells a row that was changed since


def append(folder: Path, rows: Iterable[Row]) -> None:
    """Append rows under a lock and flush them to disk: all of them or, where that fails, none. A torn last
    line, left by a kill or a full disk, is cut off first; one that lacks only its newline is given it.
    """
    from filelock import FileLock

    lines = [row.line().encode() for row in rows]
    if not lines:
        return
    text = b"".join(line + b"\n" for line in lines)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"), (folder / "rows.jsonl").open("a+b", buffering=0) as file:
        start = whole_length(file)
        file.seek(start)
        torn = file.read()
        if torn and sum_of(torn) in sums(folder):
            start, text = start + len(torn), b"\n" + text
        file.truncate(start)
        record_sums(folder, lines)  # first: a row without its sum is damage, a sum without its row is not
        try:
            left = memoryview(text)
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
            if (length := os.fstat(file.fileno()).st_size) != start + len(text):
                raise OSError(errno.EIO, f"it has {length} bytes and not {start + len(text)}", file.name)
        except OSError:
            file.truncate(start)
            raise
        if not start:
            flush_folder(folder)


def record_sums(folder: Path, lines: Iterable[bytes]) -> None:
    """Note the checksums of lines about to be appended; the first time, of all that is there already, whole
    or not at all.
    """
    with (folder / SUMS).open("a+b") as file:
        if end := whole_length(file):
            file.truncate(end)
            file.write(b"".join(sum_of(line).encode() + b"\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
            return
    write_sums(folder, map(sum_of, [*whole_lines(folder), *lines]))


def write_sums(folder: Path, sums: Iterable[str]) -> None:
    with whole(folder / SUMS) as part:
        part.write_text("".join(f"{one}\n" for one in sums), "ascii", newline="\n")


def sum_of(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()[:16]


def sums(folder: Path) -> set[str]:
    """The checksums of every line that was appended; empty where nobody took any."""
    path = folder / SUMS
    text = path.read_text("ascii", "replace") if path.exists() else ""
    return set(text.rpartition("\n")[0].split())  # what follows the last end is torn


def whole_lines(folder: Path) -> Iterator[bytes]:
    """The lines of rows.jsonl one by one, but what follows the last line's end, which is torn, or nothing."""
    path = folder / "rows.jsonl"
    if path.exists():
        with path.open("rb") as file:
            yield from (line[:-1] for line in file if line.endswith(b"\n"))


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


def read(folder: Path, kind: type[Kind] = Row) -> list[Kind]:
    """The rows of a folder, or their answers alone; the newest of those that answer one question, and
    failures only where nothing answers it since.

    A torn last line is passed over; a damaged line elsewhere is an error that says where.
    """
    path = folder / "rows.jsonl"
    kept: dict[tuple, Kind] = {}
    with uncollected():
        for row in chain.from_iterable(blocks_of_rows(path, kind)):
            if row.error is None:
                kept.pop((row.key, None), None)
                kept[row.key, row.metric] = row
            elif (row.key, row.metric) not in kept:
                kept[row.key, None] = row
    return list(kept.values())


@contextmanager
def uncollected() -> Iterator[None]:
    """Inside the block nobody looks for garbage: rows have no cycles, and looking through millions of their
    numbers again and again takes as long as reading them.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def blocks_of_rows(path: Path, kind: type[Kind]) -> Iterator[list[Kind]]:
    """The rows of a file up to its last whole line, a block of lines at a time, which is a fifth faster than
    line by line; where a block is not a row a line it is read so, and an error names the line.
    """
    if not path.exists():
        return
    read, number = msgspec.json.Decoder(kind).decode_lines, 1
    with path.open("rb") as file:
        while lines := file.readlines(BLOCK):
            if not lines[-1].endswith(b"\n"):
                lines.pop()
            try:
                found = read(b"".join(lines))
            except (ValueError, RecursionError):
                found = []
            if len(found) != len(lines):
                found = list(rows_of((line[:-1] for line in lines), path, number, kind))
            yield found
            number += len(lines)


def rows_of(lines: Iterable[bytes], path: Path, first: int = 1, kind: type[Kind] = Row) -> Iterator[Kind]:
    """The rows of these lines, the first being number `first` of the file; an error names a damaged one."""
    read = msgspec.json.Decoder(kind).decode
    for number, line in enumerate(lines, first):
        try:
            yield read(line)
        except (ValueError, RecursionError):
            yield parsed(line, path, number, kind)


def parsed(line: bytes, path: Path, number: int, kind: type[Kind] = Row) -> Kind:
    """A line as a row, also where it is JSON as Python writes it (NaN); an error that names the line where it
    is none.
    """
    where = f"{path}, line {number}"
    try:
        facts = json.loads(line)
    except (ValueError, RecursionError):
        repair = f"`bench verify {path.parent} --repair` moves it aside, and the next run measures it again"
        raise click.ClickException(f"{where} is damaged: {repair}.") from None
    try:
        return msgspec.convert(facts, kind)
    except msgspec.ValidationError as error:
        if isinstance(facts, dict) and "key" in facts and facts.get("schema") != SCHEMA:
            has = f"has schema {facts.get('schema')!r}; this version reads {SCHEMA}"
            raise click.ClickException(f"{where} {has}.") from None
        raise click.ClickException(f"{where} {fault_of(facts, str(error))}.") from None


def fault_of(facts: object, error: str) -> str:
    """What msgspec found wrong with a row, as the end of a sentence."""
    if found := re.search(r"missing required field `(\w+)`", error):
        return f"lacks {found[1]}"
    if found := re.search(r"at `\$\.(\w+)", error):
        return f"has {facts[found[1]]!r:.60} as its {found[1]}"
    return f"is not a row of this version: {error}"


class Answers:
    """The (cell key, metric) pairs that a growing rows.jsonl answers, and by cell the source of the plugin
    that did; each line is read once.
    """

    def __init__(self, path: Path):
        self.path = path
        self.forget(None)

    def forget(self, inode: int | None) -> None:
        self.inode, self.end, self.lines = inode, 0, 0
        self.pairs: set[tuple[str, str]] = set()
        self.sources: dict[str, str] = {}

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
        lines = more.split(b"\n")[:-1]
        for line, row in zip(lines, rows_of(lines, self.path, self.lines + 1)):
            self.lines, self.end = self.lines + 1, self.end + len(line) + 1
            if row.error is None and not row.details.get("capped"):
                self.pairs.add((row.key, row.metric))
                self.sources[row.key] = row.source
        return self.pairs


@lru_cache
def answers(path: Path) -> Answers:
    return Answers(path)


def answered(folder: Path) -> set[tuple[str, str]]:
    """The (cell key, metric) pairs that the folder answers; failures answer nothing, and neither do
    trainings that were cut short.
    """
    return answers(folder.resolve() / "rows.jsonl").now()


def sources(folder: Path) -> dict[str, str]:
    """The sha256 of the plugin's file that answered each cell, by cell key; empty where none is known."""
    known = answers(folder.resolve() / "rows.jsonl")
    known.now()
    return known.sources


def frame(folder: str | Path = "runs"):
    """The rows of a results folder as a data frame; `replicates` are lists, `parameters` dicts."""
    import pandas as pd

    rows = map(msgspec.structs.astuple, read(Path(folder)))
    return pd.DataFrame(rows, columns=Row.__struct_fields__)


def record_protocol(folder: Path, fingerprint: str, facts: dict) -> None:
    """Keep what a fingerprint stands for beside the rows that carry it."""
    path = folder / "protocols" / f"{fingerprint}.json"
    if not path.exists():
        write_json(path, facts)


@lru_cache
def protocol(folder: Path, fingerprint: str) -> dict:
    """What a fingerprint stands for; empty where the folder does not say."""
    if not PLAIN.fullmatch(fingerprint):
        return {}
    try:
        facts = json.loads((folder / "protocols" / f"{fingerprint}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}
