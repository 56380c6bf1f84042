"""Finds the plugins and reads what they declare without running them; only this module knows that zoo/
exists.
"""

import ast
import dataclasses
import difflib
import hashlib
import importlib.util
import operator
import re
import sys
import types
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib.metadata import entry_points
from pathlib import Path

import click

ZOO = Path(__file__).resolve().parents[1] / "zoo"
ABILITIES = ("train", "sample", "nll", "bound")


@dataclass(frozen=True)
class Plugin:
    """A plugin's file, read but not run."""

    name: str
    path: Path
    folder: str  # its place below zoo/, such as sampling_acceleration/ode_solver
    class_name: str
    title: str
    declared: dict = field(hash=False)
    parameters: dict = field(hash=False)  # name -> (annotation, default)
    abilities: tuple[str, ...] = ()
    own_start: bool = False  # it starts somewhere else than in the denoiser's prior

    @property
    def paper(self) -> str:
        return self.declared.get("paper", "")

    @property
    def kinds(self) -> list[str]:
        return sorted(self.declared.get("kinds", {"image", "vector"}))

    @property
    def least(self) -> int:
        return self.declared.get("least", 1)

    @property
    def version(self) -> int:
        return self.declared.get("version", 1)

    @property
    def base(self) -> str | None:
        return self.declared.get("base", "denoiser")

    @property
    def order(self) -> str:
        """The order of convergence that it claims, in words; empty where it claims none."""
        claims = self.declared.get("order")
        if not isinstance(claims, dict):
            return str(claims or "")
        places: dict[int, list[str]] = {}
        for schedule, order in claims.items():
            places.setdefault(order, []).append(schedule)
        return "; ".join(f"{order} under {', '.join(schedules)}" for order, schedules in places.items())

    @property
    def recipes(self) -> tuple[str, ...]:
        """The shared models it is given: its base and those it needs besides."""
        return (*((self.base,) if self.base else ()), *self.declared.get("also", ()))

    def bases(self, text: str) -> dict[str, str]:
        """By recipe, the texts of the shared models it is given, as a cell's `base` has them."""
        first, *others = apart(text)
        said = {other.partition("@")[0]: other for other in others}
        return {name: said.get(name, name) for name in self.recipes} | dict.fromkeys(self.recipes[:1], first)

    @property
    def from_prior(self) -> bool:
        """Whether its samples start where the shared denoiser's flow does, and can be held against it."""
        return "denoiser" in self.recipes and not self.own_start

    @cached_property
    def source(self) -> str:
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def load(self) -> type:
        """Import the file and return its class."""
        return getattr(imported(self.path), self.class_name)

    def make(self, parameters: dict):
        """An instance with these hyper-parameters."""
        return self.load()(**parameters)


@lru_cache
def imported(path: Path) -> types.ModuleType:
    """The module of a plugin's file; a file of the zoo under its dotted name, a stranger's under one of its
    own.
    """
    inside = path.is_relative_to(ZOO)
    name = (
        ".".join(("zoo", *path.relative_to(ZOO).with_suffix("").parts))
        if inside
        else f"taxobench_plugin_{path.stem}"
    )
    if name in sys.modules and getattr(sys.modules[name], "__file__", None) == str(path):
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise click.ClickException(f"{path} cannot be imported: {type(error).__name__}: {error}.") from error
    return module


def read_plugin(path: Path, folder: str | None = None) -> Plugin | None:
    """What a file declares, by its syntax tree; None for a file that defines no Method. `folder` None: the
    file names its leaf.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{path} cannot be read as a plugin: {error}.") from None
    classes = [
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef) and "Method" in map(base_name, node.bases)
    ]
    if not classes:
        return None
    if len(classes) > 1:
        raise click.ClickException(f"{path} defines {len(classes)} methods; a plugin is one file with one.")
    found = classes[0]
    declared, parameters = {}, {}
    for node in found.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            declared[node.targets[0].id] = literal(node.value, path)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            default = literal(node.value, path) if node.value is not None else None
            parameters[node.target.id] = (ast.unparse(node.annotation), default)
    schedules = declared.get("schedules", ("vp",))
    parameters["schedule"] = ("str", schedules[0] if schedules else "")
    functions = {node.name for node in found.body if isinstance(node, ast.FunctionDef)}
    title = (ast.get_docstring(found) or path.stem).splitlines()[0].strip().rstrip(".")
    return Plugin(
        name=path.stem,
        path=path,
        folder=folder if folder is not None else str(declared.get("leaf", "")),
        class_name=found.name,
        title=title,
        declared=declared,
        parameters=parameters,
        abilities=tuple(name for name in ABILITIES if name in functions),
        own_start="start" in functions,
    )


def base_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def literal(node: ast.expr, path: Path):
    """The value of a declaration: a literal, or one sum, product or quotient of two (`2 / 256`)."""
    try:
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](literal(node.left, path), literal(node.right, path))
        return ast.literal_eval(node)
    except (ValueError, TypeError, ZeroDivisionError):
        raise click.ClickException(
            f"{path}, line {node.lineno}: a declaration must be a literal, to be read without running it."
        ) from None


def joined(bases: dict[str, str]) -> str:
    """The texts of a method's shared models, by recipe, as a cell's `base`: the first, and those of the
    others that say more than their recipe's name.
    """
    first, *others = bases or [""]
    return " + ".join([bases.get(first, ""), *(bases[name] for name in others if bases[name] != name)])


def apart(base: str) -> list[str]:
    """A cell's `base` in its parts, of which all but the first are RECIPE@IMAGES."""
    return re.split(r" \+ (?=[a-z]+@\d+(?: \+ |$))", base)


