"""A cell's question put to its method: whoever has the cell's facts and the cache can draw any of its chunks,
on any machine, twice without harm.
"""

import json
import math
import platform
import resource
import time
from dataclasses import dataclass, replace
from pathlib import Path

import click
import torch
from torch import Tensor, nn

from bench import registry
from bench.data import Data, load
from bench.diffusion.counting import counters, counting
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.execution import PLAIN, Execution, arithmetic, keep_memory, placed
from bench.diffusion.guidance import drawn, labelled, told
from bench.diffusion.schedule import SCHEDULES
from bench.diffusion.training import Report, seeded
from bench.job import Cell, Chunk
from bench.method import OWN, Method
from bench.models import bases, specs

SLACK = 2.0  # what a single chunk of an adaptive method may take: the budget holds for the mean over chunks


@dataclass(frozen=True)
class Site:
    """Where a run works and how. No number depends on it but through the device and the thread count, which
    rows record, and the precision, which is in the protocol.
    """

    results: Path
    device: str = "cpu"
    threads: int = 1
    micro_batch: int | None = None
    plugin_files: tuple[Path, ...] = ()
    minutes: float | None = None  # that each training may take
    run: str = ""  # the name of a run whose trainings may be cut short by that
    execution: Execution = PLAIN

    def chunk_file(self, cell: Cell, number: int) -> Path:
        return self.results / "work" / cell.key / f"{number}.safetensors"


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


def ready(cell: Cell, site: Site, report: Report | None = None) -> Ready:
    """The cell's method and model: built, and trained or loaded where the method trains; `report` is told of
    the training.
    """
    plugin = registry.find(cell.method, registry.plugins(site.plugin_files))
    method = plugin.make(json.loads(cell.parameters))
    data = load(cell.data).seen_by(method.kinds)
    base = bases_of(plugin, method, cell, site)
    flow = (base["denoiser"] if plugin.recipes[1:] else base) if plugin.from_prior else None
    card = {"sha256": cell.base_id, "images": 0, "seconds": 0.0, "rows": 0}
    if "train" not in plugin.abilities:
        return Ready(method, placed(method.build(base, data, asked_nfe(cell)), site.device), data, card, flow)
    if base is not None and labelled(base):
        raise click.ClickException(f"{cell.method} trains on its base, which cannot be one with classes.")
    facts = training_of(cell, data, site)
    model, card = bases.prepared(
        cell.method,
        facts,
        lambda: built(method, base, data, cell.nfe, cell.train_seed),
        lambda model: method.train(model, base, data, cell.images, cell.nfe),
        seed=cell.train_seed,
        how=how_at(site, report),
        label=f"training {cell.method}" + (f" for {cell.nfe} NFE" if facts["nfe"] else ""),
    )
    return Ready(method, model, data, card, flow)


def training_of(cell: Cell, data: Data, site: Site) -> dict:
    """What determines the model that a cell's method trains, on its data as the method sees them."""
    return {
        "method": cell.method,
        "version": cell.version,
        "parameters": cell.parameters,
        "base": cell.base_id,
        "data": data.fingerprint,
        "images": cell.images,
        "seed": cell.train_seed,
        "nfe": cell.nfe if trained_per_nfe(cell, site) else None,
    }


def bases_of(plugin: registry.Plugin, method: Method, cell: Cell, site: Site) -> nn.Module | None:
    """The shared models a method is given, the denoiser under the method's schedule: one as it is, several
    by name.
    """
    models = {}
    for name, spec in plugin.bases(cell.base).items():
        model, _ = bases.shared(spec, cell.data, cell.train_seed, how_at(site))
        models[name] = seen_by(method, model) if name == "denoiser" else model
    return nn.ModuleDict(models) if len(models) > 1 else next(iter(models.values()), None)


def how_at(site: Site, report: Report | None = None) -> bases.How:
    """How models are trained and loaded there."""
    return bases.How(site.device, report, site.minutes, site.threads, run=site.run)


def seen_by(method: Method, base: Denoiser) -> Denoiser:
    """The base under the method's schedule; `own` is the one it came with, if the method is for its kind."""
    name = method.schedule or method.schedules[0]
    if name != OWN:
        return base.under(SCHEDULES[name]())
    explodes = float(base.schedule.alpha(base.schedule.t_max)) == 1
    if not {"ve", "edm"} & set(method.schedules) if explodes else not {"vp", "ddpm"} & set(method.schedules):
        kind = "explodes" if explodes else "preserves variance"
        raise click.ClickException(f"the base's own process {kind}, for which the method is not defined.")
    return base


