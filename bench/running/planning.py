"""A request becomes a plan: its cells, what measures them, and which of them the results folder does not
answer yet.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

import click

from bench import protocol, registry, store
from bench.cache import canonical, key_of
from bench.data import Data, load
from bench.job import BLOCKS, Cell
from bench.metrics import features
from bench.metrics.extractor import Extractor
from bench.metrics.names import METRICS, OF_KIND, column, find
from bench.metrics.references import Reference, imported
from bench.models import bases, specs
from bench.models.kept import How
from bench.progress import Progress
from bench.registry import Plugin
from bench.running.plan import Plan, Request
from bench.running.sites import execution_of, site_of
from bench.running.worker import Site, trained_per_nfe
from bench.selection import Chosen, selected

SAMPLES = 2000
CHUNK = 500
NONE_YET = "none yet"  # the id of a shared model that is still to be trained


def stages(request: Request, progress: Progress) -> Iterator[Plan]:
    """The plans that answer a request, each to be run before the next is asked for; the last is the whole.

    Before it comes a plan of what needs no shared model but the base and those that are there, so that it
    does not wait for the others to be trained.
    """
    data, seed = load(request.data), request.train_seed
    needs = [set(plugin.recipes) for plugin, _ in selected(request.selection, data.kinds).methods]
    others = sorted(set().union(*needs) - {"denoiser"})
    later = [name for name in others if bases.untrained_images(spec_of(name, request), data, seed)]
    done = set()
    if later and any(names.isdisjoint(later) for names in needs):
        yield (first := planned(request, progress, without=later))
        done = {cell.key for cell in first.cells}
        progress.note(f"now what needs another shared model beside the base: {', '.join(later)}")
    plan = planned(request, progress)
    plan.todo = [cell for cell in plan.todo if cell.key not in done]
    yield plan


def planned(
    request: Request, progress: Progress | None = None, train: bool = True, without: Sequence[str] = ()
) -> Plan:
    """The cells that answer a request, and which of them the results folder does not answer yet.

    `train` False plans without training shared models; cells of one that is not there carry a base id that no
    row has. `without` leaves out the methods that need one of these shared models.
    """
    asked = specs.parsed(request.base, specs.DENOISERS)
    data, site = load(request.data), site_of(request)
    chosen = selected(request.selection, data.kinds)
    budgets = {plugin.name: budgets_of(plugin, request, chosen) for plugin, _ in chosen.methods}
    too_small = [least_of(plugin, request) for plugin in plugins_of(chosen) if not budgets[plugin.name]]
    if len(too_small) == len(budgets):
        raise click.ClickException(f"nothing is left to run: {too_small[0]}.")
    methods = [
        (plugin, given)
        for plugin, given in chosen.methods
        if budgets[plugin.name] and not set(without) & set(plugin.recipes)
    ]
    counts = counts_of(request, data)
    metrics, extractor, reference = measures_of(request, data)
    report = progress.report if progress else None
    how = How(site.device, report, request.minutes, request.threads, run=site.run)
    ids = base_ids(request, data, methods, how, train)
    skipped = [*chosen.skipped, *too_small]
    plan = Plan(request, data, site, [], metrics, extractor, reference, skipped, chosen.baselines)
    for plugin, given in methods:
        for ask in metrics:
            if ask not in plugin.abilities or (ask == "sample" and plugin.name in chosen.only_nll):
                continue
            if why := "denoiser" in plugin.recipes and asked.unfit(plugin.name, plugin.abilities, ask):
                plan.skipped.append(why)
                continue
            plan.cells += cells_of(plan, plugin, given, ask, counts[ask], ids, budgets[plugin.name])
    if not plan.cells and not without and len(plan.skipped) > len(chosen.skipped):
        raise click.ClickException(f"nothing is left to run: {plan.skipped[-1]}.")
    if train:
        for fingerprint, facts in plan.protocols.items():
            store.record_protocol(site.results, fingerprint, facts)
    done = set() if request.again else store.answered(request.results)
    answered = lambda cell: all((cell.key, name) in done for name in expected(plan, cell))
    plan.todo = [cell for cell in plan.cells if not (done and answered(cell))]
    plan.site = replace(site, execution=execution_of(plan))
    return plan


def plugins_of(chosen: Chosen) -> list[Plugin]:
    """The methods chosen, each once however many parameters it was given with."""
    return list({plugin.name: plugin for plugin, _ in chosen.methods}.values())


def counts_of(request: Request, data: Data) -> dict[str, int]:
    """How many samples, and how many test rows, a cell takes: enough for the jackknife's blocks."""
    samples, held_out = request.samples or SAMPLES, min(request.held_out or len(data.test), len(data.test))
    for count, what, asked in ((samples, "samples", True), (held_out, "held-out rows", request.held_out)):
        if asked and count < 2 * BLOCKS:
            raise click.BadParameter(
                f"{count} {what} are too few for {BLOCKS} jackknife blocks; ask for {2 * BLOCKS} or more."
            )
    return {"sample": samples, "nll": held_out, "bound": held_out}


