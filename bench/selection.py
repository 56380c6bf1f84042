"""Which methods a request names: by name, by our categories and leaves, or by a survey's own labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from bench import registry, taxonomy
from bench.data import HOME
from bench.registry import Plugin

BASE_LIKELIHOOD = (
    "probability_flow"  # whose value stands in a category's table once, as that of the shared base
)


@dataclass(frozen=True)
class Selection:
    """Names with parameters (`ddim:eta=0,1`), and labels that select more."""

    methods: tuple[str, ...] = ()
    category: str | None = None
    leaf: str | None = None
    survey: str | None = None
    plugin_files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Chosen:
    """The plugins with their parameters, which are there as baselines, and which cannot run on the data and
    why.
    """

    methods: list[tuple[Plugin, dict]]
    baselines: frozenset[str] = frozenset()
    only_nll: frozenset[str] = frozenset()
    skipped: tuple[str, ...] = ()


def selected(selection: Selection, kinds: Sequence[str]) -> Chosen:
    """The methods of a selection that are defined for data of these kinds, the first being its own; the whole
    zoo if it is empty.
    """
    known = registry.plugins(selection.plugin_files)
    named = [found for text in selection.methods for found in registry.parsed(text, known)]
    by_label = bool(selection.category or selection.leaf or selection.survey)
    for plugin, _ in named:
        if not set(kinds) & set(plugin.kinds):
            raise click.BadParameter(
                f"{plugin.name} is for {' or '.join(plugin.kinds)} data, and this is {kinds[0]} data."
            )
    names = {plugin.name for plugin, _ in named}
    baselines: set[str] = set()
    only_nll: set[str] = set()
    skipped: list[str] = []
    if by_label or not named:
        chosen = labelled(selection, known) if by_label else set(known)
        if by_label and not selection.leaf:
            baselines = {name for name, plugin in known.items() if plugin.folder == "foundations"} - chosen
            if BASE_LIKELIHOOD in known and BASE_LIKELIHOOD not in chosen:
                only_nll = {BASE_LIKELIHOOD}
        for name in sorted((chosen | baselines | only_nll) - names, key=lambda n: (known[n].folder, n)):
            if set(kinds) & set(known[name].kinds):
                named.append((known[name], {}))
            else:
                skipped.append(f"{name} is for {' or '.join(known[name].kinds)} data")
    if not named:
        raise click.ClickException(f"nothing that was selected is defined for {kinds[0]} data.")
    return Chosen(named, frozenset(baselines), frozenset(only_nll), tuple(skipped))


def data_of(selection: Selection) -> list[str]:
    """The data sets that a selection is measured on where none was asked for: of methods that are named the
    first for their kind, of a category or leaf all.
    """
    known = registry.plugins(selection.plugin_files)
    named = {plugin for text in selection.methods for plugin, _ in registry.parsed(text, known)}
    by_label = bool(selection.category or selection.leaf or selection.survey)
    labels = {known[name] for name in labelled(selection, known)} if by_label else set()
    places = {place for plugin in labels for kind in main_kinds(plugin) for place in HOME[kind]}
    places |= {HOME[main_kinds(plugin)[0]][0] for plugin in named - labels}
    order = dict.fromkeys(place for homes in HOME.values() for place in homes)
    return [place for place in order if place in places] or ["digits"]


def main_kinds(plugin: Plugin) -> list[str]:
    """Images of a method that is for them, else all the kinds that it is for."""
    return ["image"] if "image" in plugin.kinds else [k for k in HOME if k in plugin.kinds] or ["image"]


def labelled(selection: Selection, known: dict[str, Plugin]) -> set[str]:
    """The plugins under a category and leaf, ours or a survey's."""
    tree = taxonomy.load()
    if selection.survey:
        entries = tree.select(selection.category, selection.leaf, selection.survey)
        found = {
            name
            for name, plugin in known.items()
            if (entry := entry_of(plugin, tree)) and entry.id in entries
        }
    else:
        leaves = tree.leaves if not selection.category else tree.category(selection.category).leaves
        if selection.leaf:
            wanted = tree.leaf(selection.leaf)
            leaves = [leaf for leaf in leaves if leaf.id == wanted.id]
        places = {place for leaf in leaves for place in (leaf.folder, leaf.id) if place}
        found = {name for name, plugin in known.items() if plugin.folder.replace("-", "_") in places}
    if not found:
        raise click.ClickException(
            "no method that exists is under that label; `bench taxonomy` shows what is covered."
        )
    return found


def entry_of(plugin: Plugin, tree: "taxonomy.Taxonomy"):
    """A plugin's entry in the taxonomy: the one that lists it, or the one it names."""
    return tree.entry_of(plugin.name) or tree.entries.get(plugin.declared.get("entry", ""))
