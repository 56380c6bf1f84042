"""What can be said of a plugin without running it: its place, its paper, its declarations, its imports."""

import ast
import dataclasses
import difflib
import re
from functools import lru_cache
from typing import ClassVar, get_args, get_origin, get_type_hints

import click

from bench import taxonomy
from bench.checks import Skip, Wrong
from bench.checks.subject import Subject
from bench.data import KINDS
from bench.diffusion.schedule import SCHEDULES
from bench.method import Method

# Plain Python that computes and touches nothing outside.
# fmt: off
STANDARD = {
    "__future__", "abc", "bisect", "cmath", "collections", "contextlib", "copy",
    "dataclasses", "enum", "fractions", "functools", "heapq", "itertools", "math",
    "numbers", "operator", "statistics", "string", "typing", "warnings",
}
# fmt: on
NUMERICAL = {"torch", "torchdiffeq", "numpy", "scipy"}
OURS = ("bench.diffusion", "bench.method", "bench.cache")
FORBIDDEN = ("exec", "eval", "open", "compile", "__import__")
TYPES = {"paper": str} | {
    name: get_args(hint)[0] for name, hint in get_type_hints(Method).items() if get_origin(hint) is ClassVar
}
PLACEHOLDER = "TODO"


def leaf(subject: Subject) -> str:
    """Its folder, or the leaf it names, is one of the taxonomy's."""
    folder = subject.plugin.folder
    if not folder:
        raise Wrong('it lies outside the zoo and names no leaf: add a line such as leaf = "ode_solver".')
    try:
        return f"it is under {taxonomy.load().leaf(folder).title}"
    except click.BadParameter as error:
        raise Wrong(f"{error.message.rstrip('.')}; `bench taxonomy` shows the leaves.") from None


def paper(subject: Subject) -> str:
    """A well-formed arXiv id, the one of its entry in the taxonomy; a method of the zoo has such an entry."""
    plugin, tree = subject.plugin, taxonomy.load()
    if not re.fullmatch(r"arXiv:(\d{4}\.\d{4,5}|[a-z-]+(\.[A-Z]{2})?/\d{7})", str(plugin.paper)):
        raise Wrong(f'its paper is {plugin.paper!r}: write paper = "arXiv:2010.02502", with its own number.')
    named = plugin.declared.get("entry", "")
    entry = tree.entries.get(named) if named else tree.entry_of(plugin.name)
    if named and entry is None:
        near = difflib.get_close_matches(named, tree.entries, 1)
        raise Wrong(f"taxonomy.yaml has no entry {named!r}{f'; did you mean {near[0]!r}?' if near else '.'}")
    if entry is None and "leaf" in plugin.declared:
        return f"{plugin.paper}, a paper of its own"
    if entry is None:
        raise Wrong(f"no entry of taxonomy.yaml lists {plugin.name}: add one, or name it by entry = ....")
    if plugin.name not in (entry.id, *entry.plugins) and "leaf" not in plugin.declared:
        raise Wrong(
            f"entry {entry.id} of taxonomy.yaml does not list {plugin.name} among its plugins: add it."
        )
    if entry.arxiv and plugin.paper != f"arXiv:{entry.arxiv}":
        raise Wrong(f"its paper is {plugin.paper} and that of its entry {entry.id} is arXiv:{entry.arxiv}.")
    return f"{plugin.paper}, entry {entry.id}"