def measures_of(
    request: Request, data: Data
) -> tuple[dict[str, tuple[str, ...]], Extractor | None, Reference | None]:
    """The metrics by what is asked of a method, the extractor that one of them needs, and the moments that
    samples are compared with where they are not the data's own.
    """
    metrics = metrics_of(request, data)
    if not any(METRICS[name].needs_extractor for name in metrics.get("sample", ())):
        return metrics, None, None
    name = request.extractor or features.default_extractor(data)
    extractor = features.extractor(name, data, request.device)
    metrics["sample"] = without_classes(metrics["sample"], extractor, request)
    return metrics, extractor, imported(request.statistics, extractor, metrics["sample"])


def cells_of(
    plan: Plan,
    plugin: Plugin,
    given: dict,
    ask: str,
    count: int,
    ids: dict[str, str],
    budgets: Sequence[int],
) -> list[Cell]:
    """The cells of one method, by seed and budget; their protocol is noted in the plan."""
    request, data = plan.request, plan.data
    parameters = parameters_of(plugin, given)
    chunk, dequantise = min(CHUNK, count), dequantisation(plugin, parameters)
    facts = protocol.of(ask, data, plan.extractor, count, chunk, dequantise, plan.reference)
    facts |= protocol.precise(request.precision)
    fingerprint = protocol.fingerprint(facts)
    plan.protocols[fingerprint] = facts
    in_common = {
        "method": plugin.name,
        "version": plugin.version,
        "parameters": canonical(parameters),
        "data": request.data,
        "base": registry.joined({name: spec_of(name, request) for name in plugin.recipes}),
        "base_id": identity_of([ids[name] for name in plugin.recipes]),
        "train_seed": request.train_seed,
        "images": training_images(request, plugin, data) if "train" in plugin.abilities else None,
        "ask": ask,
        "samples": count,
        "chunk": chunk,
        "protocol": fingerprint,
        "source": plugin.source,
    }
    return [Cell(**in_common, nfe=nfe, seed=seed) for seed, nfe in itertools.product(request.seeds, budgets)]


def rows_of(plugin: Plugin, request: Request) -> int:
    """The rows that each evaluation of a method takes: two of a base that is guided by itself."""
    return specs.parsed(request.base).rows if "denoiser" in plugin.recipes else 1


def least_of(plugin: Plugin, request: Request) -> str:
    """What a method takes at least, as a sentence that says why it is left out."""
    return f"{plugin.name} takes {plugin.least * rows_of(plugin, request)} evaluations or more"


