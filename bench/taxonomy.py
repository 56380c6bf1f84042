"""The taxonomy of the surveys: our tree, its entries, each survey's own labels, and what the zoo covers.

Everything here is read from taxonomy.yaml; this module knows no method by name and imports nothing heavy.
An *entry* is a method as the surveys list it; a *plugin* is a file of the zoo that implements one.
"""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TypeVar

import click
import yaml

T = TypeVar("T")


@dataclass(frozen=True)
class Survey:
    """A survey; `labels` are the paths of its own tree, in its own order."""

    id: str
    title: str
    arxiv: str
    repo: str | None
    checked: bool
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Leaf:
    """A leaf of our tree; its plugins lie in `folder` below zoo/, None while there is no such folder."""

    id: str
    title: str
    category: str
    folder: str | None


@dataclass(frozen=True)
class Category:
    """A top branch of our tree; one that is not `counted` is shown without counting as covered or missing."""

    id: str
    title: str
    counted: bool
    leaves: tuple[Leaf, ...]


@dataclass(frozen=True)
class Entry:
    """A surveyed method; `leaf` is where it is best known, `plugins` the files that implement it or will."""

    id: str
    name: str
    title: str
    arxiv: str | None
    year: int
    leaf: str
    also_in: tuple[str, ...]
    plugins: tuple[str, ...]
    repo: str | None
    checked: bool
    labels: Mapping[str, tuple[str, ...]]  # survey id -> the paths under which that survey lists it


@dataclass(frozen=True)
class Branch:
    """A node of a survey's own tree, with the entries and plugins that it lists right there."""

    title: str
    entries: tuple[str, ...]
    plugins: tuple[str, ...]
    branches: tuple["Branch", ...]


@dataclass(frozen=True)
class Taxonomy:
    """All of taxonomy.yaml; ids are the keys of `surveys` and `entries`."""

    surveys: Mapping[str, Survey]
    categories: tuple[Category, ...]
    entries: Mapping[str, Entry]

    @cached_property
    def leaves(self) -> tuple[Leaf, ...]:
        return tuple(leaf for category in self.categories for leaf in category.leaves)

    @cached_property
    def _entry_ids(self) -> dict[str, str]:
        planned = {plugin: entry.id for entry in self.entries.values() for plugin in entry.plugins}
        return {id: id for id in self.entries} | planned

    def entry_of(self, plugin: str) -> Entry | None:
        """The entry that names `plugin`, or the one whose id it bears; None where there is neither."""
        return self.entries.get(self._entry_ids.get(plugin, ""))

    def category(self, text: str) -> Category:
        """The category with this id or title; hyphens, underscores, spaces and case do not matter."""
        return _lookup("category", text, {name: c for c in self.categories for name in (c.id, c.title)})

    def leaf(self, text: str) -> Leaf:
        """The leaf with this id, title or folder below zoo/, as forgiving as `category`."""
        names = ((name, leaf) for leaf in self.leaves for name in (leaf.id, leaf.title, leaf.folder))
        return _lookup("leaf", text, {name: leaf for name, leaf in names if name})

    def survey(self, text: str) -> Survey:
        """The survey with this id, such as `cao`."""
        return _lookup("survey", text, self.surveys)

    def select(
        self,
        category: str | None = None,
        leaf: str | None = None,
        survey: str | None = None,
        label: str | None = None,
    ) -> set[str]:
        """Ids of the entries that meet every condition given, by any of the places an entry has.

        Without `survey`, `category` and `leaf` are ours and `label` is any survey's. With it, all three are
        words of that survey's own tree: an entry is selected when one of its labels there holds each of
        them, a word being part of one segment of the path. Names that nothing bears raise
        click.BadParameter.
        """
        if survey is not None:
            chosen_survey = self.survey(survey)
            words = [word for word in (category, leaf, label) if word is not None]
            _require_segments(f"label of {chosen_survey.id}", words, [chosen_survey])
            return self._labelled([chosen_survey], words)
        chosen = set(self.entries)
        if category is not None:
            chosen &= self._placed(self.category(category).leaves)
        if leaf is not None:
            chosen &= self._placed([self.leaf(leaf)])
        if label is not None:
            _require_segments("label", [label], self.surveys.values())
            chosen &= self._labelled(self.surveys.values(), [label])
        return chosen

    def view(self, survey: str, present: Collection[str] | None = None) -> Branch:
        """The survey's own tree, entries and plugins under each label; `present` limits the plugins."""
        chosen = self.survey(survey)
        return self._branch(chosen.title, chosen, (), present)

    def _placed(self, leaves: Iterable[Leaf]) -> set[str]:
        ids = {leaf.id for leaf in leaves}
        return {entry.id for entry in self.entries.values() if ids & {entry.leaf, *entry.also_in}}

    def _labelled(self, surveys: Iterable[Survey], words: list[str]) -> set[str]:
        paths = [
            (e.id, path)
            for survey in surveys
            for e in self.entries.values()
            for path in e.labels.get(survey.id, ())
        ]
        return {id for id, path in paths if all(_in_path(word, path) for word in words)}

    def _branch(
        self, title: str, survey: Survey, at: tuple[str, ...], present: Collection[str] | None
    ) -> Branch:
        here = " > ".join(at)
        entries = [e for e in self.entries.values() if here in e.labels.get(survey.id, ())]
        plugins = [p for e in entries for p in e.plugins if present is None or p in present]
        paths = [tuple(path.split(" > ")) for path in survey.labels]
        below = dict.fromkeys(
            path[len(at)] for path in paths if path[: len(at)] == at and len(path) > len(at)
        )
        branches = tuple(self._branch(name, survey, (*at, name), present) for name in below)
        return Branch(title, tuple(e.id for e in entries), tuple(plugins), branches)


