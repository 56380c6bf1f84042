"""Tables as text: Markdown, LaTeX, CSV, JSON."""

import json
import math
from collections.abc import Collection, Sequence

from bench.metrics.names import METRICS
from bench.statistics import bias_corrected
from bench.tables import FLOOR, Entry, Table

FORMATS = ("md", "latex", "csv", "json")


def render(tables: Sequence[Table], style: str, baselines: Collection[str] = ()) -> str:
    """All tables in one of FORMATS; `baselines` are labels to mark as such."""
    if style == "json":
        return json.dumps(records(tables), indent=1)
    if style == "csv":
        import pandas as pd

        return pd.DataFrame(records(tables)).to_csv(index=False)
    if style == "latex":
        return "\n\n".join(latex(table) for table in tables)
    return "\n\n".join(markdown(table, baselines) for table in tables)


def markdown(table: Table, baselines: Collection[str] = ()) -> str:
    """A table in Markdown, its notes under it."""
    from tabulate import tabulate

    arrow = {"lower": "↓", "higher": "↑", "target": "→ held-out"}[METRICS[table.metric].better]
    header = [f"{', '.join(table.columns)} {arrow} on {table.data}", *(f"NFE {b}" for b in table.budgets)]
    body = [
        [label + (" †" if label in baselines else ""), *(cell(table, label, b) for b in table.budgets)]
        for label in table.labels
    ]
    if table.floor is not None:
        floor = plus_minus(*rounded(table.floor.value, table.floor.stderr))
        body.append([f"{FLOOR} ({table.floor.samples:,} held out)", *[floor] * len(table.budgets)])
    align = ("left", *("right",) * len(table.budgets))
    text = tabulate(body, header, tablefmt="github", disable_numparse=True, colalign=align)
    notes = list(table.notes)
    if any(label in baselines for label in table.labels):
        notes.append("†: a baseline from the foundations.")
    return text + "\n\n" + "  \n".join(notes)


def latex(table: Table) -> str:
    """A booktabs table."""
    rows = [
        [
            escaped(label),
            *(cell(table, label, budget, bold=r"\textbf{{{}}}", pm=r" $\pm$ ") for budget in table.budgets),
        ]
        for label in table.labels
    ]
    header = [escaped(", ".join(table.columns)), *map(str, table.budgets)]
    lines = [
        rf"\begin{{tabular}}{{l{'r' * len(table.budgets)}}}",
        r"\toprule",
        " & ".join(header) + r" \\",
        r"\midrule",
    ]
    lines += [" & ".join(row).replace("≤", r"$\leq$").replace("<", "$<$") + r" \\" for row in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def escaped(text: str) -> str:
    """Plain text for LaTeX."""
    for character in "&%_#$":
        text = text.replace(character, "\\" + character)
    return text


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
    return plus_minus(text, error, pm)


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
        "method": row["method"],
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
        "samples": entry.samples,
        "seeds": len(entry.rows),
        "protocol": row["protocol"],
        "seconds": sum(r["seconds"] or 0.0 for r in entry.rows) / len(entry.rows),
        "train_images": row["train_images"],
        "train_seconds": row["train_seconds"],
        "train_rows": row["train_rows"],
        "parameters": row["parameters"],
    }
