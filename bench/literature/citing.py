"""BibTeX from the taxonomy: title, year and arXiv id; authors are not on file and yours to add."""

from collections.abc import Sequence

import click

from bench import registry, taxonomy
from bench.reporting.sheets import escaped
from bench.selection import entry_of

HEAD = "% From the surveys' taxonomy, which holds no authors: add them before you cite."


def bibtex(names: Sequence[str]) -> str:
    """An entry for each method, by a plugin's name or a surveyed method's id; no paper comes twice."""
    found = {entry.id: entry for entry in map(entry_named, names)}
    return "\n\n".join([HEAD, *map(cited, found.values())])


def entry_named(name: str) -> taxonomy.Entry:
    """The surveyed method of this id, or the one that a plugin implements; click.BadParameter if none."""
    tree = taxonomy.load()
    if entry := tree.entry_of(name):
        return entry
    known = registry.plugins()
    if name not in known:
        registry.find(name, dict.fromkeys([*known, *tree.entries]))  # raises, with the nearest name
    entry = entry_of(known[name], tree)
    if entry is None:
        raise click.ClickException(f"{name} has no entry in taxonomy.yaml to cite; its file names its paper.")
    return entry


def cited(entry: taxonomy.Entry) -> str:
    """One @misc, its title's capitals protected."""
    fields = {"title": f"{{{escaped(entry.title)}}}", "year": str(entry.year)}
    if entry.arxiv:
        fields |= {"eprint": entry.arxiv, "archivePrefix": "arXiv"}
        fields["url"] = f"https://arxiv.org/abs/{entry.arxiv}"
    if not entry.checked:
        fields["note"] = "title and year not checked against the paper"
    lines = [f"  {name:13} = {{{value}}}," for name, value in fields.items()]
    return "\n".join([f"@misc{{{entry.id},", *lines, "}"])
