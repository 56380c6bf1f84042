"""The methods' cards in the report: paper, idea, formula, places in the surveys, parameters, order, cost."""

import ast
import re
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from bench import taxonomy
from bench.registry import Plugin
from bench.reporting.series import Column, Line, measured_order, place_of
from bench.selection import entry_of


class Account(NamedTuple):
    """What a plugin's module docstring says: its idea in two sentences, and the formulas it rests on."""

    idea: str
    formulas: tuple[tuple[str, str], ...]  # (the sentence that leads to it, its lines)


def account(plugin: Plugin) -> Account:
    """The idea and the formulas, by the docstring's form: prose flush left, formulas indented."""
    text = ast.get_docstring(ast.parse(plugin.path.read_text(encoding="utf-8"))) or ""
    paragraphs = [part.rstrip() for part in re.split(r"\n\s*\n", text) if part.strip()]
    flush = [not p.startswith((" ", "\t")) for p in paragraphs]
    sentences = []
    for i, paragraph in enumerate(paragraphs):
        if flush[i]:
            new = split_sentences(" ".join(paragraph.split()))
            goes_on = i > 0 and not paragraphs[i - 1].endswith((".", "!"))  # a sentence a formula stands in
            sentences += [s for s in new[goes_on:] if s.endswith((".", "!"))]
    formulas, lead = [], ""
    for paragraph, prose in zip(paragraphs, flush, strict=True):
        if not prose:
            formulas.append((lead, dedented(paragraph)))
            lead = ""
        else:
            last = split_sentences(" ".join(paragraph.split()))[-1]
            lead = "" if last in sentences[:2] else last
    return Account(" ".join(sentences[:2]), tuple(formulas))


def split_sentences(text: str) -> list[str]:
    """Sentences of English prose; 'eq. 13', 'e.g. this' and initials do not end one."""
    return re.split(
        r"(?<=[.!?])(?<!\beq\.)(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\bcf\.)(?<!\bapp\.)\s+(?=[A-Z])", text
    )


def dedented(block: str) -> str:
    lines = block.splitlines()
    margin = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    return "\n".join(line[margin:] for line in lines)


def cards(columns: Sequence[Column], known: dict[str, Plugin]) -> str:
    """A card for every method that has a number, in the order of the taxonomy."""
    lines: dict[str, list[tuple[Column, Line]]] = {}
    for column in columns:
        for line in column.lines:
            lines.setdefault(line.method, []).append((column, line))
    order = sorted(lines, key=lambda name: (known[name].folder if name in known else "~", name))
    return "\n".join(card(name, known.get(name), lines[name]) for name in order)


def card(name: str, plugin: Plugin | None, mine: Sequence[tuple[Column, Line]]) -> str:
    """One method's card, folded to its title."""
    title = plugin.title if plugin else name
    body = declared(plugin) if plugin else "<p>No file of this installation bears this name.</p>"
    return (
        f'<details class="card" id="method-{escape(name)}"><summary>{escape(title)} '
        f"<code>{escape(name)}</code></summary>\n{body}\n{cost(mine)}</details>"
    )


def declared(plugin: Plugin) -> str:
    """What the file says, and where the surveys put the method."""
    tree = taxonomy.load()
    entry = entry_of(plugin, tree)
    said = account(plugin)
    facts = [
        ("Paper", paper(plugin.paper) + (f" {escape(entry.title)} ({entry.year})" if entry else "")),
        ("Leaf", escape(": ".join(dict.fromkeys(place_of(plugin.folder))))),
        *[
            (escape(tree.surveys[survey].title), "<br>".join(map(escape, labels)))
            for survey, labels in (entry.labels.items() if entry else ())
            if labels
        ],
        ("Abilities", escape(", ".join(plugin.abilities))),
        ("Order claimed", escape(plugin.order or "no claim")),
        ("Least NFE", str(plugin.least)),
        ("Likelihood", escape(str(plugin.declared.get("likelihood") or "none"))),
        (
            "Parameters",
            "<br>".join(
                f"<code>{escape(p)}: {escape(str(kind))} = {escape(repr(value))}</code>"
                for p, (kind, value) in plugin.parameters.items()
                if p != "schedule" or value  # it has a process of its own
            ),
        ),
    ]
    formulas = "".join(
        (f'<p class="lead">{escape(lead)}</p>' if lead else "") + f"<pre>{escape(lines)}</pre>"
        for lead, lines in said.formulas
    )
    return f"<p>{escape(said.idea)}</p>{formulas}<dl>{pairs(facts)}</dl>"


def pairs(facts: Sequence[tuple[str, str]]) -> str:
    """<dt> and <dd> of facts that are HTML already."""
    return "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts)


def paper(text: str) -> str:
    """A link where the paper is an arXiv id or a DOI, and else plain text."""
    for pattern, place in (
        (r"arXiv:([\w./-]+)", "https://arxiv.org/abs/"),
        (r"doi:(10\.[\w./()-]+)", "https://doi.org/"),
    ):
        if found := re.fullmatch(pattern, text, re.IGNORECASE):
            return f'<a href="{place}{escape(found[1])}" rel="noreferrer">{escape(text)}</a>'
    return escape(text)


def cost(mine: Sequence[tuple[Column, Line]]) -> str:
    """Measured order and cost, a line for each data set and setting, at its greatest budget."""
    rows: dict[tuple[str, str], dict] = {}
    for column, line in mine:
        point = max(line.points, key=lambda p: p.budget)
        row = point.entry.rows[0]
        record = rows.setdefault((column.data, line.label), {"order": ""})
        order = measured_order(line) if column.table.metric == "distance" else None
        if order:
            record["order"] = f"{order[0]:.2f} ± {order[1]:.2f}"
        if row.ask == "sample" or "nfe" not in record:
            record |= {
                "nfe": f"{point.nfe:.4g} of {point.budget}",
                "seconds": "" if point.seconds is None else f"{point.seconds:.3g}",
                "memory": f"{row.memory:,.0f}" if row.memory else "",
                "extra": f"{row.extra:.3g}" if row.extra else "0",
                "images": f"{row.train_images:,}",
                "train": f"{row.train_seconds:,.0f}",
                "search": f"{row.train_rows:,}",
            }
    head = ("data", "setting", "order measured", "NFE", "s for 1,000", "peak MiB", "extra evaluations",
            "images trained on", "s of training", "evaluations of search")  # fmt: skip
    keys = ("order", "nfe", "seconds", "memory", "extra", "images", "train", "search")
    body = [[data, label, *(str(record[key]) for key in keys)] for (data, label), record in rows.items()]
    return table(head, body, "Order of convergence and cost, at the greatest budget measured")


def table(head: Sequence[str], body: Sequence[Sequence[object]], caption: str) -> str:
    """A plain HTML table; everything in it is escaped."""
    cells = lambda tag, row: "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in row)
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    rows = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in body)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table><caption>'
        f"{escape(caption)}</caption><thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
