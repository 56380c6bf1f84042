"""Tables of what was measured, from rows alone: methods down, budgets across, one table a metric."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import registry, store
from bench.metrics.names import METRICS, parse
from bench.protocol import described
from bench.registry import Plugin
from bench.reporting.entries import Entry, Place, Setting, merged, refuse_mixed, settings_of, standing
from bench.reporting.labels import labels_of
from bench.row import FLOOR, Answer
from bench.statistics import bias_corrected, stderr, ties

LIKELIHOODS = ("nll", "nll_excess")
SURE = 3.0  # standard errors, from which on a likelihood is held to be an error of integration
UNSETTLED = (
    "In parentheses: no likelihood, but the error of too few steps of integration; with more of them the "
    "same model's is higher, or it lies below the truth."
)
Labelled = tuple[str, Answer]  # a row, and the line it stands in


@dataclass(frozen=True)
class Table:
    """One metric on one data set: entries by (label, budget), with what to print under it."""

    data: str
    metric: str  # the base name, such as fid
    columns: list[str]  # with their extractors or kinds, such as fid[digits]
    labels: list[str]
    budgets: list[int]
    entries: dict[Place, Entry]
    best: dict[int, set[str]]  # budget -> labels that are best or cannot be told from it
    floor: Entry | None
    failed: dict[Place, str]
    least: dict[str, int]
    notes: list[str]
    unsettled: frozenset[Place] = frozenset()  # likelihoods that are their integration's error


@dataclass(frozen=True)
class Reading:
    """What reading rows takes besides the rows: where they lie, the plugins they speak of, who must be
    listed.
    """

    folder: Path = Path("runs")
    known: dict[str, Plugin] = field(default_factory=registry.plugins)
    everyone: bool = False  # list methods without a likelihood in the table of likelihoods, with '-'


def tables(
    rows: Sequence[Answer], reading: Reading | None = None, metrics: Sequence[str] = ()
) -> list[Table]:
    """A table for each data set and metric in the rows; ClickException where two protocols would share a
    column.
    """
    reading = reading or Reading()
    found = []
    by_data: dict[str, list[Answer]] = {}
    for row in rows:
        by_data.setdefault(row.data, []).append(row)
    for data, here in by_data.items():
        labelled = list(zip(labels_of(here, reading.known), here))
        bad = []
        by_column: dict[str, list[Labelled]] = {}
        for pair in labelled:
            if pair[1].error is None:
                by_column.setdefault(pair[1].metric, []).append(pair)
            elif pair[1].error:
                bad.append(pair)
        for group in column_groups(by_column):
            if metrics and not {parse(group[0])[0], *group} & set(metrics):
                continue
            mine = by_column[group[0]]
            if len(group) > 1:  # in the rows' order
                mine = [pair for pair in labelled if pair[1].error is None and pair[1].metric in group]
            failures = [pair for pair in bad if pair[1].ask == mine[0][1].ask]
            everyone = (reading.everyone and group[0].startswith("nll[")) or group == ["nll"]
            found.append(table(data, group, mine, failures, labelled if everyone else [], reading))
    return found


def column_groups(columns: Collection[str]) -> list[list[str]]:
    """The columns of each table: one, but all kinds of likelihood side by side, never compared."""
    order = list(METRICS)
    groups: dict[str, list[str]] = {}
    for column in sorted(columns, key=lambda c: (order.index(parse(c)[0]), c)):
        base = parse(column)[0]
        groups.setdefault(base if base in LIKELIHOODS else column, []).append(column)
    return list(groups.values())


def table(
    data: str,
    columns: list[str],
    measured: Sequence[Labelled],
    failures: Sequence[Labelled],
    listed: Sequence[Labelled],
    reading: Reading,
) -> Table:
    """One table of what was measured; `listed` rows give lines of their own even where nothing was."""
    metric = parse(columns[0])[0]
    floors = [row for _, row in measured if row.method == FLOOR]
    grouped: dict[Place, list[Answer]] = {}
    for label, row in measured:
        if row.method != FLOOR:
            grouped.setdefault((label, row.budget), []).append(row)
    settings = settings_of(grouped)
    refuse_mixed(settings, reading.folder)
    entries = dict(zip(grouped, merged(list(grouped.values()))))
    failed = {(label, row.budget): row.error for label, row in failures}
    methods = {label: rows[0].method for (label, _), rows in grouped.items()}
    methods |= {label: row.method for label, row in (*failures, *listed) if row.method != FLOOR}
    (floor,) = merged([floors[:1]]) if floors else [None]
    doubtful = unsettled(entries)
    return Table(
        data=data,
        metric=metric,
        columns=columns,
        labels=sorted(methods, key=lambda label: order_of(label, reading.known.get(methods[label]))),
        budgets=sorted({budget for _, budget in [*entries, *failed]}),
        entries=entries,
        best=best_of({k: v for k, v in entries.items() if k not in doubtful}, METRICS[metric].better),
        floor=floor,
        failed=failed,
        least={label: reading.known[name].least for label, name in methods.items() if name in reading.known},
        notes=[
            *notes_of(metric, columns, settings, entries, floor, failed),
            *([UNSETTLED] if doubtful else []),
            *others_of(entries),
            *training_of(settings),
            *protocols_of(settings, reading.folder),
        ],
        unsettled=doubtful,
    )


def best_of(entries: dict[Place, Entry], better: str) -> dict[int, set[str]]:
    """By budget, the labels that are best or tied with the best of their column; a lone one is neither."""
    columns: dict[tuple[int, str], dict] = {}
    for (label, budget), entry in entries.items():
        columns.setdefault((budget, entry.column), {})[label] = standing(entry, better)
    best: dict[int, set[str]] = {}
    for (budget, _), column in columns.items():
        which = "higher" if better == "higher" else "lower"
        best.setdefault(budget, set()).update(ties(column, which) if len(column) > 1 else ())
    return best


def unsettled(entries: dict[Place, Entry]) -> frozenset[Place]:
    """The likelihoods of flows that cannot be likelihoods: better than the same model's at its greatest
    budget, significantly and by more than their own error, or better than the truth. What is better there is
    the error of too few steps.
    """
    flows = {place: entry for place, entry in entries.items() if "[ode" in entry.column}
    greatest = {label: entry for (label, _), entry in sorted(flows.items(), key=lambda pair: pair[0][1])}
    found = set()
    for (label, budget), entry in flows.items():
        last = greatest[label]
        sure = SURE * stderr([a - b for a, b in zip(entry.replicates, last.replicates)])
        untrue = entry.column.startswith("nll_excess") and entry.value < -SURE * entry.stderr
        if untrue or last.value - entry.value > max(sure, entry.stderr):
            found.add((label, budget))
    return frozenset(found)


def order_of(label: str, plugin: Plugin | None) -> tuple:
    """Foundations first, then by place in the taxonomy, then by name."""
    return (plugin is None or plugin.folder != "foundations", plugin.folder if plugin else "~", label)


def notes_of(
    metric: str,
    columns: list[str],
    settings: Sequence[Setting],
    entries: Mapping[Place, Entry],
    floor: Entry | None,
    failed: dict,
) -> list[str]:
    """What a reader must know to read the table, a sentence each."""
    notes = []
    if settings:
        counts = " and ".join(f"{n:,}" for n in sorted({setting.samples for setting in settings}))
        seeds = len({setting.seed for setting in settings})
        unit = next(iter(entries.values())).rows[0].details.get("unit")
        notes.append(
            f"{counts} {'test rows' if metric in LIKELIHOODS else 'samples'} a cell, "
            f"{f'{seeds} seeds' if seeds > 1 else 'one seed'}; ± is one standard error (jackknife, 20 blocks)"
            + (f"; in {unit}." if unit else ".")
        )
    notes.append("Bold: the best of its column and all that cannot be told from it (paired t, Holm, 5 %).")
    if floor is not None:
        corrected = (
            f" (bias-corrected {bias_corrected(floor.value, floor.replicates):.2f})"
            if metric == "fid"
            else ""
        )
        notes.append(f"Floor: {floor.samples:,} held-out rows score {floor.value:.2f}{corrected}.")
    if metric == "nll":
        if any("elbo" in column for column in columns):
            notes.append(
                "≤ marks an upper bound, estimated with one draw a term; it is not compared with [ode]."
            )
        if any("ode" in column for column in columns):
            notes.append("[ode]: the likelihood of a model's probability flow.")
        notes.append("'-': a learning-free sampler has no likelihood of its own.")
    return notes + [f"{label} at {budget} failed: {why}" for (label, budget), why in failed.items()]


def others_of(entries: Mapping[Place, Entry]) -> list[str]:
    """What lines take of other networks, such as decoders and classifiers, which no budget counts: a note."""
    taken: dict[str, list[float]] = {}
    for (label, _), entry in entries.items():
        if extra := max(row.extra for row in entry.rows):
            taken.setdefault(label, []).append(extra)
    parts = [
        f"{label} {min(extra):.3g}{f' to {max(extra):.3g}' if max(extra) > min(extra) else ''}"
        for label, extra in sorted(taken.items())
    ]
    return (
        [f"Evaluations of other networks a sample, beside the budget: {', '.join(parts)}."] if parts else []
    )


def training_of(settings: Sequence[Setting]) -> list[str]:
    """What each line's own training saw, the base's apart: a note, if any line was trained."""
    seen: dict[str, set[int]] = {}
    for setting in settings:
        if setting.train_images:
            seen.setdefault(setting.label, set()).add(setting.train_images)
    alike: dict[tuple[int, int], list[str]] = {}
    for label, images in seen.items():
        alike.setdefault((min(images), max(images)), []).append(label)
    parts = [
        f"{low:,}{f' to {high:,}' if high > low else ''} {', '.join(sorted(alike[low, high]))}"
        for low, high in sorted(alike)
    ]
    return [f"Images seen in training, beside the base's: {'; '.join(parts)}."] if parts else []


def protocols_of(settings: Sequence[Setting], folder: Path) -> list[str]:
    """The protocols that the rows were measured under, a footnote each."""
    names = dict.fromkeys(setting.protocol for setting in settings)
    return [described(name, store.protocol(folder, name)) for name in names]


def chosen(
    rows: Sequence[Answer],
    category: str | None = None,
    data: str | None = None,
    nfe: Sequence[int] | None = None,
    protocol: str | None = None,
) -> list[Answer]:
    """The rows that meet every condition given; floors go with their data, and the foundations with every
    category.
    """
    from bench.selection import Selection, labelled

    names = None
    if category:
        known = registry.plugins()
        foundations = {name for name, plugin in known.items() if plugin.folder == "foundations"}
        names = labelled(Selection(category=category), known) | foundations | {FLOOR}
    return [
        row
        for row in rows
        if (names is None or row.method in names)
        and (data is None or row.data == data)
        and (nfe is None or row.budget in nfe or row.method == FLOOR)
        and (protocol is None or row.protocol == protocol)
    ]
