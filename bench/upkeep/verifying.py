"""`bench verify`: everything that was kept is read again, and what is damaged is said and moved aside."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import click

from bench import store
from bench.cache import whole
from bench.protocol import fingerprint
from bench.upkeep.merging import check_images, check_numbers, key_of_fields

ASIDE = "damaged"  # the folder, in the results or the cache, to which damaged things are moved
PATIENCE = 5.0  # seconds to wait for whoever appends rows


@dataclass(frozen=True)
class Found:
    """One thing that was read again, and what is wrong with it."""

    kind: str  # "row", "protocol", "samples", "chunk", "model", "cached", "weights", "data"
    path: Path
    fault: str | None = None  # the end of a sentence
    line: bytes | None = None  # of a row
    number: int = 0  # of that line

    @property
    def sentence(self) -> str:
        where = f"{self.path}, line {self.number}" if self.number else str(self.path)
        return f"{where} {self.fault}."


def everything(results: Path, cache: Path) -> Iterator[Found]:
    """All that lies in a results folder and in the cache."""
    kept = (rows(results), protocols(results), samples(results), chunks(results))
    return chain(*kept, models(cache), others(cache), weights(cache), data(cache))


def rows(folder: Path) -> Iterator[Found]:
    """Every line of rows.jsonl by its checksum, its form, its numbers and its key."""
    path = folder / "rows.jsonl"
    with unappended(folder):
        lines, torn, sums = lines_and_sums(folder)
    for number, line in enumerate(lines, 1):
        yield Found("row", path, fault_of_row(folder, line, number, sums), line, number)
    if torn:
        yield Found("row", path, "is torn; the next run heals it", b"", len(lines) + 1)


def missing(folder: Path) -> int:
    """How many rows have a checksum and are not there, those not counted that were changed or torn."""
    with unappended(folder):
        lines, torn, sums = lines_and_sums(folder)
    there = {store.sum_of(line) for line in [*lines, torn] if line}
    return max(0, len(sums - there) - len(there - sums))


@contextmanager
def unappended(folder: Path) -> Iterator[None]:
    """Inside the block nobody appends rows; also entered where the lock cannot be had: on a disk that may
    only be read, or after PATIENCE.
    """
    from filelock import FileLock

    lock = FileLock(folder / ".lock", timeout=PATIENCE)
    try:
        if folder.is_dir():
            lock.acquire()
    except (OSError, NotImplementedError):  # a Timeout is an OSError
        pass
    try:
        yield
    finally:
        lock.release()


def lines_and_sums(folder: Path) -> tuple[list[bytes], bytes, set[str]]:
    """The whole lines of rows.jsonl, what follows the last one's end, and the checksums; these are read last,
    so that a line that is appended meanwhile has its own among them.
    """
    path = folder / "rows.jsonl"
    *lines, torn = path.read_bytes().split(b"\n") if path.exists() else [b""]
    return lines, torn, store.sums(folder)


def fault_of_row(folder: Path, line: bytes, number: int, sums: set[str]) -> str | None:
    path = folder / "rows.jsonl"
    try:
        row = store.parsed(line, path, number)
        if sums and store.sum_of(line) not in sums:
            return "was changed since it was written"
        if row.error is None:
            check_numbers(row, folder)
            facts = facts_of(folder / "protocols" / f"{row.protocol}.json")
            expected = key_of_fields(row, facts) if facts else None
            if expected not in (None, row.key):
                return "was changed since it was written: its key is not that of its fields"
    except click.ClickException as error:
        return error.message.removeprefix(f"{path}, line {number} ").split(": `bench verify")[0].rstrip(".")
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # of fields within fields
        return f"is not a row of this version ({error})"
    return None


def facts_of(path: Path) -> dict:
    """What a protocol file says; empty where it cannot be read."""
    try:
        facts = json.loads(path.read_text())
        return facts if isinstance(facts, dict) else {}
    except (OSError, ValueError):
        return {}


def protocols(folder: Path) -> Iterator[Found]:
    """Every protocol by its fingerprint, those among them that rows refer to and that are not there."""
    named = set()
    for line in store.whole_lines(folder):
        try:
            row = json.loads(line)
            named |= {row["protocol"]} if row["error"] is None else set()
        except (ValueError, RecursionError, TypeError, KeyError):  # said among the rows
            continue
    # after the rows, as a run keeps a protocol before it appends the rows that refer to it
    there = {path.stem: path for path in sorted((folder / "protocols").glob("*.json"))}
    for name, path in there.items():
        sound = fingerprint(facts_of(path)) == name
        yield Found("protocol", path, None if sound else "is not what its fingerprint stands for")
    for name in sorted(name for name in named - there.keys() if isinstance(name, str)):
        path = folder / "protocols" / f"{name}.json"
        yield Found("protocol", path, "is missing; a run that asks the same writes it anew")


def samples(folder: Path) -> Iterator[Found]:
    for path in sorted((folder / "samples").glob("*.npz")):
        try:
            check_images(path)
            yield Found("samples", path)
        except click.ClickException as error:
            yield Found("samples", path, error.message.removeprefix(f"{path} ").rstrip("."))


def chunks(folder: Path) -> Iterator[Found]:
    """The work of cells that are not finished."""
    from bench.running.chunks import read_chunk

    for path in sorted((folder / "work").glob("*/*.safetensors")):
        yield Found("chunk", path, None if read_chunk(path) else "is not what its checksum says")


def models(cache: Path) -> Iterator[Found]:
    """Every trained model against the sha256 of its card, and every training that can be resumed."""
    from bench.diffusion import pieces

    for folder in sorted(path for path in (cache / "models").glob("*") if path.is_dir()):
        if (folder / "card.json").exists():
            yield Found("model", folder, fault_of_model(folder))
        for path in pieces.checkpoints(folder):
            if path.name.startswith("loop-"):
                yield Found("model", path, fault_of_tensors(path))


def fault_of_model(folder: Path) -> str | None:
    from bench.diffusion import pieces
    from bench.models.kept import read_card, sha256_of_tensors

    card = read_card(folder)
    if not card:
        return "has a card that cannot be read"
    try:
        tensors, _ = pieces.read(folder / "model.safetensors")
    except (OSError, ValueError):
        return "has weights that are missing or torn"
    return None if sha256_of_tensors(tensors) == card["sha256"] else "holds weights that are not its card's"


def fault_of_tensors(path: Path) -> str | None:
    from bench.diffusion import pieces

    try:
        pieces.read(path)
    except (OSError, ValueError):
        return "is torn"
    return None


def others(cache: Path) -> Iterator[Found]:
    """What was computed once: references, directions, solutions."""
    for path in sorted(cache.glob("*/*.safetensors")):
        if path.parent.name not in ("models", "data", ASIDE):
            yield Found("cached", path, fault_of_tensors(path))


def weights(cache: Path) -> Iterator[Found]:
    """What was downloaded for the extractors, as far as its publisher says what it should be."""
    from bench.metrics.weights import WEIGHTS

    for one in WEIGHTS.values():
        path = cache / "weights" / one.file
        if path.exists():
            with path.open("rb") as file:
                sound = hashlib.file_digest(file, "sha256").hexdigest().startswith(one.sha256)
            yield Found("weights", path, None if sound else "is not the file that was published")


def data(cache: Path) -> Iterator[Found]:
    """Archives by their own checksums, unpacked arrays by the sha256 that was noted beside them."""
    for path in sorted((cache / "data").glob("*.npz")):
        yield Found("data", path, fault_of_archive(path))
    for path in sorted((cache / "data").glob("*.npy")):
        yield Found("data", path, fault_of_array(path))


def fault_of_archive(path: Path) -> str | None:
    try:
        with ZipFile(path) as archive:
            return "is damaged" if archive.testzip() else None
    except (OSError, BadZipFile, EOFError, ValueError, NotImplementedError):
        return "is not a whole .npz file"


def fault_of_array(path: Path) -> str | None:
    import numpy as np

    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        size, time, noted = path.with_suffix(".sha256").read_text().split()
    except FileNotFoundError:
        return None  # nothing was noted
    except (OSError, ValueError, EOFError):
        return "is not a whole .npy file"
    stat = path.stat()
    if (size, time) != (str(stat.st_size), str(stat.st_mtime_ns)):
        return None  # the note is of another file, and is taken anew
    return None if hashlib.sha256(array).hexdigest() == noted else "is not what its sha256 says"


def repair(damaged: Iterable[Found], results: Path, cache: Path) -> list[Found]:
    """Move what is damaged aside, so that the next run makes it again; returns what is damaged still."""
    lines, left = [], []
    for found in damaged:
        if found.kind == "row":
            lines.append(found.line)
        elif found.path.exists():
            root = results if found.path.is_relative_to(results) else cache
            set_aside(found.path, root)
        else:
            left.append(found)
    if lines:
        set_rows_aside(results, set(lines))
    return left


def set_aside(path: Path, root: Path) -> None:
    """Move a file or a model's folder to where damaged things lie, under a name that is free there; a model's
    lock stays.
    """
    to = free(root / ASIDE / path.relative_to(root))
    if path.is_file():
        to.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, to)
        return
    to.mkdir(parents=True)
    for one in path.iterdir():
        if one.name != ".lock":
            os.replace(one, to / one.name)


def free(path: Path) -> Path:
    """This path, or where something lies there the first of `path.2`, `path.3`, ... with nothing."""
    names = chain([path], (path.with_name(f"{path.name}.{n}") for n in count(2)))
    return next(one for one in names if not one.exists())


def set_rows_aside(folder: Path, lines: set[bytes]) -> None:
    """Move these lines, and a torn end, out of rows.jsonl, and forget the checksums of what is not there."""
    from filelock import FileLock

    path, aside = folder / "rows.jsonl", folder / ASIDE / "rows.jsonl"
    with FileLock(folder / ".lock"):
        there, torn, sums = lines_and_sums(folder)
        whole_torn = [torn] if store.sum_of(torn) in sums else []  # it lacks only its newline
        kept = [line for line in there if line not in lines] + whole_torn
        before = aside.read_bytes() if aside.exists() else b""
        with whole(aside) as part:
            part.write_bytes(before + b"".join(line + b"\n" for line in sorted(lines) if line))
        with whole(path) as part:
            part.write_bytes(b"".join(line + b"\n" for line in kept))
        if sums:
            store.write_sums(folder, [one for one in map(store.sum_of, kept) if one in sums])
