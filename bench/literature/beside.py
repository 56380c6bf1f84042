"""The literature's number beside the measured one: their difference, and the reasons why they may differ.

A pair shares method, data and NFE, and hardly ever the protocol: the network is another, features are taken
from other code, samples are fewer. As long as one such reason stands, nothing is called equal.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import store, taxonomy
from bench.literature import published
from bench.literature.views import MARKS, name_of, number, record, text, variant
from bench.metrics.names import parse
from bench.reporting.entries import Entry
from bench.reporting.rendering import cell as cell_text
from bench.reporting.sheets import Cell, Sheet
from bench.reporting.tables import LIKELIHOODS, Reading, Table
from bench.selection import entry_of

PUBLISHED = ("fid", "is", "nll")
SAMPLES = 50_000  # the field's standard for FID and IS
CONVENTIONS = {  # entry -> how its papers count evaluations, where that is not one a step
    "edm": "Heun's method spends 2 N - 1 on N steps",
    "ggf": "a step costs 2, accepted or rejected",
    "score_sde": "a predictor-corrector step costs 2",
    "pndm": "the warm-up adds 1 (S-PNDM) or 9 (F-PNDM)",
    "dpm_solver": "a single-step solver of order k uses multiples of k",
}

HEADER = (
    *("method", "NFE", "ours", "published", "difference", "verdict", "because of"),
    *("variant", "network", "source"),
)
PUBLISHED_AT = HEADER.index("published")


@dataclass(frozen=True)
class Reason:
    """A part of the protocol in which the two differ, or in which theirs is not stated."""

    name: str
    ours: str
    theirs: str


@dataclass(frozen=True)
class Pair:
    """One measured entry and one published row of its method, data and NFE."""

    label: str
    budget: int
    ours: Entry
    theirs: object  # the row of published.csv
    value: float
    why: tuple[Reason, ...]


def beside(tables: Sequence[Table], reading: Reading) -> list[Sheet | str]:
    """A sheet for each table that the literature has numbers for; for the others a sentence that says so."""
    rows = published.load()
    rows = rows[rows["kind"] != "survey_table"]
    found: list[Sheet | str] = []
    for data in dict.fromkeys(table.data for table in tables):
        here = published.select(rows, data)
        if here.empty:
            found.append(f"The literature has no numbers on {data}: nothing stands beside ours.")
            continue
        for table in tables:
            if table.data == data and table.metric in PUBLISHED:
                found.append(sheet(table, here, reading))
    return found


def sheet(table: Table, rows, reading: Reading) -> Sheet | str:
    """Ours and theirs, a line a pair, in the order of the table."""
    columns = ", ".join(table.columns)
    pairs = list(pairs_of(table, rows, reading))
    if not pairs:
        return f"The literature has no {columns} of these methods on {table.data} at these NFE."
    lines = [
        tuple(
            Cell(part, mark=pair.theirs["mark"] if place == PUBLISHED_AT else "")
            for place, part in enumerate(line_of(table, pair))
        )
        for pair in pairs
    ]
    notes = explained(pairs)
    if "inception" in columns:
        notes.append("Inception networks differ between code bases; ours is torch-fidelity's.")
    notes += [note for mark, note in MARKS.items() if any(mark in pair.theirs["mark"] for pair in pairs)]
    notes.append("`bench show METHOD` prints the command for the published setting.")
    title = f"{columns} on {table.data}: ours beside the literature's"
    return Sheet(title, HEADER, tuple(lines), tuple(notes), tuple(record_of(table, pair) for pair in pairs))


def pairs_of(table: Table, rows, reading: Reading) -> Iterator[Pair]:
    """Each entry of the table with each published number of its method at its NFE."""
    tree = taxonomy.load()
    for label in table.labels:
        for budget in table.budgets:
            entry = table.entries.get((label, budget))
            plugin = reading.known.get(entry.rows[0].method) if entry else None
            known = entry_of(plugin, tree) if plugin else None
            if known is not None:
                here = rows["method"].eq(known.id) & rows["nfe"].eq(budget) & rows[table.metric].notna()
                for _, row in rows[here].sort_values(table.metric).iterrows():
                    why = tuple(why_they_differ(entry, row, reading.folder))
                    yield Pair(label, budget, entry, row, float(row[table.metric]), why)


def line_of(table: Table, pair: Pair) -> tuple[str, ...]:
    """The texts of a line, in the order of HEADER."""
    return (
        pair.label,
        str(pair.budget),
        cell_text(table, pair.label, pair.budget, bold="{}"),
        number(pair.value),
        f"{pair.ours.value - pair.value:+.2f}",
        verdict(pair.ours, pair.value, pair.why),
        ", ".join(reason.name for reason in pair.why),
        ", ".join(filter(None, (variant(pair.theirs), text(pair.theirs["note"]))))
        or name_of(pair.theirs["method"]),
        text(pair.theirs["base_model"]) or "not stated",
        pair.theirs["source"],
    )


def record_of(table: Table, pair: Pair) -> dict:
    return {
        "method": pair.ours.rows[0].method,
        "label": pair.label,
        "data": table.data,
        "metric": pair.ours.column,
        "budget": pair.budget,
        "nfe": pair.ours.nfe,
        "value": pair.ours.value,
        "stderr": pair.ours.stderr,
        "published": pair.value,
        "difference": pair.ours.value - pair.value,
        "verdict": verdict(pair.ours, pair.value, pair.why),
        "reasons": "; ".join(f"{why.name}: ours {why.ours}, theirs {why.theirs}" for why in pair.why),
    } | {f"published_{name}": part for name, part in record(pair.theirs).items()}


def explained(pairs: Sequence[Pair]) -> list[str]:
    """What each reason means, a note each; theirs only where it is the same in all lines."""
    notes = []
    for name in dict.fromkeys(reason.name for pair in pairs for reason in pair.why):
        reasons = [reason for pair in pairs for reason in pair.why if reason.name == name]
        ours, theirs = (list(dict.fromkeys(side)) for side in zip(*((r.ours, r.theirs) for r in reasons)))
        notes.append(
            f"{name}: ours {' or '.join(ours)}; theirs {theirs[0] if len(theirs) == 1 else 'as in the line'}."
        )
    return notes


def verdict(ours: Entry, theirs: float, reasons: Sequence[Reason]) -> str:
    """What the pair allows to be said; never that it is equal."""
    if reasons:
        return "not comparable"
    return "within 2 standard errors" if abs(ours.value - theirs) <= 2 * ours.stderr else "differs"


def why_they_differ(ours: Entry, theirs, folder: Path) -> Iterator[Reason]:
    """The parts of the two protocols that differ or cannot be held against each other."""
    row = ours.rows[0]
    metric, qualifier = parse(ours.column)
    facts = store.protocol(folder, row.protocol)
    if not same_network(row.base, text(theirs["network_group"])):
        base = f"{row.base or 'its own'} {row.base_id.removeprefix('exact:')[:8]}".strip()
        yield Reason("network", base, text(theirs["base_model"]) or "not stated")
    if metric in LIKELIHOODS:
        kind = f"{qualifier} on the {facts.get('split', 'test')} split"
        yield Reason("likelihood", kind, text(theirs["nll_type"]) or "not stated")
    else:
        if qualifier != "inception":
            yield Reason("extractor", str(qualifier), "an Inception network")
        if ours.samples != SAMPLES:
            yield Reason("samples", f"{ours.samples:,}", f"{SAMPLES:,} by the field's standard")
        if facts.get("reference", "train") != "train":
            yield Reason("reference", facts["reference"], "the training images")
    if text(theirs["variant"]):
        settings = [f"{name}={value}" for name, value in sorted(row.hyper_parameters.items())]
        yield Reason("grid", f"{row.method} with {', '.join(settings) or 'defaults'}", theirs["variant"])
    convention = CONVENTIONS.get(theirs["method"])
    if convention or abs(ours.nfe - row.budget) > 0.5:
        spent = f"measured {ours.nfe:.4g} of {row.budget}"
        yield Reason("NFE", spent, convention or f"counted as {row.budget} by the paper")


def same_network(base: str, group: str) -> bool:
    """Whether a base was given as a file or folder that bears the name of the literature's network."""
    return bool(group) and group in re.split(r"[/\\.:]", base)
