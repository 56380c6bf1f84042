"""What changed between two results folders: paired differences of the questions that both answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from bench import store
from bench.cache import canonical
from bench.metrics.names import METRICS, parse
from bench.protocol import difference as protocol_difference
from bench.reporting.entries import Entry, merged, standing
from bench.reporting.rendering import plus_minus, rounded
from bench.reporting.sheets import Cell, Sheet
from bench.row import FLOOR, Row
from bench.statistics import Difference, holm, paired_difference

LEVEL = 0.05
Identity = tuple  # what makes two rows answers to one question, whenever they were measured


@dataclass(frozen=True)
class Change:
    """One question that both folders answer; `difference` is b - a, over the seeds that both have."""

    a: Entry
    b: Entry
    difference: Difference
    significant: bool

    @property
    def verdict(self) -> str:
        if not self.significant:
            return "same" if self.difference.difference == 0 else "no significant change"
        if self.a.rows[0].method == FLOOR:
            return "changed"
        better = METRICS[parse(self.a.column)[0]].better
        gain = standing(self.b, better)[0] - standing(self.a, better)[0]
        return "better" if (gain > 0) == (better == "higher") else "worse"


@dataclass(frozen=True)
class Comparison:
    """Two folders' rows: what both answer, and what only one does, by identity and seed."""

    changes: list[Change]
    only_a: list[Row]
    only_b: list[Row]
    notes: list[str]


def identity(row: Row) -> Identity:
    """The question of a row but for its seed: not the plugin's version nor the code's, which may change."""
    return (
        *(
            getattr(row, name)
            for name in ("method", "data", "base", "base_id", "train_seed", "images", "ask")
        ),
        *(row.budget, row.samples, row.protocol, row.metric, canonical(row.hyper_parameters)),
    )


def compare(a: Path, b: Path, data: str | None = None, metrics: Sequence[str] = ()) -> Comparison:
    """Paired differences of all rows with the same identity and seed, Holm-corrected as one family.

    Rows that failed answer nothing. Raises click.ClickException where a folder holds no rows.
    """
    ours, theirs = (answers(folder, data, metrics) for folder in (a, b))
    changes, p = [], {}
    for question in ours:
        seeds = sorted(ours[question].keys() & theirs.get(question, {}).keys())
        if not seeds:
            continue
        (before,), (after,) = (merged([[side[question][seed] for seed in seeds]]) for side in (ours, theirs))
        try:
            found = paired_difference((after.value, after.replicates), (before.value, before.replicates))
        except ValueError as error:
            raise click.ClickException(f"{question[0]} at {before.rows[0].budget}: {error}") from None
        p[str(len(changes))] = found.p
        changes.append((before, after, found))
    rejected = holm(p, LEVEL)
    notes = [
        f"{kind}: {what}"
        for kind, what in (
            ("versions", versions_changed(changes)),
            ("protocols", protocols_changed(ours, theirs, a, b)),
        )
        if what
    ]
    return Comparison(
        [Change(*parts, str(number) in rejected) for number, parts in enumerate(changes)],
        alone(ours, theirs),
        alone(theirs, ours),
        notes,
    )


def answers(folder: Path, data: str | None, metrics: Sequence[str]) -> dict[Identity, dict[int, Row]]:
    """Identity -> seed -> row, of a folder's rows that hold a number."""
    found: dict[Identity, dict[int, Row]] = {}
    rows = store.read(folder)
    if not rows:
        raise click.ClickException(f"{folder} holds no rows; `bench run --results {folder}` measures some.")
    for row in rows:
        wanted = not metrics or {row.metric, row.metric.partition("[")[0]} & set(metrics)
        if row.error is None and wanted and data in (None, row.data):
            found.setdefault(identity(row), {})[row.seed] = row
    return found


def alone(ours: dict[Identity, dict[int, Row]], theirs: dict[Identity, dict[int, Row]]) -> list[Row]:
    return [
        row for key, seeds in ours.items() for seed, row in seeds.items() if seed not in theirs.get(key, {})
    ]


def versions_changed(changes: Sequence[tuple]) -> str:
    """Methods whose version is another in the second folder."""
    found = {
        f"{a.rows[0].method} {a.rows[0].version} → {b.rows[0].version}"
        for a, b, _ in changes
        if a.rows[0].version != b.rows[0].version
    }
    return ", ".join(sorted(found))


def protocols_changed(ours: dict, theirs: dict, a: Path, b: Path) -> str:
    """What the two folders' protocols differ in, where each has one that the other lacks."""
    mine, others = ({row.protocol for s in side.values() for row in s.values()} for side in (ours, theirs))
    alone_a, alone_b = sorted(mine - others), sorted(others - mine)
    if not (alone_a and alone_b):
        return ""
    said = {
        "; ".join(protocol_difference(store.protocol(a, x), store.protocol(b, y))) or "not on record"
        for x in alone_a
        for y in alone_b
    }
    return f"rows of different protocols are not compared ({min(said, key=len)})"


def sheet(found: Comparison, everything: bool = False) -> Sheet:
    """The significant changes, or every pair, as a table; what only one folder has under it."""
    shown = [change for change in found.changes if everything or change.significant]
    lines = [line(change) for change in sorted(shown, key=lambda c: c.difference.p)]
    changed = sum(change.significant for change in found.changes)
    notes = [
        f"{len(found.changes)} numbers compared, {changed} changed significantly "
        f"(paired t, Holm, {LEVEL:.0%}); difference is B - A."
    ]
    notes += found.notes
    for name, rows in (("A", found.only_a), ("B", found.only_b)):
        if rows:
            cells = sorted({f"{row.method} at {row.budget} on {row.data}" for row in rows})
            more = f" and {len(cells) - 8} more" if len(cells) > 8 else ""
            notes.append(f"Only in {name}, {len(rows)} numbers: {', '.join(cells[:8])}{more}.")
    header = ("method", "data", "metric", "NFE", "A", "B", "difference", "p", "verdict")
    records = tuple(record(change) for change in found.changes)
    return Sheet("What changed from A to B", header, tuple(lines), tuple(notes), records)


def line(change: Change) -> tuple[Cell, ...]:
    row, gap = change.a.rows[0], change.difference
    numbers = [plus_minus(*rounded(entry.value, entry.stderr)) for entry in (change.a, change.b)]
    return (
        *map(Cell, (row.method, row.data, row.metric, str(row.budget), *numbers)),
        Cell(plus_minus(*rounded(gap.difference, gap.stderr)), best=change.significant),
        Cell(f"{gap.p:.2g}"),
        Cell(change.verdict),
    )


def record(change: Change) -> dict:
    row = change.a.rows[0]
    kept = {
        name: getattr(row, name) for name in ("method", "data", "metric", "budget", "samples", "protocol")
    }
    gap = {name: None if value != value else value for name, value in change.difference._asdict().items()}
    return kept | {"a": change.a.value, "b": change.b.value, **gap, "verdict": change.verdict}