def coverage(taxonomy: Taxonomy, plugins: Iterable[tuple[str, str]]) -> list[dict]:
    """What the zoo has and lacks, one record a leaf, in the taxonomy's order.

    `plugins` are pairs of a plugin's name and its leaf's folder below zoo/, such as ("ddim",
    "sampling_acceleration/ode_solver"). A record has `category`, `counted`, `leaf`, `title`, `covered` (a
    plugin lies in its folder), `methods` (those plugins) and `missing`: for the entries best known for this
    leaf, each planned plugin that lies nowhere, or the entry's id where no plugin is planned and none bears
    its name.
    """
    present = {name: taxonomy.leaf(folder).id for name, folder in plugins}
    return [
        {
            "category": category.id,
            "counted": category.counted,
            "leaf": leaf.id,
            "title": leaf.title,
            "covered": leaf.id in present.values(),
            "methods": sorted(name for name, place in present.items() if place == leaf.id),
            "missing": [
                name
                for entry in taxonomy.entries.values()
                if entry.leaf == leaf.id
                for name in entry.plugins or (entry.id,)
                if name not in present
            ],
        }
        for category in taxonomy.categories
        for leaf in category.leaves
    ]


@lru_cache
def load() -> Taxonomy:
    """The taxonomy of this checkout or of the installed package."""
    return read(locate("taxonomy.yaml", "taxonomy.yaml"))


def locate(checkout: str, package: str) -> Path:
    """A file shipped with the harness: `checkout` below the top of the tree, installed bench/`package`."""
    here = Path(__file__).parent
    for path in (here.parent / checkout, here / package):
        if path.is_file():
            return path
    raise click.ClickException(f"{checkout} is missing from this installation; install taxobench again.")


def read(path: Path) -> Taxonomy:
    """The taxonomy in one file; click.ClickException where it is none, or lacks a required field."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is several times faster
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
        return Taxonomy(
            surveys={id: _survey(id, survey) for id, survey in raw["surveys"].items()},
            categories=tuple(_category(category) for category in raw["categories"]),
            entries={id: _entry(id, entry) for id, entry in raw["entries"].items()},
        )
    except (yaml.YAMLError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise click.ClickException(f"{path} is not a taxonomy ({type(error).__name__}: {reason}).") from None


def _survey(id: str, raw: dict) -> Survey:
    rest = {"repo": None, "checked": True} | raw
    return Survey(id=id, **rest | {"labels": tuple(raw.get("labels", ()))})


def _category(raw: dict) -> Category:
    def leaf(id: str, title: str, folder: str) -> Leaf:
        return Leaf(id, title, raw["id"], None if folder == "missing" else folder)

    return Category(
        raw["id"], raw["title"], raw["counted"], tuple(leaf(**fields) for fields in raw["leaves"])
    )


def _entry(id: str, raw: dict) -> Entry:
    rest = {"arxiv": None, "repo": None, "checked": True} | raw
    lists = {key: tuple(raw.get(key, ())) for key in ("also_in", "plugins")}
    labels = {survey: tuple(paths) for survey, paths in raw.get("labels", {}).items()}
    return Entry(id=id, **rest | lists | {"labels": labels})


def _plain(text: str) -> str:
    return re.sub(r"[\s_-]+", " ", text).strip().lower()


def _in_path(word: str, path: str) -> bool:
    return any(_plain(word) in _plain(segment) for segment in path.split(" > "))


def _require_segments(what: str, words: list[str], surveys: Iterable[Survey]) -> None:
    """Raise click.BadParameter unless each word is part of a segment of these surveys' labels."""
    segments = {
        segment: segment for survey in surveys for path in survey.labels for segment in path.split(" > ")
    }
    for word in words:
        if not any(_in_path(word, segment) for segment in segments):
            _lookup(what, word, segments)


def _lookup(what: str, text: str, choices: Mapping[str, T]) -> T:
    """The choice named `text`, but for hyphens, underscores, spaces and case; else a helpful BadParameter."""
    plain = {_plain(name): name for name in reversed(choices)}
    if _plain(text) in plain:
        return choices[plain[_plain(text)]]
    near = [plain[name] for name in difflib.get_close_matches(_plain(text), plain, n=1)]
    first_names = list({id(choices[name]): name for name in reversed(choices)}.values())[::-1]
    several = ", ".join(first_names[:12]) + (" and others" if len(first_names) > 12 else "")
    hint = f"did you mean {near[0]!r}?" if near else f"choose from {several}."
    raise click.BadParameter(f"unknown {what} {text!r}; {hint}")
