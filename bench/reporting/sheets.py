"""Tables of texts with marks, and their rendering: Markdown, LaTeX, CSV, JSON."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from bench.reporting.typesetting import PACKAGES, escaped, typeset

FORMATS = ("md", "latex", "csv", "json")


@dataclass(frozen=True)
class Cell:
    """A text; `printed` is the wrong one it replaces, `mark` stands behind it, `best` sets it bold."""

    text: str
    printed: str | None = None
    mark: str = ""
    best: bool = False


@dataclass(frozen=True)
class Sheet:
    """A table to be read, and the same as records, one a number, for CSV and JSON."""

    title: str
    header: tuple[str, ...]
    lines: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    records: tuple[dict, ...] = ()


def render(sheets: Sequence[Sheet], style: str) -> str:
    """All sheets in one of FORMATS."""
    records = [record for sheet in sheets for record in sheet.records]
    if style == "json":
        return json.dumps(records, indent=1)
    if style == "csv":
        import pandas as pd

        return pd.DataFrame(records).to_csv(index=False).rstrip("\n")
    if style == "latex":
        return "\n\n".join([PACKAGES, *map(latex, sheets)])
    return "\n\n".join(map(markdown, sheets))


def markdown(sheet: Sheet) -> str:
    """A titled table in Markdown, its notes under it; a wrong value is struck before the right one."""
    from tabulate import tabulate

    def shown(cell: Cell) -> str:
        text = f"**{cell.text}**" if cell.best else cell.text
        struck = f"~~{cell.printed}~~ " if cell.printed is not None else ""
        return (struck + text + cell.mark).replace("|", "\\|")

    body = [[shown(cell) for cell in line] for line in sheet.lines]
    table = tabulate(body, sheet.header, tablefmt="github", disable_numparse=True)
    return "\n\n".join([f"### {sheet.title}", table, *(["  \n".join(sheet.notes)] if sheet.notes else [])])


def latex(sheet: Sheet) -> str:
    r"""A table with its caption, and its notes under it; a wrong value is struck by \sout."""

    def shown(cell: Cell) -> str:
        text = rf"\textbf{{{escaped(cell.text)}}}" if cell.best else escaped(cell.text)
        struck = rf"\sout{{{escaped(cell.printed)}}} " if cell.printed is not None else ""
        return struck + text + escaped(cell.mark)

    lines = [[shown(cell) for cell in line] for line in sheet.lines]
    return typeset(sheet.title, [escaped(name) for name in sheet.header], lines, sheet.notes)
