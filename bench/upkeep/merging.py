"""Adopting rows from other results folders: everything is checked first, then all of it appended or none."""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from bench import store
from bench.cache import canonical, whole
from bench.data.folder import read_npz
from bench.job import BLOCKS, Cell
from bench.metrics.names import parse
from bench.protocol import fingerprint
from bench.row import FLOOR, Row

GIVEN = "given samples"  # the base of rows that `bench score` appends; their key holds the samples' sha256
MOST_IMAGES = 64  # kept beside one cell


@dataclass(frozen=True)
class Adopted:
    """What one folder gave: rows taken, and those left out as answered already or as failures."""

    folder: Path
    rows: int
    duplicates: int
    failures: int
    images: int


def merge(sources: Sequence[Path], into: Path, dry_run: bool = False) -> list[Adopted]:
    """Adopt the rows of every source into one folder, with their protocols and sample images.

    A row that answers what `into`, or an earlier source, answers already is left out, as is one that records
    a failure. Raises click.ClickException, before anything is written, for the first row, protocol or image
    that is not sound.
    """
    taken: list[Row] = []
    done = store.answered(into)
    found, protocols, images = [], {}, {}
    for source in sources:
        if source.resolve() == into.resolve():
            raise click.ClickException(f"{source} cannot be merged into itself.")
        rows = store.read(source)
        if not rows:
            raise click.ClickException(f"{source} holds no rows to merge.")
        sound = [row for row in rows if row.error is None]
        for row in sound:
            check(row, source)
        new = [row for row in sound if (row.key, row.metric) not in done]
        done |= {(row.key, row.metric) for row in new}
        pictures = {row.key: path for row in new if (path := image_of(source, row.key)).exists()}
        for path in pictures.values():
            check_images(path)
        taken += new
        protocols |= {row.protocol: store.protocol(source, row.protocol) for row in new}
        images |= pictures
        found.append(Adopted(source, len(new), len(sound) - len(new), len(rows) - len(sound), len(pictures)))
    if not dry_run:
        for name, facts in protocols.items():
            store.record_protocol(into, name, facts)
        for key, path in images.items():
            if not image_of(into, key).exists():
                with whole(image_of(into, key)) as part:
                    shutil.copyfile(path, part)
        store.append(into, taken)  # last: a row never stands without what it refers to
    return found


def image_of(folder: Path, key: str) -> Path:
    return folder / "samples" / f"{key}.npz"


def check(row: Row, folder: Path) -> None:
    """Raise a click.ClickException that says what is wrong with a row, or with the protocol it refers to."""
    check_numbers(row, folder)
    facts = store.protocol(folder, row.protocol)
    if not facts:
        missing = folder / "protocols" / f"{row.protocol}.json"
        raise click.ClickException(f"{described(row, folder)} refers to {missing}, which is not there.")
    if fingerprint(facts) != row.protocol:
        raise click.ClickException(f"{folder / 'protocols' / row.protocol}.json was changed afterwards.")
    expected = key_of_fields(row, facts)
    if expected is not None and expected != row.key:
        raise click.ClickException(
            f"{described(row, folder)} was changed afterwards: its key is not that of its fields."
        )


def check_numbers(row: Row, folder: Path) -> None:
    """Raise a click.ClickException where a row's own numbers cannot be."""
    what = described(row, folder)
    parse(row.metric)
    if not store.PLAIN.fullmatch(row.key):
        raise click.ClickException(f"{what} has {row.key!r} as its key, which is no name of a cell.")
    numbers = [row.value, *row.replicates]
    if not all(isinstance(x, int | float) and math.isfinite(x) for x in numbers):
        raise click.ClickException(f"{what} holds a value or replicate that is not a finite number.")
    if len(row.replicates) != BLOCKS:
        raise click.ClickException(f"{what} has {len(row.replicates)} replicates and needs {BLOCKS}.")
    if row.nfe is not None and row.nfe > row.budget and row.method != FLOOR:
        raise click.ClickException(f"{what} spent {row.nfe:g} evaluations, more than its budget.")


def described(row: Row, folder: Path) -> str:
    return f"{folder}: the row of {row.method} at {row.budget} NFE, {row.metric},"


def key_of_fields(row: Row, facts: dict) -> str | None:
    """The key a row must have; None where its fields do not tell (given samples, a tolerance found)."""
    if row.base == GIVEN or "tolerance" in row.parameters:
        return None
    same = {name: getattr(row, name) for name in Cell.__dataclass_fields__ if hasattr(row, name)}
    chunk = row.samples if row.method == FLOOR else facts.get("chunk", 0)
    rest = {"parameters": canonical(row.parameters), "nfe": row.budget, "chunk": chunk}
    return Cell(**same | rest).key


def check_images(path: Path) -> None:
    """Raise a click.ClickException unless the file holds a few finite sample images and nothing else."""
    import numpy as np

    arrays = read_npz(path)
    samples = arrays.get("samples", np.empty(()))
    sound = samples.dtype in (np.uint8, np.float16) and np.isfinite(samples).all()
    if list(arrays) != ["samples"] or not sound or not samples.ndim or not 0 < len(samples) <= MOST_IMAGES:
        raise click.ClickException(f"{path} must hold 1 to {MOST_IMAGES} finite samples and nothing else.")
