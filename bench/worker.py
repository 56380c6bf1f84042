"""The work on one chunk: whoever has the cell's facts and the cache can draw it, on any machine, twice
without harm.
"""

import json
import math
import resource
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from bench import bases, exactness, registry
from bench.chunks import read_chunk, write_chunk
from bench.data import Data, load
from bench.diffusion.counting import OverBudget, counters, counting
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.schedule import SCHEDULES
from bench.diffusion.training import seeded
from bench.job import Cell, Chunk
from bench.method import Method

SLACK = 2.0  # what a single chunk of an adaptive method may take: the budget holds for the mean over chunks


@dataclass(frozen=True)
class Site:
    """Where a run works. No number depends on it but through the device and the thread count, which rows
    record.
    """

    results: Path
    device: str = "cpu"
    threads: int = 1
    micro_batch: int | None = None
    plugin_files: tuple[Path, ...] = ()
    minutes: float | None = None

    def chunk_file(self, cell: Cell, number: int) -> Path:
        return self.results / "work" / cell.key / f"{number}.safetensors"


@dataclass(frozen=True)
class Task:
    """One chunk of a cell to draw; `tolerance` is an adaptive method's, found for the cell."""

    cell: Cell
    number: int
    site: Site
    tolerance: float | None = None


@dataclass(frozen=True)
class Failure:
    """Why a chunk was not drawn, in one sentence."""

    cell: Cell
    sentence: str


@dataclass(frozen=True)
class Ready:
    """A method with its trained model, ready to be asked."""

    method: Method
    model: nn.Module
    data: Data
    card: dict
    flow: Denoiser | None = (
        None  # the shared denoiser, where its flow's solution is what samples are held against
    )


def ready(cell: Cell, site: Site, report=None) -> Ready:
    """The cell's method and model: built, and trained or loaded where the method trains."""
    plugin = registry.find(cell.method, registry.plugins(site.plugin_files))
    method = plugin.make(json.loads(cell.parameters))
    data = load(cell.data).seen_by(method.kinds)
    how = bases.How(site.device, report, site.minutes, site.threads)
    base = bases_of(plugin, method, cell, site)
    flow = (base["denoiser"] if plugin.recipes[1:] else base) if plugin.from_prior else None
    card = {"sha256": cell.base_id, "images": 0, "seconds": 0.0, "rows": 0}
    if "train" not in plugin.abilities:
        return Ready(method, method.build(base, data, cell.nfe).to(site.device), data, card, flow)
    facts = {
        "method": cell.method,
        "version": cell.version,
        "parameters": cell.parameters,
        "base": cell.base_id,
        "data": data.fingerprint,
        "images": cell.images,
        "seed": cell.train_seed,
        "nfe": cell.nfe if trained_per_nfe(cell, site) else None,
    }
    model, card = bases.prepared(
        cell.method,
        facts,
        lambda: built(method, base, data, cell.nfe, cell.train_seed),
        lambda model: method.train(model, base, data, cell.images, cell.nfe),
        seed=cell.train_seed,
        how=how,
        label=f"training {cell.method}" + (f" for {cell.nfe} NFE" if facts["nfe"] else ""),
    )
    return Ready(method, model, data, card, flow)


def bases_of(plugin: registry.Plugin, method: Method, cell: Cell, site: Site) -> nn.Module | None:
    """The shared models a method is given, the denoiser under the method's schedule: one as it is, several
    by name.
    """
    models = {}
    for name in plugin.recipes:
        spec = cell.base if name == "denoiser" else name
        model, _ = bases.shared(spec, cell.data, cell.train_seed, site.device)
        models[name] = (
            model.under(SCHEDULES[method.schedule or method.schedules[0]]()) if name == "denoiser" else model
        )
    return nn.ModuleDict(models) if len(models) > 1 else next(iter(models.values()), None)


def built(method: Method, base: nn.Module | None, data: Data, nfe: int, seed: int) -> nn.Module:
    """The untrained model, its random weights drawn from the training seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return method.build(base, data, nfe)


@lru_cache(maxsize=1)
def remembered(cell: Cell, site: Site) -> Ready:
    """`ready` for the many chunks of one cell."""
    return ready(cell, site)


def trained_per_nfe(cell: Cell, site: Site) -> bool:
    """Whether the cell's method trains a model of its own for each budget."""
    return registry.plugins(site.plugin_files)[cell.method].declared.get("per_nfe", False)


def train(task: Task) -> str:
    """Train the model of a cell, or find it trained, and say so; a failure comes again with the cell."""
    torch.set_num_threads(task.site.threads)
    name = task.cell.method + (f" for {task.cell.nfe} NFE" if trained_per_nfe(task.cell, task.site) else "")
    try:
        card = ready(task.cell, task.site).card
    except Exception as error:
        return f"{name} could not be trained: {type(error).__name__}: {str(error).splitlines()[:1]}"
    return f"{name}: trained on {card['images']:,} images in {card['seconds']:.0f} s"


