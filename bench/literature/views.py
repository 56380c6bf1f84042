"""The literature's numbers at matched NFE, a table for each network that several methods were measured on.

On one trained network a comparison at matched NFE compares samplers only. Rows that name no such network
stand in a table of their own, where nothing is best: there the networks differ with the samplers.
"""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import click

from bench import taxonomy
from bench.literature.published import data_name, load, select
from bench.metrics.names import METRICS
from bench.reporting.sheets import Cell, Sheet

if TYPE_CHECKING:
    from pandas import DataFrame

SAME_NETWORK = "same-network"
NOISE = 0.013  # a gap in FID below this share says nothing: another draw or training seed moves it as far
NUMBERS = ("fid", "is", "nll")
TITLES = {"fid": "FID ↓", "is": "IS ↑", "nll": "NLL ↓"}
MARKS = {
    "?": "?: nobody has checked this number against its source.",
    "!": "!: the source misprints this; the note tells what is meant.",
}


def sheets(
    data: str | None = None,
    nfe: Sequence[int] | None = None,
    category: str | None = None,
    methods: Collection[str] = (),
    group: str | None = None,
) -> list[Sheet]:
    """The published rows that meet every condition, a sheet for each data set and network.

    `group` is a network's name, or SAME_NETWORK for all networks that several lines share. Several budgets
    give wide tables (method x NFE, one a metric), otherwise each line has its NFE. A survey's own quotes are
    left out: they stand in `surveytables`. Raises click.ClickException where nothing is left.
    """
    everything = load()
    named = None if group in (None, SAME_NETWORK) else group
    rows = select(everything, data, nfe, methods or None, named)
    rows = rows[rows["kind"] != "survey_table"]
    if category is not None:
        rows = rows[rows["method"].isin(taxonomy.load().select(category=category))]
    if group == SAME_NETWORK:
        lines = rows.assign(line=rows["method"] + "/" + rows["variant"].fillna(""))
        rows = rows[lines.groupby(["data", "network_group"])["line"].transform("nunique") > 1]
    if rows.empty:
        raise click.ClickException(nothing(everything, data))
    found = []
    for (_, network), members in rows.groupby(["dataset", "network_group"], dropna=False, sort=False):
        network = network if isinstance(network, str) else None
        wide = nfe is not None and len(nfe) > 1
        found += wide_sheets(members, network) if wide else [long_sheet(members, network)]
    return sorted(found, key=lambda sheet: "other networks" in sheet.title)  # keeps the order otherwise


def nothing(everything: "DataFrame", data: str | None) -> str:
    """Why a selection is empty, and what would not be."""
    known = list(everything["dataset"].drop_duplicates())
    if data is not None and data_name(data) not in {data_name(name) for name in known}:
        return f"the literature has no numbers on {data}; it has on {', '.join(known)}."
    return "no published number meets all these conditions; leave one out, or see `bench published`."


def overview() -> list[Sheet]:
    """What there is: the data sets, and the networks that several methods were measured on."""
    rows = load()
    plain = rows[rows["kind"] != "survey_table"]
    sets = [
        (name, len(part), part["method"].nunique(), part["network_group"].nunique())
        for name, part in plain.groupby("dataset", sort=False)
    ]
    networks = [
        (
            *(name, part["dataset"].iloc[0], part["base_model"].mode().iat[0], part["method"].nunique()),
            *(len(part), f"{part['nfe'].min()} to {part['nfe'].max()}"),
        )
        for name, part in plain.groupby("network_group")
    ]
    count = f"{len(rows):,} numbers, {len(rows) - len(plain)} of them as Cao et al. print them (--survey cao)"
    return [
        summary(f"Published: {count}", ("data", "numbers", "methods", "shared networks"), sets),
        summary("Shared networks", ("group", "data", "network", "methods", "numbers", "NFE"), networks),
    ]


def summary(title: str, header: tuple[str, ...], lines: Sequence[tuple]) -> Sheet:
    records = tuple(dict(zip(header, line)) for line in lines)
    return Sheet(title, header, tuple(tuple(Cell(str(part)) for part in line) for line in lines), (), records)


def long_sheet(rows: "DataFrame", network: str | None) -> Sheet:
    """A line a published result: its numbers, who measured, and where it is printed."""
    rows = rows.sort_values(["nfe", "fid", "nll", "is"])
    shown = [name for name in NUMBERS if rows[name].notna().any()]
    best = {name: best_of(rows, name) if network else set() for name in shown}
    footnotes = footnotes_of(rows)
    lines = []
    for index, row in rows.iterrows():
        numbers = [cell_of(row, name, index in best[name]) for name in shown]
        kind = [Cell(text(row["nll_type"]))] if "nll" in shown else []
        place = [] if network else [Cell(text(row["base_model"]))]
        who = [Cell(row["kind"]), source_of(row, footnotes)]
        label = [Cell(name_of(row["method"])), Cell(variant(row)), Cell(text(row["nfe"]) or "not stated")]
        lines.append((*label, *numbers, *kind, *place, *who))
    header = ("method", "variant", "NFE", *(TITLES[name] for name in shown))
    header += (("NLL of",) if "nll" in shown else ()) + (() if network else ("network",))
    return Sheet(
        title_of(rows, network),
        (*header, "measured as", "source"),
        tuple(lines),
        notes_of(rows, network, any(best.values())),
        tuple(record(row) for _, row in rows.iterrows()),
    )


