"""Tables of what was measured, from rows alone: methods down, budgets across, one table a metric."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from bench import registry, store
from bench.metrics.names import METRICS, parse
from bench.statistics import bias_corrected, stderr, ties

FLOOR = "real data"
FORMATS = ("md", "latex", "csv", "json")
BOUNDS = ("elbo",)


@dataclass(frozen=True)
class Entry:
    """What one method scored at one budget, over the seeds there are."""

    value: float
    replicates: tuple[float, ...]
    nfe: float
    nfe_max: float
    samples: int
    seeds: int
    rows: tuple[dict, ...]

    @property
    def stderr(self) -> float:
        return stderr(self.replicates)


@dataclass(frozen=True)
class Table:
    """One metric on one data set: entries by (label, budget), with what to print under it."""

    data: str
    metric: str  # the base name, such as fid
    column: str  # with its extractor, such as fid[digits]
    labels: list[str]
    budgets: list[int]
    entries: dict[tuple[str, int], Entry]
    best: dict[int, set[str]]  # budget -> labels that are best or cannot be told from it
    floor: Entry | None
    failed: dict[tuple[str, int], str]
    least: dict[str, int]
    notes: list[str]


def tables(rows: Sequence[dict], metrics: Sequence[str] = (), everyone: Sequence[str] = ()) -> list[Table]:
    """A table for each data set and metric in the rows; raises ClickException where two protocols would
    share a column.
    """
    labels = label_of(rows)
    found = []
    good = [row for row in rows if row["error"] is None]
    for data in dict.fromkeys(row["data"] for row in good):
        here = [row for row in good if row["data"] == data]
        names = list(dict.fromkeys(parse(row["metric"])[0] for row in here))
        order = list(METRICS)
        for metric in sorted(names, key=order.index):
            if metrics and metric not in metrics and not any(row["metric"] in metrics for row in here):
                continue
            columns = list(dict.fromkeys(row["metric"] for row in here if parse(row["metric"])[0] == metric))
            groups = [columns] if metric in ("nll", "nll_excess") else [[column] for column in columns]
            for group in groups:
                mine = [row for row in here if row["metric"] in group]
                failures = [
                    row
                    for row in rows
                    if row["error"] and row["data"] == data and row["ask"] == mine[0]["ask"]
                ]
                found.append(table(data, metric, mine, failures, labels, everyone))
    return found


def table(
    data: str, metric: str, rows: list[dict], failures: list[dict], labels: dict, everyone: Sequence[str]
) -> Table:
    floor_rows = [row for row in rows if row["method"] == FLOOR]
    rows = [row for row in rows if row["method"] != FLOOR]
    refuse_mixed(rows)
    grouped: dict[tuple[str, int], list[dict]] = {}
    for row in rows:
        grouped.setdefault((labels[identity(row)], row["budget"]), []).append(row)
    entries = {place: merged(members) for place, members in grouped.items()}
    budgets = sorted({budget for _, budget in entries})
    columns = sorted({row["metric"] for row in rows or floor_rows})
    better = METRICS[metric].better
    best = {}
    for budget in budgets:
        best[budget] = set()
        for one in columns:  # numbers of two kinds of likelihood are not held against each other
            column = {
                label: (e.value, e.replicates)
                for (label, b), e in entries.items()
                if b == budget and e.rows[0]["metric"] == one
            }
            best[budget] |= ties(column, better) if len(column) > 1 else set()
    failed = {(labels[identity(r)], r["budget"]): r["error"] for r in failures if identity(r) in labels}
    known = registry.plugins()
    shown = list(dict.fromkeys(label for label, _ in [*entries, *failed]))
    if metric == "nll":
        shown += [label for label in everyone if label not in shown]
    names = {labels[identity(r)]: r["method"] for r in [*rows, *failures] if identity(r) in labels}
    least = {label: known[name].least for label, name in names.items() if name in known}
    floor = merged(floor_rows[:1]) if floor_rows else None
    return Table(
        data=data,
        metric=metric,
        column=" ".join(columns),
        labels=sorted(shown, key=lambda label: order_of(label, names, known)),
        budgets=budgets,
        entries=entries,
        best=best,
        floor=floor,
        failed=failed,
        least=least,
        notes=notes_of(metric, columns, rows, floor, failed),
    )


def order_of(label: str, names: dict, known: dict) -> tuple:
    """Foundations first, then by place in the taxonomy, then by name."""
    plugin = known.get(names.get(label, ""))
    return (plugin is not None and plugin.folder != "foundations", plugin.folder if plugin else "~", label)


def identity(row: dict) -> tuple:
    """What tells one line of a table from another: the method, its parameters, its base and what it was
    trained on.
    """
    parameters = {k: v for k, v in row["parameters"].items() if k != "tolerance"}
    return (
        row["method"],
        row["version"],
        json.dumps(parameters, sort_keys=True),
        row["base_id"],
        row["images"],
    )


def label_of(rows: Sequence[dict]) -> dict[tuple, str]:
    """Readable names: the method's title, with the parameters that are not its defaults; the base where
    there are several.
    """
    known = registry.plugins()
    labels: dict[tuple, str] = {}
    identities = {identity(row): row for row in rows}
    bases = {row["base_id"] for row in rows if row["base_id"]}
    for key, row in identities.items():
        plugin = known.get(row["method"])
        defaults = {name: default for name, (_, default) in plugin.parameters.items()} if plugin else {}
        changed = {
            name: value
            for name, value in row["parameters"].items()
            if name != "tolerance" and plugin and defaults.get(name) != value
        }
        text = plugin.title if plugin else row["method"]
        inside = [f"{name}={value}" for name, value in changed.items()]
        if len(bases) > 1 and row["base_id"]:
            inside.append(f"base {row['base_id'].removeprefix('exact:')[:6]}")
        if plugin and row["version"] != plugin.version:
            inside.append(f"version {row['version']}")
        text += f" ({', '.join(inside)})" if inside else ""
        if text in labels.values():
            text += f" [{row['method']}]"
        labels[key] = text
    return labels


def refuse_mixed(rows: Sequence[dict]) -> None:
    by_column: dict[str, dict[str, Path]] = {}
    for row in rows:
        by_column.setdefault(row["metric"], {})[row["protocol"]] = row.get("folder", Path("runs"))
    for column, prints in by_column.items():
        if len(prints) > 1:
            from bench.protocol import difference

            (a, folder_a), (b, folder_b) = list(prints.items())[:2]
            what = (
                "; ".join(difference(store.protocol(folder_a, a), store.protocol(folder_b, b)))
                or "unknown fields"
            )
            raise click.ClickException(
                f"{column} was measured under {len(prints)} protocols ({what}); "
                f"pick one with --protocol {a} or --protocol {b}."
            )


def merged(rows: Sequence[dict]) -> Entry:
    """The mean over seeds; a replicate of the mean is the mean of the seeds' replicates."""
    n = len(rows)
    replicates = tuple(sum(column) / n for column in zip(*(row["replicates"] for row in rows), strict=True))
    mean = lambda name: sum(row[name] or 0.0 for row in rows) / n
    return Entry(
        value=mean("value"),
        replicates=replicates,
        nfe=mean("nfe"),
        nfe_max=max(row["nfe_max"] or 0.0 for row in rows),
        samples=rows[0]["samples"],
        seeds=n,
        rows=tuple(rows),
    )


