"""Tables as text: Markdown, LaTeX, CSV, JSON."""

import json
import math
from collections.abc import Collection, Sequence

from bench.metrics.names import METRICS
from bench.reporting.entries import Entry
from bench.reporting.tables import Table
from bench.reporting.typesetting import PACKAGES, escaped, typeset
from bench.row import FLOOR
from bench.statistics import bias_corrected

FORMATS = ("md", "latex", "csv", "json")


def render(tables: Sequence[Table], style: str, baselines: Collection[str] = ()) -> str:
    """All tables in one of FORMATS; `baselines` are labels to mark as such."""
    if style == "json":
        return json.dumps(records(tables), indent=1)
    if style == "csv":
        import pandas as pd

        return pd.DataFrame(records(tables)).to_csv(index=False)
    if style == "latex":
        return "\n\n".join([PACKAGES, *(latex(table, baselines) for table in tables)])
    return "\n\n".join(markdown(table, baselines) for table in tables)


def markdown(table: Table, baselines: Collection[str] = ()) -> str:
    """A table in Markdown, its notes under it."""
    from tabulate import tabulate

    header = [heading(table), *(f"NFE {b}" for b in table.budgets)]
    body = [
        [label + (" †" if label in baselines else ""), *(cell(table, label, b) for b in table.budgets)]
        for label in table.labels
    ]
    if table.floor is not None:
        floor = plus_minus(*rounded(table.floor.value, table.floor.stderr))
        body.append([f"{FLOOR} ({table.floor.samples:,} held out)", *[floor] * len(table.budgets)])
    align = ("left", *("right",) * len(table.budgets))
    text = tabulate(body, header, tablefmt="github", disable_numparse=True, colalign=align)
    return text + "\n\n" + "  \n".join(notes_under(table, baselines))


def latex(table: Table, baselines: Collection[str] = ()) -> str:
    """A table with its caption, its floor and its notes."""

    def number(label: str, budget: int) -> str:
        text = cell(table, label, budget, bold="\0{}\0")
        plain, bold, rest = text.split("\0") if "\0" in text else ("", "", text)
        return escaped(plain) + (rf"\textbf{{{escaped(bold)}}}" if bold else "") + escaped(rest)

    body: list[Sequence[str] | None] = [
        [escaped(label + (" †" if label in baselines else "")), *(number(label, b) for b in table.budgets)]
        for label in table.labels
    ]
    if table.floor is not None:
        floor = escaped(plus_minus(*rounded(table.floor.value, table.floor.stderr)))
        name = f"{FLOOR} ({table.floor.samples:,} held out)"
        body += [None, [name, *[floor] * len(table.budgets)]]
    header = ["NFE", *map(str, table.budgets)]
    return typeset(heading(table), header, body, notes_under(table, baselines), numbers=True)


def heading(table: Table) -> str:
    """What a table is of, and which way is better."""
    arrow = {"lower": "↓", "higher": "↑", "target": "→ held-out"}[METRICS[table.metric].better]
    return f"{', '.join(table.columns)} {arrow} on {table.data}"


def notes_under(table: Table, baselines: Collection[str]) -> list[str]:
    """The table's notes, and what the dagger means where there is one."""
    marked = any(label in baselines for label in table.labels)
    return [*table.notes, *(["†: a baseline from the foundations."] if marked else [])]


def cell(table: Table, label: str, budget: int, bold: str = "**{}**", pm: str = " ± ") -> str:
    """One cell: value ± error, bold where tied with the best, '<least' where undefined, 'failed', or '-'."""
    entry = table.entries.get((label, budget))
    if entry is None:
        if (label, budget) in table.failed:
            return "failed"
        return f"<{table.least[label]}" if budget < table.least.get(label, 0) else "-"
    text, error = rounded(entry.value, entry.stderr)
    text = ("≤" if is_bound(entry) else "") + text
    if label in table.best.get(budget, ()):
        text = bold.format(text)
    return set_apart(table, label, budget, plus_minus(text, error, pm))


def set_apart(table: Table, label: str, budget: int, text: str) -> str:
    """The text of a number, in parentheses where it is no likelihood but an integration's error."""
    return f"({text})" if (label, budget) in table.unsettled else text


def is_bound(entry: Entry) -> bool:
    """Whether the value is an upper bound of a likelihood."""
    return entry.column.startswith("nll[elbo")


def plus_minus(text: str, error: str, pm: str = " ± ") -> str:
    return text + pm + error if error else text


def rounded(value: float, error: float) -> tuple[str, str]:
    """A value and its standard error to two digits of the error (one where it begins with 3 or more), 4
    decimals at most.
    """
    if not math.isfinite(value) or not math.isfinite(error) or error <= 0:
        return f"{value:.4g}", ""
    first = math.floor(math.log10(error))
    digits = min(max((1 if error / 10**first < 3 else 0) - first, 0), 4)
    return f"{value:.{digits}f}", f"{error:.{digits}f}"


def records(tables: Sequence[Table]) -> list[dict]:
    """One record a cell, for JSON and CSV."""
    return [
        record(table, label, budget, entry)
        for table in tables
        for label, budget, entry in [
            *((label, budget, entry) for (label, budget), entry in table.entries.items()),
            *([(FLOOR, 0, table.floor)] if table.floor else []),
        ]
    ]


def record(table: Table, label: str, budget: int, entry: Entry) -> dict:
    row = entry.rows[0]
    return {
        "method": row.method,
        "label": label,
        "data": table.data,
        "metric": entry.column,
        "budget": budget,
        "nfe": entry.nfe,
        "nfe_max": entry.nfe_max,
        "value": entry.value,
        "stderr": entry.stderr,
        "bias_corrected": bias_corrected(entry.value, entry.replicates) if table.metric == "fid" else None,
        "tied_with_best": label in table.best.get(budget, ()),
        "settled": (label, budget) not in table.unsettled,
        "samples": entry.samples,
        "seeds": len(entry.rows),
        "protocol": row.protocol,
        "seconds": sum(r.seconds or 0.0 for r in entry.rows) / len(entry.rows),
        "other_networks": sum(r.extra for r in entry.rows) / len(entry.rows),
        "derivatives": sum(r.jvps + r.vjps for r in entry.rows) / len(entry.rows),
        "train_images": row.train_images,
        "train_seconds": row.train_seconds,
        "train_rows": row.train_rows,
        "parameters": row.parameters,
    }
