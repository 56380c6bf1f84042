"""What figures and reports draw: for every column of every protocol, a line of measured points a method."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from bench import registry, taxonomy
from bench.metrics.names import METRICS, Metric
from bench.reporting.entries import Entry
from bench.reporting.labels import identity
from bench.reporting.tables import Reading, Table, tables
from bench.row import Row
from bench.statistics import interval, stderr

BASELINES = "foundations"  # the folder whose methods are drawn in grey beside the others
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito's
GREY = "#8A8A8A"
BETTER = {"lower": "less is better", "higher": "more is better", "target": "nearest to held-out data is best"}
DASHES = ((), (6, 2), (1.5, 1.5), (7, 2, 1.5, 2))  # lengths on and off, in line widths
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


@dataclass(frozen=True)
class Point:
    """What one method scored at one budget: the value, its 95 % interval, and what it took."""

    budget: int
    nfe: float  # measured; as claimed for samples that were brought along
    value: float
    low: float
    high: float
    seconds: float | None  # for a thousand samples (or test rows)
    machine: str  # on which; only the times of one machine compare
    tied: bool
    entry: Entry


@dataclass(frozen=True, eq=False)
class Line:
    """A method's points in one column, by rising budget."""

    label: str
    method: str
    folder: str  # of its leaf below zoo/, "" where the method is nobody's
    points: tuple[Point, ...]

    @property
    def identity(self) -> tuple:
        """The method with its parameters, base and training: equal in all columns."""
        return identity(self.points[0].entry.rows[0])

    @property
    def baseline(self) -> bool:
        return self.folder == BASELINES


@dataclass(frozen=True)
class Column:
    """One metric on one data set under one protocol."""

    data: str
    name: str  # such as fid[digits]
    protocol: str
    alone: bool  # whether it is the only protocol of this data and metric
    table: Table = field(repr=False)
    lines: tuple[Line, ...]

    @property
    def metric(self) -> Metric:
        return METRICS[self.table.metric]


class Look(NamedTuple):
    """How a method is drawn; two that share a colour differ in dashes, and neighbours in markers."""

    colour: str
    dashes: tuple[float, ...]
    marker: str


def columns_of(rows: Sequence[Row], reading: Reading, data: str | None = None, metric: str | None = None):
    """The columns of the rows, each protocol's own; `metric` is a base name or a column such as fid[digits].

    Unlike a table, which refuses two protocols, this keeps them apart.
    """
    rows = [row for row in rows if data is None or row.data == data]
    found = []
    for protocol in dict.fromkeys(row.protocol for row in rows):
        mine = [row for row in rows if row.protocol == protocol]
        for table in tables(mine, reading, (metric,) if metric else ()):
            for name in table.columns:
                found.append((table.data, name, protocol, table, lines_of(table, name, reading)))
    count: dict[tuple, int] = {}
    for data_name, name, *_ in found:
        count[data_name, name] = count.get((data_name, name), 0) + 1
    return [Column(d, n, p, count[d, n] == 1, table, lines) for d, n, p, table, lines in found if lines]


def lines_of(table: Table, column: str, reading: Reading) -> tuple[Line, ...]:
    """The lines of one column of a table, in the table's order; points without a finite value are left
    out.
    """
    lines = []
    for label in table.labels:
        entries = {b: table.entries[label, b] for b in table.budgets if (label, b) in table.entries}
        points = tuple(
            point_of(budget, entry, label in table.best.get(budget, ()))
            for budget, entry in entries.items()
            if entry.column == column and math.isfinite(entry.value)
        )
        if points:
            method = points[0].entry.rows[0].method
            plugin = reading.known.get(method)
            lines.append(Line(label, method, plugin.folder if plugin else "", points))
    return tuple(lines)


def point_of(budget: int, entry: Entry, tied: bool) -> Point:
    low, high = interval(entry.value, entry.replicates)
    times = [1000 * row.seconds / row.samples for row in entry.rows if row.seconds and row.samples]
    machines = sorted({f"{row.device}, {row.threads} threads" for row in entry.rows})
    return Point(
        budget=budget,
        nfe=entry.nfe or budget,
        value=entry.value,
        low=low if math.isfinite(low) else entry.value,
        high=high if math.isfinite(high) else entry.value,
        seconds=sum(times) / len(times) if times else None,
        machine=" and ".join(machines).replace(" 1 threads", " one thread"),
        tied=tied,
        entry=entry,
    )


def looks(lines: Sequence[Line], by_leaf: bool = True) -> dict[str, Look]:
    """A look for each label, the same in every figure; `by_leaf` begins anew in every leaf, as panels do.

    Baselines are grey, unless there is nothing else.
    """
    grey = not all(line.baseline for line in lines)
    found: dict[str, Look] = {}
    taken: dict[str, int] = {}
    for label, folder in sorted({(line.label, line.folder) for line in lines}, key=lambda pair: pair[::-1]):
        place = folder if by_leaf or folder == BASELINES else ""
        i = taken[place] = taken.get(place, -1) + 1
        colours = (GREY,) if grey and folder == BASELINES else COLOURS
        dashes = DASHES[(i // len(colours)) % len(DASHES)]
        found[label] = Look(colours[i % len(colours)], dashes, MARKERS[i % len(MARKERS)])
    return found


def measured_order(line: Line) -> tuple[float, float] | None:
    """The order of convergence between the two greatest budgets, and its standard error.

    It is -d log(distance) / d log(NFE) of a line of the metric `distance`; None of fewer than two positive
    values at two measured NFE.
    """
    points = [p for p in line.points if p.value > 0 and p.nfe > 0][-2:]
    if len(points) < 2 or points[0].nfe == points[1].nfe:
        return None
    gap = math.log(points[1].nfe / points[0].nfe)
    slope = lambda first, last: math.log(first / last) / gap
    pairs = list(zip(*(point.entry.replicates for point in points), strict=False))
    error = stderr([slope(a, b) for a, b in pairs]) if all(min(p) > 0 for p in pairs) else math.nan
    return slope(points[0].value, points[1].value), error


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points no other one beats in both coordinates, less being better, by rising first coordinate."""
    best, front = math.inf, []
    for i in sorted(range(len(points)), key=lambda i: points[i]):
        if points[i][1] < best:
            best = points[i][1]
            front.append(i)
    return front


def scale_of(values: Sequence[float]) -> tuple[str, float]:
    """The axis that suits the values: "log", "linear", or "symlog" with the width of its linear middle."""
    v = np.asarray([value for value in values if math.isfinite(value)])
    if not len(v):
        return "linear", 1.0
    if v.min() > 0:
        return ("log" if v.max() > 4 * v.min() else "linear"), 1.0
    usual = max(float(np.median(np.abs(v))), 1e-12)
    spread = float(np.abs(v - np.median(v)).max()) / usual
    return ("symlog" if spread > 20 else "linear"), 10 ** math.ceil(math.log10(usual))


def place_of(folder: str) -> tuple[str, str]:
    """The titles of the category and the leaf that a folder below zoo/ stands for."""
    tree = taxonomy.load()
    for leaf in tree.leaves:
        if folder and leaf.folder == folder:
            return tree.category(leaf.category).title, leaf.title
    if folder == BASELINES:
        return "Foundations", "Foundations"
    return ("outside the surveys", folder or "samples brought along")


def reading_of(folder) -> Reading:
    return Reading(folder, registry.plugins())
