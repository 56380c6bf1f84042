"""Tables as files: everything that a results folder and the literature have, written by one command.

The committed ones are under results/tables; a test holds that they are what the rows give.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from bench import store
from bench.cache import whole
from bench.literature import surveys, views
from bench.reporting import sheets
from bench.reporting.rendering import heading, is_bound, plus_minus, record, render, rounded, set_apart
from bench.reporting.sheets import Cell, Sheet
from bench.reporting.tables import Reading, Table, tables

ENDINGS = {"md": "md", "latex": "tex", "csv": "csv", "json": "json"}
COST = ("seconds", "other networks", "derivatives", "images trained on")  # the middle ones a sample
LITERATURE = {  # file -> the sheets of the literature it holds
    "cao": lambda: surveys.sheets("cao"),
    "published-cifar10-nfe10": lambda: views.sheets("cifar10", [10], group=views.SAME_NETWORK),
}


def files(folder: Path, published: bool = False) -> dict[str, str]:
    """File name -> text: a wide and a long table for each data set and metric, and all cells as CSV and JSON.

    With `published` the literature's tables too, in all four formats.
    """
    found: dict[str, str] = {}
    measured = tables(store.read(folder), Reading(folder))
    for table in measured:
        name = re.sub(r"[^\w.-]+", "-", f"{table.data}-{'-'.join(table.columns)}").strip("-")
        for style in ("md", "latex"):
            found[f"{name}.{ENDINGS[style]}"] = render([table], style)
            found[f"{name}-long.{ENDINGS[style]}"] = sheets.render([long_sheet(table)], style)
    if measured:
        found |= {f"all.{style}": render(measured, style) for style in ("csv", "json")}
    if published:
        for name, make in LITERATURE.items():
            made = make()
            found |= {f"{name}.{end}": sheets.render(made, style) for style, end in ENDINGS.items()}
    return {name: text.rstrip("\n") + "\n" for name, text in found.items()}


def write(folder: Path, published: bool = False) -> list[Path]:
    """Write all files to `folder`/tables, take away those that no row gives any more; returns the paths."""
    place = folder / "tables"
    wanted = files(folder, published)
    for name in strangers(place, wanted):
        (place / name).unlink()
    for name, text in wanted.items():
        with whole(place / name) as part:
            part.write_text(text, encoding="utf-8", errors="backslashreplace")
    return [place / name for name in wanted]


def stale(folder: Path, published: bool = False) -> list[str]:
    """The files that are not what the rows give: missing, different, or of nothing."""
    place = folder / "tables"
    wanted = files(folder, published)
    differing = [
        name
        for name, text in wanted.items()
        if not (place / name).is_file() or (place / name).read_text(encoding="utf-8") != text
    ]
    return sorted([*differing, *strangers(place, wanted)])


def strangers(place: Path, wanted: dict[str, str]) -> list[str]:
    """Tables in the folder that are none of the wanted ones."""
    present = [path.name for path in place.iterdir()] if place.is_dir() else []
    return [name for name in present if name.endswith(tuple(ENDINGS.values())) and name not in wanted]


def long_sheet(table: Table) -> Sheet:
    """A line a cell: budget and measured NFE, the number, and what it has cost."""
    several = len(table.columns) > 1  # a single column stands in the heading
    lines, records = [], []
    for label in table.labels:
        for budget in table.budgets:
            entry = table.entries.get((label, budget))
            if entry is None:
                continue
            facts = record(table, label, budget, entry)
            text = ("≤" if is_bound(entry) else "") + plus_minus(*rounded(entry.value, entry.stderr))
            text = set_apart(table, label, budget, text)
            what = [label, *([entry.column] if several else []), str(budget)]
            nfe = (f"{entry.nfe:.4g}", f"{entry.nfe_max:.4g}")
            beside = (f"{facts['other_networks']:.4g}", f"{facts['derivatives']:.4g}")
            trained = f"{facts['train_images']:,}"
            cost = (f"{facts['seconds']:.1f}", *beside, trained, str(facts["seeds"]))
            value = Cell(text, best=facts["tied_with_best"])
            lines.append(tuple(map(as_cell, (*what, *nfe, value, *cost))))
            records.append(facts)
    what = ["method", *(["metric"] if several else []), "budget"]
    header = (*what, "NFE", "most", "value", *COST, "seeds")
    return Sheet(heading(table), header, tuple(lines), tuple(table.notes), tuple(records))


def as_cell(part: str | Cell) -> Cell:
    return part if isinstance(part, Cell) else Cell(part)


def long(found: Sequence[Table], style: str) -> str:
    """The long form of several tables in one of the formats."""
    return sheets.render([long_sheet(table) for table in found], style)
