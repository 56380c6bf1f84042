"""`bench check`: a plugin, ours or a stranger's, held to what every plugin promises; one sentence a check.

The checks lie in bench/checks; this module runs them in order and turns whatever a plugin does into a Result.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch

from bench import registry
from bench.checks import Skip, Wrong, convergence, declared, learning, likelihoods, sampling
from bench.checks.subject import Subject, sentence
from bench.models.kept import cores
from bench.registry import Plugin
from bench.running.executors import Lost, mapped

# name, what is asked, and the check without which it cannot be asked
CHECKS: tuple[tuple[str, Callable[[Subject], str], str], ...] = (
    ("leaf", declared.leaf, ""),
    ("paper", declared.paper, ""),
    ("declarations", declared.declarations, ""),
    ("imports", declared.imports, ""),
    ("loads", declared.loads, ""),
    ("samples", sampling.samples, "loads"),
    ("budget", sampling.budget, "samples"),
    ("counter", sampling.counter, "samples"),
    ("seed", sampling.seed, "samples"),
    ("micro_batch", sampling.micro_batch, "samples"),
    ("batch", sampling.batch, "samples"),
    ("input", sampling.input_, "samples"),
    ("state", sampling.state, "samples"),
    ("order", convergence.order, "samples"),
    ("nearer", convergence.nearer, "samples"),
    ("likelihood", likelihoods.likelihood, "loads"),
    ("levels", likelihoods.levels, "loads"),
    ("training", learning.training, "loads"),
)
NAMES = tuple(name for name, _, _ in CHECKS)
MANY = 8  # plugins that are worth a process on every core


@dataclass(frozen=True)
class Result:
    """What one check found of one method; `ok` is None where it did not apply. `detail` is one sentence."""

    method: str
    check: str
    ok: bool | None
    detail: str


def checks(plugin: Plugin, only: Sequence[str] = NAMES) -> Iterator[Result]:
    """Hold a plugin to the checks named, in order, each Result as it is found; never raises for what a plugin
    does. Torch's thread count and random state are as before.
    """
    subject, failed = Subject(plugin), set()
    wanted = {*only, *(needed for name, _, needed in CHECKS if name in only)}
    for name, check, needed in CHECKS:
        if name not in wanted:
            continue
        if needed in failed:
            result = Result(plugin.name, name, None, f"not reached, as {needed} failed")
        else:
            result = Result(plugin.name, name, *outcome(check, subject))
        if result.ok is False or needed in failed:
            failed.add(name)
        if name in only or result.ok is False:
            yield result


def outcome(check: Callable[[Subject], str], subject: Subject) -> tuple[bool | None, str]:
    """A check's verdict and its sentence, whatever the plugin does."""
    threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.set_num_threads(1)  # the work is too small to share
            return True, check(subject)
    except Wrong as wrong:
        return False, str(wrong)
    except Skip as skip:
        return None, str(skip)
    except KeyboardInterrupt:
        raise
    except click.ClickException as error:
        return False, error.message
    except BaseException as error:  # sys.exit in a plugin is a failure too
        return False, f"it stops with {sentence(error)}."
    finally:
        torch.set_num_threads(threads)


def everything(methods: Sequence[str] = (), files: Sequence[Path] = ()) -> Iterator[Result]:
    """The checks of the methods named and the plugin files given, or of the whole zoo."""
    known = registry.plugins()
    plugins = [registry.find(name, known) for name in methods]
    if not methods and not files:
        plugins = list(known.values())
    for path in files:
        try:
            plugin = registry.read_plugin(path.resolve())
        except click.ClickException as error:  # it cannot even be read: that is what its declarations say
            yield Result(path.stem, "declarations", False, error.message)
            continue
        if plugin is None:
            message = "it defines no class that derives from bench.method.Method."
            yield Result(path.stem, "declarations", False, message)
            continue
        plugins.append(plugin)
    workers = cores() if len(plugins) > MANY else 1
    for plugin, found in mapped(of_one, plugins, workers):
        if isinstance(found, Lost):
            yield Result(plugin.name, CHECKS[0][0], False, f"{found.sentence}.")
        else:
            yield from found


def of_one(plugin: Plugin) -> list[Result]:
    """All checks of one plugin, for a process of its own."""
    return list(checks(plugin))


def line(result: Result) -> str:
    """A result as a line of text."""
    mark = {True: "ok", False: "FAILED", None: "skipped"}[result.ok]
    return f"{result.method}: {result.check}: {mark}: {result.detail}"


def record(result: Result) -> dict:
    """A result as --format json has it: method, check, ok, detail."""
    return asdict(result)