def notes_of(
    metric: str, columns: list[str], rows: list[dict], floor: Entry | None, failed: dict
) -> list[str]:
    """What a reader must know to read the table, a sentence each."""
    notes = []
    if rows:
        samples = sorted({row["samples"] for row in rows})
        seeds = sorted({row["seed"] for row in rows})
        count = f"{len(seeds)} seeds" if len(seeds) > 1 else "one seed"
        unit = rows[0]["details"].get("unit")
        kind = "test rows" if metric.startswith("nll") else "samples"
        what = f"{' and '.join(f'{n:,}' for n in samples)} {kind} a cell, {count}"
        notes.append(
            f"{what}; ± is one standard error (jackknife over 20 blocks)" + (f"; in {unit}." if unit else ".")
        )
    notes.append("Bold: the best of its column and all that cannot be told from it (paired t, Holm, 5 %).")
    if floor is not None:
        notes.append(
            f"Floor: {floor.samples:,} held-out images score {floor.value:.2f}, bias-corrected "
            f"{bias_corrected(floor.value, floor.replicates):.2f}."
            if metric == "fid"
            else f"Floor: {floor.samples:,} held-out images score {floor.value:.2f}."
        )
    if metric == "nll":
        kinds = {
            "elbo": "≤ marks an upper bound (K-step, one draw a term)",
            "ode": "the probability flow's value is that of the shared base",
        }
        notes += [text + "." for kind, text in kinds.items() if any(kind in column for column in columns)]
        notes.append("A learning-free sampler has no likelihood of its own: '-'.")
    notes += [f"{label} at {budget}: {why}" for (label, budget), why in failed.items()]
    return notes


def cell_text(table: Table, label: str, budget: int, style: str = "md") -> str:
    """One cell: value ± error, bold where tied with the best, '<least' where undefined, 'failed', '-'."""
    entry = table.entries.get((label, budget))
    if entry is None:
        if (label, budget) in table.failed:
            return "failed"
        return f"<{table.least[label]}" if budget < table.least.get(label, 0) else "-"
    text, error = rounded(entry.value, entry.stderr)
    bound = table.metric == "nll" and any(kind in entry.rows[0]["metric"] for kind in BOUNDS)
    text = ("≤" if bound else "") + text
    if label in table.best.get(budget, set()):
        text = f"**{text}**" if style == "md" else rf"\textbf{{{text}}}"
    return f"{text} ± {error}" if error else text