def asked_nfe(cell: Cell) -> int:
    """The evaluations of the base that a method may ask for: half the budget where each takes two rows."""
    return cell.nfe // specs.parsed(registry.apart(cell.base)[0]).rows


def built(method: Method, base: nn.Module | None, data: Data, nfe: int, seed: int) -> nn.Module:
    """The untrained model, its random weights drawn from the training seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return method.build(base, data, nfe)


def trained_per_nfe(cell: Cell, site: Site) -> bool:
    """Whether the cell's method trains a model of its own for each budget."""
    return registry.plugins(site.plugin_files)[cell.method].declared.get("per_nfe", False)


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
    keep_memory()
    question = sample if cell.ask == "sample" else likelihood
    slack = SLACK if method.adaptive and cell.ask == "sample" else 1.0
    while True:
        n = cell.chunk if cell.ask == "sample" else len(cell.rows_of(number))
        allowed = allowance or math.floor(cell.nfe * n * slack)
        started = time.perf_counter()
        try:
            with (
                torch.no_grad(),
                arithmetic(site.execution.precision, site.device),
                counting(model, allowed, micro_batch, site.execution) as tallies,
            ):
                tensors = question(method, model, data, cell, number, site.device)
                if site.device.startswith("cuda"):
                    torch.cuda.synchronize()
            break
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if micro_batch <= 1:
                raise MemoryError("out of memory even at one row a time") from None
            micro_batch //= 2
    spent, extra, guide = tallies["nfe"], tallies["extra"], tallies["guide"]
    seconds, memory = time.perf_counter() - started, peak_memory(site.device)
    vjps, more = spent.vjps + guide.vjps, extra.rows + guide.rows
    chunk = Chunk(number, n, spent.rows, spent.jvps, vjps, more, seconds, memory)
    return tensors, chunk


def out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, in the words of torch on a GPU, on Linux or elsewhere, or in Python's."""
    said = str(error).lower()
    told = any(f"{word} memory" in said for word in ("not enough", "can't allocate", "cannot allocate"))
    return told or isinstance(error, torch.OutOfMemoryError | MemoryError)


@torch.no_grad()
def start_of(asked: Ready) -> str:
    """What a method's samples start from; only methods of one start are paired."""
    schedule = getattr(asked.model, "schedule", None)
    if schedule is None:
        return type(asked.model).__name__
    return f"normal, sigma {float(schedule.sigma(schedule.t_max)):.4g}"


def device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine()


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
    with told(model, drawn(cell.chunk, generator)):
        samples = method.sample(model, x, asked_nfe(cell))
    if tuple(samples.shape) != (cell.chunk, *data.shape):
        raise ValueError(f"samples have shape {tuple(samples.shape)} instead of {(cell.chunk, *data.shape)}")
    broken = int((~samples.isfinite().flatten(1).all(1)).sum())
    if broken:
        raise FloatingPointError(f"{broken:,} of {cell.chunk:,} samples are not finite")
    own = load(cell.data)  # which the method may have seen as another kind
    samples = own.back(samples, data.kind)[: len(cell.rows_of(number))]  # a last chunk is drawn whole
    stored = own.quantise(samples).cpu()  # a byte a value comes from the GPU
    return {"samples": stored.contiguous()}


def likelihood(
    method: Method, model: nn.Module, data: Data, cell: Cell, number: int, device: str
) -> dict[str, Tensor]:
    generator = seed_all(cell, number)
    rows = cell.rows_of(number)
    x = data.scale(data.test[rows.start : rows.stop])
    if data.levels and method.dequantise == "uniform":
        x = x + (torch.rand(x.shape, generator=generator) * 2 - 1) / (data.levels - 1)
    labels = None if data.test_labels is None else data.test_labels[rows.start : rows.stop]
    with told(model, lambda shares: labels):
        nats = getattr(method, cell.ask)(model, x.to(device), cell.nfe)
    terms = dict(nats) if isinstance(nats, dict) else {"nll": nats}
    stderr = terms.pop("stderr", None)
    if data.kind == "tokens" != load(cell.data).kind:  # of probabilities, and not of densities as of images
        bins = torch.full((len(rows),), data.dim * math.log(2 / (data.levels - 1)), device=device)
        terms = terms | {"bins": bins}
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
