"""Entries of a table: the rows of one line and budget merged over their seeds, and how they were measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np

from bench import store
from bench.protocol import difference
from bench.row import Answer
from bench.statistics import stderrs

Place = tuple[str, int]  # a line and a budget


@dataclass(frozen=True)
class Entry:
    """What one method scored at one budget, over the seeds there are."""

    value: float
    replicates: tuple[float, ...]
    stderr: float
    nfe: float
    nfe_max: float
    samples: int
    rows: tuple[Answer, ...]  # one a seed

    @property
    def column(self) -> str:
        return self.rows[0].metric


class Setting(NamedTuple):
    """How rows were measured, which many of a line's rows have in common."""

    label: str
    metric: str
    protocol: str
    samples: int
    seed: int
    train_images: float


def standing(entry: Entry, better: str) -> tuple[float, tuple[float, ...]]:
    """What an entry is compared by: its value, or how far it lies from what held-out data score."""
    if better != "target":
        return entry.value, entry.replicates
    target = target_of(entry)
    return abs(entry.value - target), tuple(abs(replicate - target) for replicate in entry.replicates)


def target_of(entry: Entry) -> float:
    """What held-out data score: 1 where the metric is a ratio to them."""
    return 1.0 if entry.column == "memorisation" else entry.rows[0].details["held_out"]


def settings_of(grouped: Mapping[Place, Sequence[Answer]]) -> list[Setting]:
    """The settings of the rows of a table, each once."""
    facts = attrgetter(*Setting._fields[1:])
    found = dict.fromkeys((label, *facts(row)) for (label, _), rows in grouped.items() for row in rows)
    return [Setting(*setting) for setting in found]


def refuse_mixed(settings: Sequence[Setting], folder: Path) -> None:
    """Two protocols in one column are two scales: say what differs, and how to pick one."""
    prints: dict[str, list[str]] = {}
    for setting in settings:
        if setting.protocol not in prints.setdefault(setting.metric, []):
            prints[setting.metric].append(setting.protocol)
    for column, found in prints.items():
        if len(found) > 1:
            a, b = found[:2]
            what = (
                "; ".join(difference(store.protocol(folder, a), store.protocol(folder, b))) or "not on record"
            )
            raise click.ClickException(
                f"{column} was measured under {len(found)} protocols ({what}); pick one with --protocol {a} "
                f"or --protocol {b}."
            )


def merged(groups: Sequence[Sequence[Answer]]) -> list[Entry]:
    """The mean of each group of rows, which are one a seed; a replicate of it is the mean of the seeds'.

    Raises click.ClickException where rows have different numbers of replicates, which nothing can pair.
    """
    if not groups:
        return []
    counts = np.array([len(rows) for rows in groups])
    replicates = [row.replicates for rows in groups for row in rows]
    if len(blocks := set(map(len, replicates))) > 1:
        row = groups[0][0]
        raise click.ClickException(
            f"Rows of {row.metric} on {row.data} have {min(blocks)} to {max(blocks)} replicates, and only as "
            "many can be compared with as many; `bench run --again` measures them anew."
        )
    numbers = np.fromiter(chain.from_iterable(replicates), float)  # faster than an array of lists
    means = np.add.reduceat(numbers.reshape(len(replicates), -1), counts.cumsum() - counts) / counts[:, None]
    return [
        Entry(
            value=sum([row.value for row in rows]) / len(rows),
            replicates=tuple(mean),
            stderr=error,
            nfe=sum([row.nfe or 0.0 for row in rows]) / len(rows),
            nfe_max=max([row.nfe_max or 0.0 for row in rows]),
            samples=rows[0].samples,
            rows=tuple(rows),
        )
        for rows, mean, error in zip(groups, means.tolist(), stderrs(means).tolist())
    ]
