"""A method's card: what its file declares, its place in the surveys, and what the literature measured."""

from pathlib import Path

from bench import published, registry, taxonomy
from bench.selection import entry_of


def card(name: str, plugin_files: tuple[Path, ...] = ()) -> str:
    """The card of a method, as text; the file is read, not run."""
    plugin = registry.find(name, registry.plugins(tuple(plugin_files)))
    entry = entry_of(plugin, taxonomy.load())
    lines = [plugin.title, ""]
    lines += [
        f"  file       {plugin.path}",
        f"  paper      {plugin.paper}" + (f", {entry.title} ({entry.year})" if entry else ""),
    ]
    lines += [
        f"  leaf       {plugin.folder}",
        f"  data       {', '.join(plugin.kinds)}",
        f"  can        {', '.join(plugin.abilities)}",
    ]
    for text, key in (("order", "order"), ("least NFE", "least"), ("likelihood", "likelihood")):
        if plugin.declared.get(key) is not None:
            lines.append(f"  {text:10} {plugin.declared[key]}")
    lines += ["  parameters"] + [
        f"    {p}: {kind} = {value!r}" for p, (kind, value) in plugin.parameters.items()
    ]
    if entry is not None:
        lines += ["  surveys"] + [
            f"    {survey}: {'; '.join(labels)}" for survey, labels in entry.labels.items() if labels
        ]
        lines += literature(entry.id)
    return "\n".join(lines)


def literature(entry: str, most: int = 12) -> list[str]:
    """The published numbers of an entry, most complete first."""
    frame = published.load()
    rows = frame[frame.method == entry].sort_values(["data", "nfe"])
    if rows.empty:
        return []
    lines = [f"  published ({len(rows)} numbers; `bench published` shows all)"]
    for row in rows.head(most).to_dict("records"):
        numbers = [f"{name.upper()} {row[name]:g}" for name in ("fid", "is", "nll") if row[name] == row[name]]
        nfe = "NFE not stated" if str(row["nfe"]) == "<NA>" else f"{row['nfe']} NFE"
        lines.append(f"    {row['dataset']}, {nfe}: {', '.join(numbers)}{row['mark']} ({row['source']})")
    return lines