def wide_sheets(rows: "DataFrame", network: str | None) -> list[Sheet]:
    """Method x NFE, a sheet for each metric; kinds of likelihood never share one."""
    found = []
    for metric in NUMBERS:
        have = rows[rows[metric].notna()]
        for kind, part in have.groupby(have["nll_type"].fillna("") if metric == "nll" else "dataset"):
            budgets = sorted(part["nfe"].dropna().unique())
            best = best_of(part, metric) if network else set()
            footnotes = footnotes_of(part)
            keys = ["method", "variant", "base_model", "source", "kind", "conditional"]
            lines = []
            for _, line in part.groupby(keys, dropna=False, sort=False):
                first = line.iloc[0]
                cells = {row["nfe"]: cell_of(row, metric, index in best) for index, row in line.iterrows()}
                label = [Cell(name_of(first["method"])), Cell(variant(first))]
                label += [] if network else [Cell(text(first["base_model"]))]
                numbers = [cells.get(budget, Cell("-")) for budget in budgets]
                lines.append((*label, *numbers, source_of(first, footnotes)))
            header = ("method", "variant", *(() if network else ("network",)), *(f"NFE {b}" for b in budgets))
            suffix = f" ({kind or 'kind not stated'})" if metric == "nll" else ""
            found.append(
                Sheet(
                    f"{title_of(part, network)}: {TITLES[metric]}{suffix}",
                    (*header, "source"),
                    tuple(lines),
                    notes_of(part, network, bool(best)),
                    tuple(record(row) for _, row in part.iterrows()),
                )
            )
    return found


def best_of(rows: "DataFrame", metric: str) -> set:
    """The indices of the best verified number at each NFE and all within NOISE of it; a lone one is none."""
    sound = rows[rows[metric].notna() & rows["nfe"].notna() & (rows["mark"] == "")]
    kinds = sound["nll_type"].fillna("") if metric == "nll" else sound["dataset"]
    lower = METRICS[metric].better == "lower"
    found = set()
    for _, column in sound.groupby([sound["nfe"], kinds])[metric]:
        if len(column) > 1:
            near = column <= column.min() * (1 + NOISE) if lower else column >= column.max() * (1 - NOISE)
            found |= set(column.index[near])
    return found


def title_of(rows: "DataFrame", network: str | None) -> str:
    budgets = rows["nfe"].dropna().unique()
    at = f" at {budgets[0]} NFE" if len(budgets) == 1 else ""
    where = f"{rows['base_model'].mode().iat[0]} [{network}]" if network else "other networks"
    return f"{rows['dataset'].iloc[0]}{at}: {where}"


def notes_of(rows: "DataFrame", network: str | None, bold: bool) -> tuple[str, ...]:
    """What a reader must know, a sentence each."""
    notes = []
    if network:
        notes.append("All were measured on the same network; NFE is as each paper counts it.")
    else:
        notes.append("Networks differ here with the samplers, so that nothing is compared.")
    if bold:
        notes.append(f"Bold: the best verified number at its NFE, and all within {NOISE:.1%} of it.")
    notes += [note for mark, note in MARKS.items() if rows["mark"].str.contains(mark, regex=False).any()]
    return (*notes, *(f"[{count}] {note}." for note, count in footnotes_of(rows).items()))


def footnotes_of(rows: "DataFrame") -> dict[str, int]:
    """What the rows' notes say, numbered as they come."""
    return {note: count for count, note in enumerate(rows["note"].dropna().unique(), 1)}


def source_of(row, footnotes: dict[str, int]) -> Cell:
    """Where a number is printed, and the footnote that goes with it."""
    return Cell(row["source"] + (f" [{footnotes[row['note']]}]" if text(row["note"]) else ""))


def cell_of(row, metric: str, best: bool) -> Cell:
    shown = number(row[metric])
    return Cell(shown, mark="" if shown == "-" else row["mark"], best=best)


def name_of(method: str) -> str:
    """An entry's name without what its brackets explain."""
    return taxonomy.load().entries[method].name.partition(" (")[0]


def variant(row) -> str:
    """The row's variant, and whether its network was given the class."""
    conditional = row["conditional"] is True or str(row["conditional"]) == "True"
    parts = [text(row["variant"]), "class-conditional" if conditional else ""]
    return ", ".join(part for part in parts if part)


def number(value: float) -> str:
    """A number in the digits it was printed with, '-' where there is none."""
    return "-" if value != value else f"{value:.2f}" if round(value, 2) == value else f"{value:g}"


def text(value) -> str:
    """The text of a field, empty where it has none."""
    return "" if value is None or str(value) in ("nan", "<NA>", "None") else str(value)


def record(row) -> dict:
    """A published row as plain values, None where it has none."""
    return {name: plain(value) for name, value in row.items()}


def plain(value):
    """A field as JSON has it; an empty text stays one, a missing value is None."""
    if isinstance(value, str) or text(value):
        return value.item() if hasattr(value, "item") else value
    return None
