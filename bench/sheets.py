"""Tables of texts with marks, and their rendering: Markdown, LaTeX (booktabs), CSV, JSON."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

FORMATS = ("md", "latex", "csv", "json")
PACKAGES = r"% needs \usepackage{booktabs} and \usepackage[normalem]{ulem}"
TEX = {
    "\\": r"\textbackslash{}",
    **{character: "\\" + character for character in "&%_#${}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    "≤": r"$\leq$",
    "±": r"$\pm$",
    "−": "$-$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "→": r"$\rightarrow$",
    "†": r"\dag{}",
    "η": r"$\eta$",
    "σ": r"$\sigma$",
    "Δ": r"$\Delta$",
    "–": "--",
    "—": "---",
    "≈": r"$\approx$",
    "×": r"$\times$",
}


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
    r"""A booktabs table with its caption, and its notes under it; a wrong value is struck by \sout."""

    def shown(cell: Cell) -> str:
        text = rf"\textbf{{{escaped(cell.text)}}}" if cell.best else escaped(cell.text)
        struck = rf"\sout{{{escaped(cell.printed)}}} " if cell.printed is not None else ""
        return struck + text + escaped(cell.mark)

    lines = [
        r"\begin{table}",
        rf"\caption{{{escaped(sheet.title)}}}",
        rf"\begin{{tabular}}{{{'l' * len(sheet.header)}}}",
        r"\toprule",
        " & ".join(map(escaped, sheet.header)) + r" \\",
        r"\midrule",
        *(" & ".join(map(shown, line)) + r" \\" for line in sheet.lines),
        r"\bottomrule",
        r"\end{tabular}",
        *(rf"\par\footnotesize {escaped(note)}" for note in sheet.notes),
        r"\end{table}",
    ]
    return "\n".join(lines)


def escaped(text: str) -> str:
    """Plain text for LaTeX."""
    return "".join(TEX.get(character, character) for character in text)
