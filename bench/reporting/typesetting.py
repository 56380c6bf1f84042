"""Tables in LaTeX that fit the page: booktabs, in the largest type that does, long texts wrapped, many lines
over several pages.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

PACKAGES = r"% needs \usepackage{array,booktabs,longtable,pdflscape} and \usepackage[normalem]{ulem}"
PAGES = ((345, 550), (550, 345))  # points of width and height in LaTeX's article, upright and turned
# points a character takes, and a line
TYPES = {"small": (4.75, 11.0), "footnotesize": (4.45, 9.5), "scriptsize": (4.15, 8.0), "tiny": (3.6, 6.0)}
SMALLEST, LAST = "scriptsize", "tiny"  # to be read, and where nothing else fits
GAP, TIGHT = 3, 1.5  # points on either side of a column, and where nothing else fits
AROUND = 70  # points for a table's caption, its heading and its rules
NARROW = 16  # characters below which a text does not want to be wrapped
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


def escaped(text: str) -> str:
    """Plain text for LaTeX."""
    return "".join(TEX.get(character, character) for character in text)


@dataclass(frozen=True)
class Layout:
    """How a table is set: upright or turned, in which type, each column's width in characters and
    whether its texts wrap.
    """

    turned: bool
    size: str
    widths: list[float]
    wrapped: list[bool]


def typeset(
    title: str,
    header: Sequence[str],
    lines: Sequence[Sequence[str] | None],
    notes: Sequence[str],
    numbers: bool = False,
) -> str:
    """A table: its cells are LaTeX, title and notes plain text, None among the lines is a rule.

    With `numbers` all columns but the first are set to the right. Up to a page it floats, its notes in it.
    """
    body = [line for line in lines if line is not None]
    plan = layout(header, body)
    sides = ["r" if numbers and i else "l" for i in range(len(header))]
    columns = "".join(
        paragraph(width * TYPES[plan.size][0] / PAGES[plan.turned][0], side) if wraps else side
        for width, side, wraps in zip(plan.widths, sides, plan.wrapped)
    )
    columns = f"@{{}}{columns}@{{}}"
    head = [r"\toprule", row(header, plan), r"\midrule"]
    inner = [r"\midrule" if line is None else row(line, plan) for line in lines]
    style = rf"\{plan.size}\setlength{{\tabcolsep}}{{{TIGHT if plan.size == LAST else GAP}pt}}"
    under = [rf"\par\scriptsize\raggedright {escaped(note)}" for note in notes]
    under = [r"\par\smallskip", *under] if notes else []
    caption = rf"\caption{{{escaped(title)}}}"
    if height(body, plan) * TYPES[plan.size][1] + height_of(notes, plan) <= PAGES[plan.turned][1] - AROUND:
        table = [
            rf"\begin{{tabular}}{{{columns}}}",
            *head,
            *inner,
            r"\bottomrule",
            r"\end{tabular}",
        ]
        parts = [r"\begin{table}", rf"\centering{style}", caption, *table, *under, r"\end{table}"]
    else:
        heads = [caption + r"\\", *head, r"\endfirsthead", *head, r"\endhead", r"\bottomrule", r"\endfoot"]
        table = [rf"\begin{{longtable}}{{{columns}}}", *heads, *inner, r"\end{longtable}"]
        parts = [rf"\begingroup{style}", *table, *under, r"\par\endgroup"]
    return "\n".join([r"\begin{landscape}", *parts, r"\end{landscape}"] if plan.turned else parts)


def row(cells: Sequence[str], plan: Layout) -> str:
    """One line of a table; in columns that wrap, names may break where they are joined."""
    broken = [
        re.sub(r"(\\_|/)(?=\w)", r"\1\\allowbreak{}", cell) if wraps else cell
        for cell, wraps in zip(cells, plan.wrapped)
    ]
    return " & ".join(broken) + r" \\"


def layout(header: Sequence[str], body: Sequence[Sequence[str]]) -> Layout:
    """The first that fits: upright in one of TYPES, upright with wrapped texts, and then turned.

    A column is as wide as its longest cell or the longest word of its heading, which wraps for nothing.
    """
    cells = [[shown(line[i]) for line in body] for i in range(len(header))]
    headings = [max(map(extent, shown(name).split() or [""])) + 1 for name in header]
    needs = [max([heading, *map(extent, column)]) for heading, column in zip(headings, cells)]
    whole = [max(need, extent(shown(name))) for need, name in zip(needs, header)]
    floors = [max([heading, *map(longest_word, column)]) for heading, column in zip(headings, cells)]
    texts = [any(" " in cell for cell in column) and not all(map(is_number, column)) for column in cells]

    def plan(turned: bool, size: str, widths: Sequence[float]) -> Layout:
        wrapped = [w < need or extent(shown(name)) > w for w, need, name in zip(widths, needs, header)]
        return Layout(turned, size, list(widths), wrapped)

    for turned, (width, _) in enumerate(PAGES):
        room = width - 2 * GAP * (len(header) - 1)
        for size, (each, _) in TYPES.items():
            for fits in (whole, needs) if size != LAST else ():
                if sum(fits) * each <= room:
                    return plan(bool(turned), size, fits)
        widths = shared(needs, floors, texts, room / TYPES[SMALLEST][0])
        narrow = any(w < min(need, NARROW) for w, need in zip(widths, needs))
        if turned or (sum(widths) * TYPES[SMALLEST][0] <= room and not narrow):
            break
    if sum(widths) * TYPES[SMALLEST][0] > room:
        room = width - 2 * TIGHT * (len(header) - 1)
        return plan(bool(turned), LAST, shared(needs, floors, texts, room / TYPES[LAST][0]))
    return plan(bool(turned), SMALLEST, widths)


def shared(
    needs: Sequence[float], floors: Sequence[float], texts: Sequence[bool], room: float
) -> list[float]:
    """Widths, the texts' columns sharing what the others leave: each what it needs or an equal part."""
    widths = list(needs)
    order = sorted((i for i, text in enumerate(texts) if text), key=lambda i: needs[i])
    left = room - sum(need for need, text in zip(needs, texts) if not text)
    for count, i in enumerate(order):
        widths[i] = max(floors[i], min(needs[i], left / (len(order) - count)))
        left -= widths[i]
    return widths


