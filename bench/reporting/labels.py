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
    cells: dict[tuple, list[Answer]] = {}  # by line, the last row of each cell, whose rows are of one line
    for row in {row.key: row for row in rows}.values():
        cells.setdefault(identity(row), []).append(row)
    bases: dict[str, set[str]] = {}  # by method, so that a base is named only where one method has several
    for row, *_ in cells.values():
        bases.setdefault(row.method, set()).add(row.base_id)
    taken: set[str] = set()
    named: dict[str, str] = {}
    for line in cells.values():
        row = line[-1]
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
        label = f"{text} [{row.method}]" if text in taken else text
        taken.add(label)
        named |= dict.fromkeys([cell.key for cell in line], label)
    return [named[row.key] for row in rows]


def changed(parameters: dict, plugin: Plugin) -> list[str]:
    """The parameters that are not the plugin's defaults, as name=value."""
    return [
        f"{name}={value}"
        for name, value in parameters.items()
        if name in plugin.parameters and plugin.parameters[name][1] != value
    ]