def rounded(value: float, error: float) -> tuple[str, str]:
    """A value and its standard error, to the error's second digit (its first where that is 3 or more), at
    most 4 decimals.
    """
    import math

    if not math.isfinite(value) or not math.isfinite(error) or error <= 0:
        return f"{value:.4g}", ""
    first = math.floor(math.log10(error))
    digits = -first + (1 if error / 10**first < 3 else 0)
    digits = min(max(digits, 0), 4)
    return f"{value:.{digits}f}", f"{error:.{digits}f}"


def markdown(table: Table, baselines: Sequence[str] = ()) -> str:
    """A table in Markdown, its notes under it."""
    from tabulate import tabulate

    arrow = "↓" if METRICS[table.metric].better == "lower" else "↑"
    header = [f"{table.column} {arrow} on {table.data}", *(f"NFE {budget}" for budget in table.budgets)]
    body = [
        [label + (" †" if label in baselines else ""), *(cell_text(table, label, b) for b in table.budgets)]
        for label in table.labels
    ]
    if table.floor is not None:
        body.append(
            [f"{FLOOR} ({table.floor.samples:,} held out)", *[floor_text(table)] * len(table.budgets)]
        )
    text = tabulate(
        body,
        header,
        tablefmt="github",
        disable_numparse=True,
        colalign=("left", *("right",) * len(table.budgets)),
    )
    notes = list(table.notes)
    if any(label in baselines for label in table.labels):
        notes.append("† a baseline from the foundations.")
    return text + "\n\n" + "\n".join(notes)


def floor_text(table: Table) -> str:
    text, error = rounded(table.floor.value, table.floor.stderr)
    return f"{text} ± {error}" if error else text


def records(tables: Sequence[Table]) -> list[dict]:
    """One record a cell, for JSON and CSV."""
    found = []
    for one in tables:
        places = [(label, budget, entry) for (label, budget), entry in one.entries.items()]
        if one.floor is not None:
            places.append((FLOOR, 0, one.floor))
        for label, budget, entry in places:
            row = entry.rows[0]
            found.append(
                {
                    "method": row["method"],
                    "label": label,
                    "data": one.data,
                    "metric": row["metric"],
                    "budget": budget,
                    "nfe": entry.nfe,
                    "nfe_max": entry.nfe_max,
                    "value": entry.value,
                    "stderr": entry.stderr,
                    "bias_corrected": bias_corrected(entry.value, entry.replicates)
                    if one.metric == "fid"
                    else None,
                    "tied_with_best": label in one.best.get(budget, set()),
                    "samples": entry.samples,
                    "seeds": entry.seeds,
                    "protocol": row["protocol"],
                    "seconds": sum(r["seconds"] or 0.0 for r in entry.rows) / entry.seeds,
                    "train_images": row["train_images"],
                    "train_seconds": row["train_seconds"],
                    "parameters": row["parameters"],
                }
            )
    return found


def render(tables: Sequence[Table], format: str, baselines: Sequence[str] = ()) -> str:
    """All tables in one of FORMATS."""
    if format == "json":
        return json.dumps(records(tables), indent=1)
    if format == "csv":
        import pandas as pd

        return pd.DataFrame(records(tables)).to_csv(index=False)
    if format == "latex":
        return "\n\n".join(latex(table) for table in tables)
    return "\n\n".join(markdown(table, baselines) for table in tables)


def latex(table: Table) -> str:
    """A booktabs table."""
    escape = lambda s: (
        s.replace("&", r"\&")
        .replace("%", r"\%")
        .replace("_", r"\_")
        .replace("≤", r"$\leq$")
        .replace("±", r"$\pm$")
    )
    lines = [r"\begin{tabular}{l" + "r" * len(table.budgets) + "}", r"\toprule"]
    lines.append(" & ".join([escape(table.column), *map(str, table.budgets)]) + r" \\")
    lines.append(r"\midrule")
    lines += [
        " & ".join([escape(label), *(escape(cell_text(table, label, b, "latex")) for b in table.budgets)])
        + r" \\"
        for label in table.labels
    ]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def chosen(rows: Sequence[dict], category=None, data=None, nfe=None, protocol=None) -> list[dict]:
    """The rows that meet every condition given; floors go with their data."""
    from bench.selection import Selection, labelled

    names = labelled(Selection(category=category), registry.plugins()) | {FLOOR} if category else None
    return [
        row
        for row in rows
        if (names is None or row["method"] in names)
        and (data is None or row["data"] == data)
        and (nfe is None or row["budget"] in nfe or row["method"] == FLOOR)
        and (protocol is None or row["protocol"] == protocol)
    ]