def height_of(notes: Sequence[str], plan: Layout) -> float:
    """How many points the notes take, which are set in scriptsize."""
    each, line = TYPES["scriptsize"]
    width = PAGES[plan.turned][0]
    return sum(math.ceil(extent(note) * each / width) for note in notes) * line


def height(body: Sequence[Sequence[str]], plan: Layout) -> int:
    """How many lines of text the rows take."""
    return sum(
        max(math.ceil(extent(shown(cell)) / width) for cell, width in zip(["x", *line], [2.0, *plan.widths]))
        for line in body
    )


def extent(text: str) -> float:
    """The width of a text in characters; a capital is a third wider."""
    return len(text) + sum(map(str.isupper, text)) / 3


def longest_word(text: str) -> float:
    return max(map(extent, re.split(r"[ /_-]", text)))


def is_number(text: str) -> bool:
    """A value with its error, a bound, or a budget that is too small, which stay on one line; or none."""
    return re.fullmatch(r"\(?[x<]?[\d.,]+( x [\d.,]+)?\)?|-|failed|", text) is not None


def paragraph(share: float, side: str) -> str:
    """The specification of a column that wraps, with its share of the line's width."""
    ragged = r"\raggedleft" if side == "r" else r"\raggedright"
    return rf">{{{ragged}\arraybackslash}}p{{{share:.3f}\linewidth}}"


def shown(tex: str) -> str:
    """About what a reader sees of LaTeX: a symbol is a character, marks of type are none."""
    text = re.sub(r"\\(textbf|sout|arraybackslash)\b", "", tex)
    return re.sub(r"[{}$]", "", re.sub(r"\\([a-zA-Z]+|.)", "x", text))