def budgets_of(plugin: Plugin, request: Request, chosen: Chosen) -> list[int]:
    """The budgets that are enough for a method, the greatest first: the last chunks are then small ones, and
    workers end together.
    """
    asked = (max(request.nfe),) if plugin.name in chosen.only_nll else request.nfe
    rows = rows_of(plugin, request)
    return sorted((nfe for nfe in asked if nfe // rows >= plugin.least), reverse=True)


def base_ids(request: Request, data: Data, methods: list, how: How, train: bool) -> dict[str, str]:
    """The sha256 of every shared model the methods are given, which is trained now where it is not there yet;
    without `train` NONE_YET.
    """
    ids = {}
    for name in dict.fromkeys(name for plugin, _ in methods for name in plugin.recipes):
        spec, seed = spec_of(name, request), request.train_seed
        there = train or not bases.untrained_images(spec, data, seed)
        ids[name] = bases.identity(spec, data, seed, how) if there else NONE_YET
    return ids


def spec_of(name: str, request: Request) -> str:
    """The text of a shared model: the base that was asked for, another recipe in the budget of --images."""
    if name == "denoiser":
        return request.base
    return name if request.images is None else f"{name}@{request.images}"


def by_model(cells: Sequence[Cell], site: Site) -> list[list[Cell]]:
    """The cells whose methods train a model, those of one model together."""
    found: dict[tuple, list[Cell]] = {}
    for cell in cells:
        if cell.images is not None:
            budget = cell.nfe if trained_per_nfe(cell, site) else None
            found.setdefault((cell.method, cell.parameters, cell.train_seed, budget), []).append(cell)
    return list(found.values())


def identity_of(ids: list[str]) -> str:
    """One id for the shared models of a method: its base's own, or one of all."""
    return ids[0] if len(ids) == 1 else key_of(ids, 64) if ids else ""


def metrics_of(request: Request, data: Data) -> dict[str, tuple[str, ...]]:
    """The metrics that were asked for, or the data's defaults, by what is asked of a method: samples or
    likelihoods.
    """
    names = [find(name).name for name in request.metrics] or default_metrics(data)
    for name in names:
        metric = METRICS[name]
        if metric.exact and data.exact is None:
            raise click.BadParameter(f"{name} needs data whose distribution is known; {data.name}'s is not.")
        if data.kind not in metric.kinds:
            raise click.BadParameter(f"{name} is for {' or '.join(metric.kinds)} data, not for {data.name}.")
    samples = tuple(name for name in names if METRICS[name].of == "samples")
    likelihoods = {"nll": ("nll",), "bound": ("nll",)} if len(samples) < len(names) else {}
    return ({"sample": samples} if samples else {}) | likelihoods


def without_classes(names: tuple[str, ...], extractor, request: Request) -> tuple[str, ...]:
    """The metrics without the Inception score where the extractor is no classifier; an error if it was asked
    for.
    """
    if extractor.classes is None and "is" in names and request.metrics:
        raise click.BadParameter(f"is needs a classifier, which the extractor {extractor.name} is not.")
    return tuple(name for name in names if name != "is" or extractor.classes is not None)


def default_metrics(data: Data) -> list[str]:
    """What is measured on a data set unless asked otherwise. On known distributions precision, recall and KID
    say less than the metrics that know the truth; memorisation is a matter of small data.
    """
    known = ("fid", "sliced_wasserstein", "exact_nll", "distance", "nll", "nll_excess")
    real = ("fid", "is", *(("memorisation",) if len(data.train) <= 10_000 else ()), "nll")
    names = OF_KIND.get(data.kind) or (real if data.exact is None else known)
    return [name for name in names if data.exact is not None or not METRICS[name].exact]


def training_images(request: Request, plugin: Plugin, data: Data) -> int:
    """What a method may see in training: its share of the data's budget."""
    return request.images or round(plugin.declared.get("share", 1.0) * bases.default_images(data))


def parameters_of(plugin: Plugin, given: dict) -> dict:
    """All hyper-parameters of a cell, the defaults among them."""
    return {name: default for name, (_, default) in plugin.parameters.items()} | given


def dequantisation(plugin: Plugin, parameters: dict) -> str:
    """What is added to data on levels for a likelihood: the harness's uniform noise, none, or the method's
    own, which is named by its parameter of that name.
    """
    declared = plugin.declared.get("dequantise", "uniform")
    return parameters.get("dequantisation", "own") if declared == "own" else declared


def expected(plan: Plan, cell: Cell) -> list[str]:
    """The columns that the rows of a cell fill."""
    plugin = registry.find(cell.method, registry.plugins(plan.site.plugin_files))
    if cell.ask != "sample":
        kind = "elbo" if cell.ask == "bound" else plugin.declared.get("likelihood") or "elbo"
        dequantise = dequantisation(plugin, json.loads(cell.parameters))
        qualifier = kind if not plan.data.levels or dequantise == "none" else f"{kind},{dequantise}"
        excess = ["nll_excess[" + qualifier + "]"] if plan.data.exact is not None else []
        return [column("nll", qualifier), *excess]
    names = [name for name in plan.metrics["sample"] if name != "distance" or plugin.from_prior]
    return [named(name, plan) for name in names]


def named(name: str, plan: Plan) -> str:
    return column(name, plan.extractor.name if METRICS[name].needs_extractor and plan.extractor else None)