def draw(task: Task) -> Chunk | Failure:
    """Draw a chunk into its file, unless it lies there whole, and say what it cost. Never raises for what a
    method does wrong.
    """
    cell, site = task.cell, task.site
    path = site.chunk_file(cell, task.number)
    found = read_chunk(path)
    if found is not None:
        return found[0]
    torch.set_num_threads(site.threads)
    try:
        asked = remembered(cell, site)
        tensors, chunk = ask(asked, cell, task.number, site, task.tolerance)
        if cell.ask == "sample" and asked.data.exact is not None and asked.flow is not None:
            start = asked.method.start(asked.model, cell.chunk, seeded(cell.seed, task.number), site.device)
            tensors |= exactness.distances(asked.flow, start, tensors["samples"], asked.data)
    except OverBudget as error:
        return Failure(cell, f"over budget: {error}")
    except MemoryError as error:
        return Failure(cell, str(error))
    except Exception as error:
        text = str(error).splitlines()[0] if str(error) else "no reason given"
        return Failure(cell, f"{type(error).__name__}: {text}")
    write_chunk(path, tensors, chunk)
    return chunk


def ask(
    asked: Ready,
    cell: Cell,
    number: int,
    site: Site,
    tolerance: float | None = None,
    allowance: int | None = None,
) -> tuple[dict[str, Tensor], Chunk]:
    """Put the cell's question to the method for one chunk, under the counter; halves the micro-batch where
    memory runs out.
    """
    method, model, data = asked.method, asked.model, asked.data
    if tolerance is not None:
        method = replace(method, tolerance=tolerance)
    micro_batch = site.micro_batch or default_micro_batch(data, site.device)
    question = sample if cell.ask == "sample" else likelihood
    slack = SLACK if method.adaptive and cell.ask == "sample" else 1.0
    while True:
        n = cell.chunk if cell.ask == "sample" else len(cell.rows_of(number))
        allowed = allowance or math.floor(cell.nfe * n * slack)
        started = time.perf_counter()
        try:
            with torch.no_grad(), counting(model, allowed, micro_batch) as tallies:
                tensors = question(method, model, data, cell, number, site.device)
                if site.device.startswith("cuda"):
                    torch.cuda.synchronize()
            break
        except (torch.OutOfMemoryError, RuntimeError) as error:
            out_of_memory = isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)
            if not out_of_memory:
                raise
            if micro_batch <= 1:
                raise MemoryError("out of memory even at one row a time") from None
            micro_batch //= 2
    spent, extra = tallies["nfe"], tallies["extra"]
    seconds = time.perf_counter() - started
    chunk = Chunk(
        number, n, spent.rows, spent.jvps, spent.vjps, extra.rows, seconds, peak_memory(site.device)
    )
    return tensors, chunk


def seed_all(cell: Cell, number: int) -> torch.Generator:
    """The generator of a chunk's start; the global one, which methods draw their noise from, is seeded apart
    from it.
    """
    torch.manual_seed(seeded(cell.seed, number, 1).initial_seed())
    return seeded(cell.seed, number)


def sample(
    method: Method, model: nn.Module, data: Data, cell: Cell, number: int, device: str
) -> dict[str, Tensor]:
    generator = seed_all(cell, number)
    x = method.start(model, cell.chunk, generator, device)
    samples = method.sample(model, x, cell.nfe)
    if tuple(samples.shape) != (cell.chunk, *data.shape):
        raise ValueError(f"samples have shape {tuple(samples.shape)} instead of {(cell.chunk, *data.shape)}")
    broken = int((~samples.isfinite().flatten(1).all(1)).sum())
    if broken:
        raise FloatingPointError(f"{broken:,} of {cell.chunk:,} samples are not finite")
    own = load(cell.data)  # which the method may have seen as another kind
    samples = own.back(samples.cpu(), data.kind)[: len(cell.rows_of(number))]  # a last chunk is drawn whole
    stored = own.quantise(samples)
    return {"samples": stored.contiguous()}


def likelihood(
    method: Method, model: nn.Module, data: Data, cell: Cell, number: int, device: str
) -> dict[str, Tensor]:
    generator = seed_all(cell, number)
    rows = cell.rows_of(number)
    x = data.scale(data.test[rows.start : rows.stop])
    if data.levels and method.dequantise == "uniform":
        x = x + (torch.rand(x.shape, generator=generator) * 2 - 1) / (data.levels - 1)
    nats = getattr(method, cell.ask)(model, x.to(device), cell.nfe)
    terms = dict(nats) if isinstance(nats, dict) else {"nll": nats}
    stderr = terms.pop("stderr", None)
    if data.kind == "tokens" != load(cell.data).kind:  # of probabilities, and not of densities as of images
        terms = terms | {"bins": torch.full((len(rows),), data.dim * math.log(2 / (data.levels - 1)))}
    total = sum(terms.values())
    if total.shape != (len(rows),):
        raise ValueError(f"{cell.ask} gave shape {tuple(total.shape)} for {len(rows)} rows")
    if bool(total.isnan().any()):
        raise FloatingPointError("the likelihood is not a number")
    found = {"nats": total.double().cpu()} | {
        f"term/{name}": t.double().cpu().contiguous() for name, t in terms.items()
    }
    if stderr is not None:
        found["stderr"] = stderr.double().cpu().contiguous()
    if data.exact is not None:
        found["exact"] = -data.exact.log_prob(x.double() if x.is_floating_point() else x).cpu()
    return found


def default_micro_batch(data: Data, device: str) -> int:
    """Rows at once that keep a network's activations in the cache of a CPU, or in the memory of a GPU."""
    rows = (1 << 23 if device.startswith("cuda") else 1 << 16) // max(data.dim, 64)
    return max(16, min(rows, 4096 if device.startswith("cuda") else 512))


def peak_memory(device: str) -> float:
    """The peak of this process in MiB: of the GPU's memory where one is used."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def uncounted(model: nn.Module) -> bool:
    """Whether a model has no counted network at all, so that nothing it does could be measured."""
    return next(counters(model), None) is None
