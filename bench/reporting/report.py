"""The report: one HTML file with all that a results folder holds, which needs no network to be viewed."""

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

import click

from bench import store
from bench.cache import whole
from bench.reporting import samples
from bench.reporting.cards_in_html import cards, table
from bench.reporting.numbers import embedded, environments, failures, numbers
from bench.reporting.samples import Shelf
from bench.reporting.series import Column, columns_of, reading_of
from bench.row import Row

PARTS = Path(__file__).parent
PICTURES = 2_400_000  # bytes of PNG at most, which as base64 are 3.2 MB of the page's 5


def write(folder: Path, out: Path) -> Path:
    """The report of a results folder, written whole to `out`; ClickException where there are no rows."""
    text = report(folder)
    with whole(out) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")  # rows may hold what is no text
    return out


def report(folder: Path) -> str:
    """The report's HTML."""
    rows = store.read(folder)
    reading = reading_of(folder)
    columns = columns_of(rows, reading)
    if not columns and not rows:
        raise click.ClickException(f"{folder} holds no rows; `bench run --results {folder}` measures some.")
    script = "".join((PARTS / name).read_text(encoding="utf-8") for name in ("table.js", "curves.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Template((PARTS / "page.html").read_text(encoding="utf-8")).substitute(
        style=(PARTS / "page.css").read_text(encoding="utf-8"),
        script=script,
        digest=digest,  # the page's policy runs this script and no other
        summary=summary(rows, columns),
        numbers=embedded(numbers(columns, rows, reading.known)),
        strips=strips(samples.shelves(columns, folder)),
        cards=cards(columns, reading.known),
        protocols=protocols(columns, folder),
        environments=environment_table(rows),
        failures=failure_table(rows),
    )


def summary(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """One sentence on what there is."""
    methods = {line.method for column in columns for line in column.lines}
    data = sorted({column.data for column in columns})
    count = sum(len(line.points) for column in columns for line in column.lines)
    days = sorted({row.time[:10] for row in rows if row.time})
    when = f" Measured {' to '.join(dict.fromkeys((days[0], days[-1])))}." if days else ""
    return escape(
        f"{count:,} numbers on {len(methods)} methods and {len(data)} data sets: {', '.join(data)}.{when}"
    )


def strips(shelves: Sequence[Shelf]) -> str:
    """The sample grids as pictures in the page: of all budgets or one, and as many as PICTURES allows."""
    for shown in (shelves, in_the_middle(shelves)):
        for count in (16, 8) if shown is shelves else (16, 8, 4, 2):
            if sum(weight(shelf, count) for shelf in shown) <= PICTURES:
                return "\n".join(grid(shelf, count, opened=i == 0) for i, shelf in enumerate(shown))
    return "<p>They are too many for this page; <code>bench plot --kind samples</code> draws them.</p>"


def in_the_middle(shelves: Sequence[Shelf]) -> list[Shelf]:
    """Of every data set and protocol the shelf of the middle budget."""
    groups: dict[tuple, list[Shelf]] = {}
    for shelf in shelves:
        groups.setdefault((shelf.data, shelf.mark), []).append(shelf)
    return [group[len(group) // 2] for group in groups.values()]


def weight(shelf: Shelf, count: int) -> int:
    """About how many bytes the strips of a shelf take, by its first and last."""
    ends = [
        samples.png(samples.strip(kept.images, shelf.top, count)) for kept in (shelf.kept[0], shelf.kept[-1])
    ]
    return sum(map(len, ends)) * len(shelf.kept) // 2


def grid(shelf: Shelf, count: int, opened: bool) -> str:
    """The strips of one data set at one budget; blocks of one start together."""
    name = f"{shelf.data}, NFE {shelf.budget}" + (f", protocol {shelf.mark}" if shelf.mark else "")
    parts, start = [], None
    for kept in shelf.kept:
        if kept.start != start:
            start = kept.start
            parts.append(f'<p class="start">Start: {escape(start or "not recorded")}</p>')
        shown = min(count, len(kept.images))
        height, width = kept.images.shape[2], shown * (kept.images.shape[3] + 1) - 1
        file = samples.png(samples.strip(kept.images, shelf.top, count))
        label, data = escape(kept.label), base64.b64encode(file).decode()
        parts.append(
            f'<figure><figcaption><a href="#method-{escape(kept.method)}">{label}</a></figcaption>'
            f'<img src="data:image/png;base64,{data}" width="{width}" height="{height}" '
            f'style="--share:{shown / count:g}" alt="{shown} samples of {label}, {escape(name)}"></figure>'
        )
    start_tag = f'<details class="grid"{" open" if opened else ""}>'
    return f"{start_tag}<summary>{escape(name)}</summary>{''.join(parts)}</details>"


def protocols(columns: Sequence[Column], folder: Path) -> str:
    """What every fingerprint stands for, and the columns measured under it."""
    parts = []
    for fingerprint in dict.fromkeys(column.protocol for column in columns):
        mine = [column for column in columns if column.protocol == fingerprint]
        facts = store.protocol(folder, fingerprint) or {"protocol": "not on record in this folder"}
        names = ", ".join(dict.fromkeys(column.name for column in mine))
        heading = f"{fingerprint}: {names} on {', '.join(dict.fromkeys(column.data for column in mine))}"
        parts.append(
            f'<details id="protocol-{escape(fingerprint)}"><summary>{escape(heading)}</summary>'
            + table(
                ("fact", "value"), sorted((k, str(v)) for k, v in facts.items()), f"Protocol {fingerprint}"
            )
            + "</details>"
        )
    return "\n".join(parts)


def environment_table(rows: Sequence[Row]) -> str:
    found = environments(rows)
    names = list(dict.fromkeys(name for record in found for name in record))
    return table(
        names, [[record.get(name, "") for name in names] for record in found], "Environments of the rows"
    )


def failure_table(rows: Sequence[Row]) -> str:
    found = [(r.method, r.data, r.ask, r.budget, r.seed, r.error) for r in failures(rows)]
    if not found:
        return "<p>Nothing failed.</p>"
    return table(("method", "data", "asked for", "NFE", "seed", "why"), found, "Cells that failed")
