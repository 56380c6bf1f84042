"""What the lines of tables and figures are called, and what tells one line from another."""

from collections.abc import Sequence

from bench.registry import Plugin
from bench.row import Answer


def identity(row: Answer) -> tuple:
    """What tells one line from another: the method, its parameters, its base and what it was trained on."""
    return (
        row.method,
        row.version,
        repr(sorted(row.hyper_parameters.items())),
        row.base_id,
        row.images,
        row.ask == "bound",  # which some methods have beside a likelihood, at the same budgets
    )


def labels_of(rows: Sequence[Answer], known: dict[str, Plugin]) -> list[str]:
    """A readable name for each row's line: the title, the parameters that are not its defaults, and the base
    where there are several.
    """
    last = {row.key: row for row in rows}  # by cell, whose rows are of one line
    lines = {key: identity(row) for key, row in last.items()}
    labels: dict[tuple, str] = {}
    bases: dict[str, set[str]] = {}  # by method, so that a base is named only where one method has several
    for row in last.values():
        bases.setdefault(row.method, set()).add(row.base_id)
    for line, row in {lines[key]: row for key, row in last.items()}.items():
        plugin = known.get(row.method)
        inside = changed(row.hyper_parameters, plugin) if plugin else []
        if len(bases[row.method]) > 1:
            inside.append(f"base {row.base_id.removeprefix('exact:')[:6]}")
        if row.ask == "bound":
            inside.append("bound")
        if trials := row.details.get("trials"):
            inside.append(f"tuned in {trials} trials")
        if row.details.get("capped"):
            inside.append("training cut short")
        if plugin and row.version != plugin.version:
            inside.append(f"version {row.version}")
        text = (plugin.title if plugin else row.method) + (f" ({', '.join(inside)})" if inside else "")
        labels[line] = f"{text} [{row.method}]" if text in labels.values() else text
    named = {key: labels[line] for key, line in lines.items()}
    return [named[row.key] for row in rows]


def changed(parameters: dict, plugin: Plugin) -> list[str]:
    """The parameters that are not the plugin's defaults, as name=value."""
    return [
        f"{name}={value}"
        for name, value in parameters.items()
        if name in plugin.parameters and plugin.parameters[name][1] != value
    ]