def declarations(subject: Subject) -> str:
    """Known names with values that make sense, each field with a default, and words that say what it is."""
    plugin = subject.plugin
    declared, fields = plugin.declared, plugin.parameters
    for name, value in declared.items():
        if name.isupper() or name.startswith("_"):
            continue
        if name not in TYPES:
            near = difflib.get_close_matches(name, TYPES, 1)
            hint = (
                f"did you mean {near[0]}?" if near else f"annotate it ({name}: float = ...) to make it one."
            )
            raise Wrong(f"{name} is neither a declaration nor a hyper-parameter: {hint}")
        if not isinstance(value, TYPES[name]) or (TYPES[name] is int and isinstance(value, bool)):
            raise Wrong(
                f"{name} = {value!r} is not what a plugin declares there; bench/method.py says what is."
            )
    for name, (_, default) in fields.items():
        if name in TYPES:
            raise Wrong(f"{name} is annotated, which makes it a hyper-parameter: write {name} = {default!r}.")
        if name not in ("schedule",) and default is None and "None" not in fields[name][0]:
            raise Wrong(f"its hyper-parameter {name} has no default: give it the paper's.")
    unknown = [name for name in declared.get("schedules", ()) if name not in SCHEDULES]
    if unknown or ("denoiser" in plugin.recipes and not declared.get("schedules", ("vp",))):
        raise Wrong(f"schedules = {declared['schedules']!r}: name some of {', '.join(SCHEDULES)}.")
    if declared.get("least", 1) < 1:
        raise Wrong("least is an evaluation or more.")
    if not set(KINDS) >= set(plugin.kinds):
        raise Wrong(f"kinds = {set(plugin.kinds)!r}: name some of {', '.join(KINDS)}.")
    if not {"sample", "nll"} & set(plugin.abilities):
        raise Wrong("it can neither sample nor tell a likelihood: write sample(self, model, x, nfe).")
    if ("nll" in plugin.abilities) != (declared.get("likelihood") in ("elbo", "ode")):
        raise Wrong('nll and likelihood = "elbo" or "ode" go together: it has one without the other.')
    if "bound" in plugin.abilities and declared.get("likelihood") != "ode":
        raise Wrong('bound stands beside a likelihood = "ode"; a method that has only a bound calls it nll.')
    if declared.get("dequantise", "uniform") not in ("uniform", "own", "none"):
        raise Wrong('dequantise is "uniform", "own" or "none".')
    if declared.get("adaptive") and "tolerance" not in fields:
        raise Wrong("an adaptive method has a field `tolerance`, by which it is fitted to the budget.")
    if declared.get("per_nfe") and "train" not in plugin.abilities:
        raise Wrong("per_nfe says that it is trained for each budget, and it has no train.")
    return words(subject)


def words(subject: Subject) -> str:
    module = tree(subject.plugin.path)
    found = next(n for n in module.body if getattr(n, "name", None) == subject.plugin.class_name)
    for what, node in (("file", module), ("class", found)):
        text = ast.get_docstring(node) or ""
        if not text.strip():
            raise Wrong(
                f"its {what} has no docstring: say what it is"
                + (", with the paper's formula." * (what == "file") or ".")
            )
        if PLACEHOLDER in text:
            raise Wrong(f"the docstring of its {what} still says {PLACEHOLDER}: write what it asks for.")
    return f"{len(subject.plugin.declared)} declarations, {len(dataclasses.fields(Method))} and more fields"


def imports(subject: Subject) -> str:
    """Only the numerical libraries, bench.diffusion and bench.method."""
    found = set()
    for node in ast.walk(tree(subject.plugin.path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise Wrong(
                    f"line {node.lineno} imports its neighbours: what two plugins share is bench.diffusion's."
                )
            found |= {
                f"{node.module}.{a.name}" if node.module in ("bench", "zoo") else node.module
                for a in node.names
            }
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in FORBIDDEN:
            raise Wrong(f"line {node.lineno} calls {node.func.id}, which a plugin has no need of.")
    for name in sorted(found):
        root = name.split(".")[0]
        if root == "zoo":
            raise Wrong(f"it imports {name}, another plugin: what two share moves to bench/diffusion.")
        if root == "bench" and not any(name == ours or name.startswith(f"{ours}.") for ours in OURS):
            raise Wrong(f"it imports {name}: of ours a plugin knows bench.diffusion and bench.method only.")
        if root != "bench" and root not in STANDARD | NUMERICAL:
            raise Wrong(
                f"it imports {name}: a plugin may use {', '.join(sorted(NUMERICAL))} and plain Python."
            )
    return ", ".join(sorted(found))


def loads(subject: Subject) -> str:
    """Its file can be executed, and a model built for every kind of data that there is in exact form."""
    subject.cls()
    if not subject.kinds:
        raise Skip(f"there is no exact data of kind {' or '.join(subject.plugin.kinds)} to hold it to yet")
    for kind in subject.kinds:
        subject.asked(kind)
    missing = sorted(set(subject.plugin.kinds) - set(subject.kinds))
    return f"built on {', '.join(subject.kinds)}" + (
        f"; no exact {', '.join(missing)} yet" if missing else ""
    )


@lru_cache
def tree(path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))
