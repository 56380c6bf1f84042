"""The surveys' own comparison tables, cell by cell as printed, with the known errata struck and corrected.

Cao et al. (arXiv 2209.02646 v10, appendix C) print four of them. Their numbers are quotes from many papers
on many networks: they are kept to be checked, not to compare methods by.
"""

import re
from collections.abc import Collection
from typing import TYPE_CHECKING

import click

from bench import taxonomy
from bench.literature.published import load, select
from bench.literature.views import MARKS, TITLES, nothing, number, record, text
from bench.reporting.sheets import Cell, Sheet

if TYPE_CHECKING:
    from pandas import DataFrame

SOURCES = {"cao": "arXiv 2209.02646"}
AUTHORS = {"arXiv 2209.02646": "Cao et al."}
COLUMNS = ("name", "nfe", "fid", "is", "nll")
HEADER = {"name": "method", "nfe": "NFE"} | TITLES
SOFT = "(soft truncation)"

# (data, name and NFE as printed) -> what should stand in its columns; each row's note says why
RIGHT: dict[tuple[str, str, int], dict[str, str]] = {
    ("celeba64", "NCSN++", 1000): {"name": f"UNCSN++ {SOFT}"},
    ("celeba64", "DDPM++", 1000): {"name": f"UDDPM++ {SOFT}"},
    ("cifar10", "NCSN++", 1000): {"name": f"UNCSN++ {SOFT}"},
    ("cifar10", "DDPM++", 1000): {"name": f"UDDPM++ {SOFT}"},
    ("cifar10", "sub-VP SDE", 2000): {"nll": "2.99"},
    ("cifar10", "GGF VP", 1000): {"name": "Euler-Maruyama VP"},
    ("cifar10", "GGF VE", 1000): {"name": "Euler-Maruyama VE"},
    ("cifar10", "GGF VE", 180): {"nfe": "270"},
    ("cifar10", "EDM", 35): {"fid": "1.97"},
    ("imagenet64", "Efficient Sampling", 256): {"fid": "-", "nll": "3.87"},
    ("cifar10", "Efficient Sampling", 1000): {"nfe": "4000", "fid": "-", "nll": "2.94"},
    ("cifar10", "Efficient Sampling", 64): {"fid": "-", "nll": "3.08"},
    ("cifar10", "Efficient Sampling", 16): {"fid": "-", "nll": "3.41"},
}


def sheets(
    survey: str,
    data: str | None = None,
    nfe: Collection[int] | None = None,
    category: str | None = None,
    methods: Collection[str] = (),
) -> list[Sheet]:
    """A survey's tables in its own order, limited to the rows that meet every condition.

    Raises click.BadParameter for a survey that is unknown or prints no tables, and click.ClickException
    where no row is left.
    """
    chosen = taxonomy.load().survey(survey)
    if chosen.id not in SOURCES:
        raise click.BadParameter(f"{chosen.id} prints no table of numbers; {', '.join(SOURCES)} does.")
    everything = load()
    rows = select(everything, data, nfe, methods or None)
    rows = rows[(rows["kind"] == "survey_table") & rows["source"].str.startswith(SOURCES[chosen.id])]
    if category is not None:
        rows = rows[rows["method"].isin(taxonomy.load().select(category=category))]
    if rows.empty:
        raise click.ClickException(nothing(everything, data))
    return [sheet(source, part) for source, part in rows.groupby("source", sort=True)]


def sheet(source: str, rows: "DataFrame") -> Sheet:
    """One printed table; columns that it leaves empty are not there."""
    pairs = [(printed(row), right(row)) for _, row in rows.iterrows()]
    shown = [name for name in COLUMNS if any(pair[side][name] != "-" for pair in pairs for side in (0, 1))]
    footnotes: dict[str, int] = {}
    lines = []
    for (was, should), (_, row) in zip(pairs, rows.iterrows()):
        footnote = footnotes.setdefault(note_of(row), len(footnotes) + 1) if note_of(row) else None
        end = Cell(f"[{footnote}]" if footnote else "", mark=row["mark"])
        lines.append((*(corrected(was[name], should[name]) for name in shown), end))
    wrong = int(rows["survey_error"].sum())
    notes = [f"[{count}] {note}." for note, count in footnotes.items()]
    notes += [note for mark, note in MARKS.items() if rows["mark"].str.contains(mark, regex=False).any()]
    notes.insert(0, f"{source}, as printed; {wrong} {'erratum' if wrong == 1 else 'errata'}, struck.")
    records = [
        record(row)
        | {f"printed_{name}": value for name, value in was.items()}
        | {f"right_{name}": value for name, value in should.items()}
        for (was, should), (_, row) in zip(pairs, rows.iterrows())
    ]
    return Sheet(
        f"{rows['dataset'].iloc[0]}: {AUTHORS[source.partition(' v')[0]]}, {source[source.rfind('Table') :]}",
        (*(HEADER[name] for name in shown), "note"),
        tuple(lines),
        tuple(notes),
        tuple(records),
    )


def corrected(was: str, should: str) -> Cell:
    """The right text behind the struck one; where nothing was printed, with a mark of its own."""
    if was == should:
        return Cell(was)
    return Cell(should, mark="!") if was == "-" else Cell(should, printed=was)


def printed(row) -> dict[str, str]:
    """What the survey prints, by column."""
    found = {name: number(row[name]) for name in TITLES}
    for name, other in (("fid", "nll"), ("nll", "fid")):
        if text(row[f"{name}_as_printed"]):
            value = number(row[f"{name}_as_printed"])
            found |= {name: value} | ({other: "-"} if found[other] == value else {})
    return {"name": printed_name(row), "nfe": text(row["nfe"]) or "-"} | found


def right(row) -> dict[str, str]:
    """What should stand there; a row without a known erratum stands as it is."""
    if not row["survey_error"]:
        return printed(row)
    return printed(row) | RIGHT[row["data"], printed_name(row), int(row["nfe"])]


def printed_name(row) -> str:
    """The method's name in the survey: "NCSN++" where ours says "... (row printed as NCSN++)"."""
    match = re.search(r"row printed as (.+)\)", row["variant"])
    return match[1] if match else row["variant"]


def note_of(row) -> str:
    return re.sub(r"^Cao error: ", "Erratum: ", text(row["note"])).rstrip(".")
