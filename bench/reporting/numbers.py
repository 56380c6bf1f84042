"""The report's numbers as plain records, which its table and curves are drawn from in the browser."""

import json
import math
import shlex
from collections.abc import Sequence

from bench.cache import canonical
from bench.metrics.names import parse
from bench.registry import Plugin
from bench.reporting.labels import changed
from bench.reporting.rendering import is_bound, rounded, set_apart
from bench.reporting.series import BETTER, Column, Line, Point, place_of
from bench.row import FLOOR, Row
from bench.statistics import bias_corrected

FIELDS = (
    "line", "column", "budget", "nfe", "value", "low", "high", "text", "error", "mark", "corrected",
    "seconds", "samples", "seeds", "command",
)  # fmt: skip
USUAL = {"fid", "is", "memorisation"}, {"fid", "sliced_wasserstein", "exact_nll", "distance"}


def numbers(columns: Sequence[Column], rows: Sequence[Row], known: dict[str, Plugin]) -> dict:
    """All that the page's script needs: lines (methods), columns, and a list in order of FIELDS a number."""
    lines, commands, found = {}, {}, []
    asked = metrics_of(rows)
    for place, column in enumerate(columns):
        for line in column.lines:
            i = lines.setdefault((line.label, line.folder, line.method), len(lines))
            for point in line.points:
                command = command_of(point.entry.rows, known, asked)
                k = commands.setdefault(command, len(commands))
                found.append(number(i, place, k, column, line, point))
    return {
        "fields": FIELDS,
        "lines": [line_record(*key) for key in lines],
        "columns": [column_record(column) for column in columns],
        "commands": list(commands),
        "numbers": found,
    }


def line_record(label: str, folder: str, method: str) -> dict:
    category, leaf = place_of(folder)
    return {"label": label, "method": method, "category": category, "leaf": leaf}


def column_record(column: Column) -> dict:
    floor = column.table.floor
    unit = next((p.entry.rows[0].details.get("unit") for line in column.lines for p in line.points), None)
    return {
        "data": column.data,
        "name": column.name,
        "title": column.metric.title,
        "better": BETTER[column.metric.better],
        "unit": unit,
        "protocol": column.protocol,
        "alone": column.alone,
        "floor": floor.value if floor and math.isfinite(floor.value) else None,
        "notes": column.table.notes,
    }


def number(i: int, place: int, command: int, column: Column, line: Line, point: Point) -> list:
    """One measured number, in the order of FIELDS."""
    entry = point.entry
    text, error = rounded(entry.value, entry.stderr)
    text = set_apart(column.table, line.label, point.budget, text)
    tied = [
        label for label in column.table.best.get(point.budget, ()) if in_column(column, label, point.budget)
    ]
    mark = ("best" if len(tied) == 1 else "tied") if line.label in tied else ""
    corrected = bias_corrected(entry.value, entry.replicates) if column.table.metric == "fid" else None
    short = lambda value: None if value is None else float(f"{value:.6g}")
    return [
        i, place, point.budget, short(point.nfe), short(point.value), short(point.low), short(point.high),
        ("≤" if is_bound(entry) else "") + text, error, mark,
        None if corrected is None else rounded(corrected, entry.stderr)[0],
        short(point.seconds), entry.samples, len(entry.rows), command,
    ]  # fmt: skip


def in_column(column: Column, label: str, budget: int) -> bool:
    entry = column.table.entries.get((label, budget))
    return entry is not None and entry.column == column.name


def metrics_of(rows: Sequence[Row]) -> dict[str, list[str]]:
    """By cell, the columns that its rows fill."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.error is None:
            found.setdefault(row.key, []).append(row.metric)
    return found


def command_of(rows: Sequence[Row], known: dict[str, Plugin], asked: dict[str, list[str]]) -> str:
    """The command that measures an entry's rows (one a seed) again."""
    row = rows[0]
    if row.base == "given samples":
        claimed = ["--nfe", str(row.budget)] if row.budget else []
        file = row.details.get("file", "SAMPLES")
        words = ["bench", "score", file, "--data", row.data, "--method", row.method, *claimed]
        return shlex.join(words)
    plugin = known.get(row.method)
    given = row.hyper_parameters
    settings = changed(given, plugin) if plugin else [f"{k}={v}" for k, v in given.items()]
    words = ["bench", "run", ":".join([row.method, *settings])]
    words += [] if plugin else ["--plugin", f"{row.method}.py"]
    words += ["--data", row.data]
    shared = plugin.bases(row.base) if plugin else {"denoiser": row.base}
    base = shared.pop("denoiser", "")  # the one that --base chooses
    words += ["--base", base] if base not in ("", "denoiser") else []
    words += ["--nfe", str(row.budget), "--seeds", ",".join(str(r.seed) for r in rows)]
    words += ["--train-seed", str(row.train_seed)] if row.train_seed else []
    budgets = [other.partition("@")[2] for other in shared.values()] or [row.images or ""]
    words += ["--images", str(budgets[0])] if budgets[0] else []
    if row.ask == "sample":
        names = [parse(column) for column in asked.get(row.key, [row.metric])]
        words += ["--samples", str(row.samples)]
        if not any({name for name, _ in names} <= usual for usual in USUAL):
            words += [word for name, _ in names for word in ("--metric", name)]
        words += ["--extractor", next((q for _, q in names if q), "")] if any(q for _, q in names) else []
    else:
        words += ["--metric", "nll", "--held-out", str(row.samples)]
    return shlex.join(words)


def embedded(record: dict) -> str:
    """JSON that is safe inside a <script> element: nothing in it can close the element or open a comment."""
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def environments(rows: Sequence[Row]) -> list[dict]:
    """Each set of versions, device, threads and commit, with how many rows come from it."""
    found: dict[str, dict] = {}
    for row in rows:
        facts = {
            **dict(sorted(row.versions.items())),
            "device": row.device or "not recorded",
            "threads": row.threads or "not recorded",
            "commit": row.commit or "not recorded",
        }
        record = found.setdefault(canonical(facts), {**facts, "rows": 0, "first": row.time, "last": row.time})
        record["rows"] += 1
        record["first"], record["last"] = min(record["first"], row.time), max(record["last"], row.time)
    return list(found.values())


def failures(rows: Sequence[Row]) -> list[Row]:
    """The rows that say why there is no number."""
    return [row for row in rows if row.error is not None and row.method != FLOOR]