@lru_cache
def plugins(extra: tuple[Path, ...] = ()) -> dict[str, Plugin]:
    """Every plugin by name: the zoo's files, installed entry points of the group "taxobench.methods", and
    `extra` files.
    """
    found: dict[str, Plugin] = {}
    for path in sorted(ZOO.rglob("*.py")):
        if path.name != "__init__.py" and (
            plugin := read_plugin(path, path.parent.relative_to(ZOO).as_posix())
        ):
            add(found, plugin)
    for point in entry_points(group="taxobench.methods"):
        spec = importlib.util.find_spec(point.module)
        if spec and spec.origin and (plugin := read_plugin(Path(spec.origin))):
            add(found, dataclasses.replace(plugin, name=point.name))
    for path in extra:
        if not path.is_file():
            raise click.ClickException(f"there is no plugin file {path}.")
        plugin = read_plugin(path.resolve())
        if plugin is None:
            raise click.ClickException(f"{path} defines no class that derives from bench.method.Method.")
        add(found, plugin)
    return found


def add(found: dict[str, Plugin], plugin: Plugin) -> None:
    if plugin.name in found:
        raise click.ClickException(
            f"two plugins are called {plugin.name}: {found[plugin.name].path} and {plugin.path}; rename one."
        )
    found[plugin.name] = plugin


def find(name: str, known: dict[str, Plugin]) -> Plugin:
    """The plugin of this name, or one sentence with the nearest names."""
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, 1, 0.5)
    hint = f"did you mean {near[0]!r}?" if near else "`bench list` shows what there is."
    raise click.BadParameter(f"there is no method {name!r}; {hint}")


def parsed(text: str, known: dict[str, Plugin]) -> list[tuple[Plugin, dict]]:
    """METHOD[:param=a,b]... -> the plugin with every combination of the given parameter values."""
    name, *settings = text.split(":")
    plugin = find(name, known)
    combinations: list[dict] = [{}]
    for setting in settings:
        key, equals, values = setting.partition("=")
        if not equals:
            raise click.BadParameter(f"{setting!r} in {text!r} is not of the form param=value.")
        if key not in plugin.parameters:
            near = difflib.get_close_matches(key, plugin.parameters, 1, 0.4)
            hint = f"did you mean {near[0]!r}" if near else f"it has {', '.join(plugin.parameters)}"
            raise click.BadParameter(f"{plugin.name} has no parameter {key!r}; {hint}.")
        parsed_values = [typed(value, plugin, key) for value in values.split(",")]
        combinations = [before | {key: value} for before in combinations for value in parsed_values]
    return [(plugin, parameters) for parameters in combinations]


def typed(text: str, plugin: Plugin, key: str):
    """A parameter's text as the type that its field is annotated with."""
    annotation, _ = plugin.parameters[key]
    if key == "schedule":
        known = plugin.declared.get("schedules", ("vp", "vp_cosine", "subvp", "ve", "edm", "flow"))
        known = (*known, *(("own",) if "denoiser" in plugin.recipes else ()))  # its base's
        if text not in known:
            raise click.BadParameter(
                f"{plugin.name} is not defined under {text!r}; it is under {', '.join(known)}."
            )
        return text
    kinds = [kind.strip() for kind in annotation.split("|")]
    if "None" in kinds and text.lower() == "none":
        return None
    for kind in kinds:
        try:
            if kind == "bool" and text.lower() in ("true", "false", "yes", "no", "1", "0"):
                return text.lower() in ("true", "yes", "1")
            if kind in ("int", "float", "str"):
                return {"int": int, "float": float, "str": str}[kind](text)
        except ValueError:
            continue
    raise click.BadParameter(f"{plugin.name}'s {key} is a {annotation}, which {text!r} is not.")
