"""The surveys side by side: under which label each lists a method, and how much of each the zoo covers."""

from collections.abc import Collection
from dataclasses import dataclass

from bench.reporting.sheets import Cell, Sheet
from bench.taxonomy import Taxonomy


@dataclass(frozen=True)
class SurveyCoverage:
    """How much of a survey there is: of the methods it lists, and of its labels."""

    survey: str
    methods: int
    covered: int  # methods that at least one plugin implements
    labels: int
    covered_labels: int  # labels under which at least one such method stands
    missing: tuple[str, ...]  # entries without a plugin


def survey_coverage(tree: Taxonomy, survey: str, present: Collection[str]) -> SurveyCoverage:
    """What the plugins named in `present` cover of a survey's own lists."""
    chosen = tree.survey(survey)
    listed = [entry for entry in tree.entries.values() if entry.labels.get(chosen.id)]
    there = [entry for entry in listed if implemented(entry, present)]
    labels = {label for entry in there for label in entry.labels[chosen.id]}
    missing = tuple(entry.id for entry in listed if entry not in there)
    return SurveyCoverage(
        chosen.id, len(listed), len(there), len(chosen.labels), len(labels & {*chosen.labels}), missing
    )


def implemented(entry, present: Collection[str]) -> bool:
    return entry.id in present or any(plugin in present for plugin in entry.plugins)


def sentence(found: SurveyCoverage) -> str:
    """The coverage in numbers, for the end of a survey's tree."""
    share = found.covered / found.methods if found.methods else 0.0
    return (
        f"{found.survey}: {found.covered} of {found.methods} listed methods are here ({share:.0%}), "
        f"under {found.covered_labels} of {found.labels} labels."
    )


def crosswalk(tree: Taxonomy, present: Collection[str], chosen: Collection[str] | None = None) -> Sheet:
    """Method x survey: the last part of each label, or '-' where a survey does not list the method.

    `present` are the plugins there are, `chosen` the entries to show (all of them by default).
    """
    lines, records = [], []
    for entry in tree.entries.values():
        if chosen is not None and entry.id not in chosen:
            continue
        plugins = [name for name in entry.plugins or (entry.id,) if name in present]
        labels = {id: entry.labels.get(id, ()) for id in tree.surveys}
        ends = ["; ".join(dict.fromkeys(p.rpartition(" > ")[2] for p in labels[id])) or "-" for id in labels]
        lines.append((entry.id, ", ".join(plugins) or "-", entry.leaf, *ends))
        records.append({"method": entry.id, "plugins": plugins, "leaf": entry.leaf, **labels})
    coverage = tuple(sentence(survey_coverage(tree, id, present)) for id in tree.surveys)
    return Sheet(
        "Methods by the surveys' labels",
        ("method", "plugins", "our leaf", *tree.surveys),
        tuple(tuple(Cell(part) for part in line) for line in lines),
        coverage,
        tuple(records),
    )
