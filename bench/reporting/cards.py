"""A method's card: what its file declares, its idea and formula, its place in the surveys, what it costs, and
how to measure it as the literature did.
"""

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

from bench import registry, taxonomy
from bench.data import names as data_names
from bench.literature import published
from bench.literature.views import number, text
from bench.registry import Plugin
from bench.selection import entry_of

if TYPE_CHECKING:
    from pandas import DataFrame

SAMPLES = 50_000  # the field's standard for FID


def card(name: str, plugin_files: tuple[Path, ...] = ()) -> str:
    """The card of a method, as text; the file is read, not run."""
    plugin = registry.find(name, registry.plugins(tuple(plugin_files)))
    entry = entry_of(plugin, taxonomy.load())
    sentences, formula = idea(plugin.path.read_text(encoding="utf-8"))
    lines = [plugin.title, ""]
    lines += [f"  {sentence}" for sentence in sentences]
    lines += ["", *(f"      {line}" for line in formula)] if formula else []
    lines += [
        "",
        f"  file       {plugin.path}",
        f"  paper      {plugin.paper}" + (f", {entry.title} ({entry.year})" if entry else ""),
        f"  leaf       {plugin.folder}",
        f"  data       {', '.join(plugin.kinds)}",
        f"  can        {', '.join(plugin.abilities)}",
    ]
    for label, value in (
        ("order", plugin.order),
        ("least NFE", plugin.declared.get("least")),
        ("likelihood", plugin.declared.get("likelihood")),
    ):
        if value:
            lines.append(f"  {label:10} {value}")
    lines.append(f"  cost       {cost(plugin)}")
    lines += ["  parameters"] + [
        f"    {p}: {kind} = {value!r}"
        for p, (kind, value) in plugin.parameters.items()
        if p != "schedule" or value
    ]
    if entry is not None:
        lines += ["  surveys"] + [
            f"    {survey}: {'; '.join(entry.labels.get(survey, ())) or 'not listed'}"
            for survey in taxonomy.load().surveys
        ]
        rows = published.load()
        rows = rows[(rows["method"] == entry.id) & (rows["kind"] != "survey_table")]
        lines += literature(rows, plugin.name) + published_setting(plugin, rows)
    return "\n".join(lines)


def idea(source: str) -> tuple[list[str], list[str]]:
    """The first two sentences of a module's docstring, and the lines of its first formula.

    A formula is an indented paragraph; the sentence that leads to it ends with a colon here.
    """
    paragraphs = (ast.get_docstring(ast.parse(source)) or "").split("\n\n")
    sentences: list[str] = []
    for paragraph in paragraphs:
        if paragraph and not paragraph.startswith(" "):
            prose = " ".join(paragraph.split())
            prose = prose if prose.endswith((".", ":")) else prose.rstrip(",;") + ":"
            sentences += [part.strip() for part in re.findall(r".+?\.(?=\s+[A-Z]|$)|.+$", prose)]
    formula = next((part.splitlines() for part in paragraphs if part.startswith(" ")), [])
    return sentences[:2], [line.strip() for line in formula]


def cost(plugin: Plugin) -> str:
    """What a method spends besides its evaluations, and how those are bounded."""
    parts = []
    if "train" in plugin.abilities:
        once = "once for each NFE" if plugin.declared.get("per_nfe") else "once"
        parts.append(f"is trained {once}, with {plugin.declared.get('share', 1.0):g} of the data's budget")
    else:
        parts.append("no training of its own" + (f" on top of the {plugin.base}" if plugin.base else ""))
    if plugin.declared.get("adaptive"):
        parts.append("picks its own number of evaluations; the budget holds for their mean")
    return "; ".join(parts)


def literature(rows: "DataFrame", name: str, most: int = 12) -> list[str]:
    """The published numbers of an entry."""
    if rows.empty:
        return []
    lines = [f"  published ({len(rows)} numbers; `bench published --method {name}` shows all)"]
    for row in rows.sort_values(["data", "nfe"]).head(most).to_dict("records"):
        numbers = [
            f"{metric.upper()} {number(row[metric])}"
            for metric in ("fid", "is", "nll")
            if row[metric] == row[metric]
        ]
        nfe = f"{row['nfe']} NFE" if text(row["nfe"]) else "NFE not stated"
        lines.append(f"    {row['dataset']}, {nfe}: {', '.join(numbers)}{row['mark']} ({row['source']})")
    return lines


def published_setting(plugin: Plugin, rows: "DataFrame") -> list[str]:
    """The command that measures a method as the literature did, and what it needs that we do not ship."""
    rows = rows[rows["nfe"].notna() & (rows["nfe"] >= plugin.least)]
    if rows.empty or "sample" not in plugin.abilities:
        return []
    shared = rows[rows["network_group"].notna()]
    if not shared.empty:
        rows = shared[shared["network_group"] == shared["network_group"].mode().iat[0]]
    else:
        rows = rows[rows["data"] == rows["data"].mode().iat[0]]
    first = rows.iloc[0]
    known = first["data"] in data_names()
    data = first["data"] if known else f"folder:{first['dataset']}@{first['resolution']}"
    nfe = ",".join(map(str, sorted(rows["nfe"].unique())))
    words = [f"bench run {plugin.name} --data {data} --nfe {nfe}"]
    words += [f"--samples {SAMPLES} --extractor inception"]
    needs = [] if known else [f"the images of {first['dataset']} in the folder that --data names"]
    network = text(first["network_group"])
    if "denoiser" in plugin.recipes and network:
        words.append(f"--base {network}.py:make")
        needs.append(f"{network}.py, whose make(data) returns the network ({text(first['base_model'])})")
    lines = ["  as published", f"    {' '.join(words)}"]
    return lines + ([f"    needs {'; '.join(needs)}"] if needs else [])
