"""From drawn chunks to rows: the metrics of a cell, its cost, and everything that says what its numbers are
numbers of.
"""

import json
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from bench import store
from bench.cache import whole
from bench.job import BLOCKS, Cell, Chunk, Readied
from bench.metrics.fidelity import measure
from bench.metrics.jackknife import Measured, of_mean
from bench.metrics.likelihood import measure_excess, measure_nll
from bench.metrics.references import reference
from bench.row import FLOOR, Row
from bench.running.chunks import read_chunk
from bench.running.plan import Plan, Request
from bench.running.planning import CHUNK, SAMPLES, expected, named
from bench.running.worker import device_name


def measured(plan: Plan, cell: Cell, chunks: list[Chunk], readied: Readied) -> list[Row]:
    """The rows of a cell whose chunks are all drawn."""
    nfe = sum(chunk.rows for chunk in chunks) / sum(chunk.n for chunk in chunks)
    if nfe > cell.nfe:
        raise ValueError(f"it took {nfe:.6g} evaluations a sample, more than its budget of {cell.nfe}")
    columns = sample_columns(plan, cell) if cell.ask == "sample" else nll_columns(plan, cell)
    return [row_of(plan, cell, name, m, chunks, nfe, readied) for name, m in columns.items()]


def drawn(plan: Plan, cell: Cell) -> Iterator[dict[str, Tensor]]:
    """The tensors of the cell's chunk files, one chunk after the other."""
    for number in cell.chunks:
        found = read_chunk(plan.site.chunk_file(cell, number), cell.source)
        if found is None:
            raise ValueError("a chunk was damaged after it was drawn; run again to draw it anew")
        yield found[1]


def sample_columns(plan: Plan, cell: Cell) -> dict[str, Measured]:
    """Metrics of samples, which are read chunk by chunk; only a few of the first and the distances, two
    numbers a sample, are held.
    """
    first: list[Tensor] = []
    distances: list[dict[str, Tensor]] = []

    def samples() -> Iterator[Tensor]:
        for tensors in drawn(plan, cell):
            stored = tensors.pop("samples")
            if not first:
                first.append(stored[: plan.request.keep].clone())
            distances.append(tensors)
            yield stored

    names = [name for name in plan.metrics.get("sample", ()) if name != "distance"]
    columns = compared(plan, names, samples(), cell.samples)
    if "distance" in plan.metrics.get("sample", ()) and "distance/end" in distances[0]:
        both = [torch.cat([found[f"distance/{end}"] for found in distances]) for end in ("end", "denoised")]
        nearest = min(both, key=lambda gap: float(gap.mean()))  # the end that this method arrives at
        columns["distance"] = of_mean(nearest, BLOCKS)
    if plan.request.keep and plan.data.kind == "image":
        keep_images(plan, cell, first[0])
    return columns


def compared(plan: Plan, names: list[str], samples: Iterable[Tensor], count: int) -> dict[str, Measured]:
    """The metrics of these samples by the plan's extractor, held against its reference."""
    against = plan.reference or "train"
    return measure(names, samples, plan.data, plan.extractor, BLOCKS, plan.site.device, against, count)


def nll_columns(plan: Plan, cell: Cell) -> dict[str, Measured]:
    tensors = list(drawn(plan, cell))
    nats = torch.cat([found["nats"] for found in tensors])
    terms = {
        name[5:]: torch.cat([f[name] for f in tensors]) for name in tensors[0] if name.startswith("term/")
    }
    name, *excess = expected(plan, cell)
    stderr = torch.cat([found["stderr"] for found in tensors]) if "stderr" in tensors[0] else None
    columns = {name: measure_nll(nats, plan.data, BLOCKS, terms if len(terms) > 1 else None, stderr)}
    if excess:
        exact = torch.cat([found["exact"] for found in tensors])
        columns[excess[0]] = measure_excess(nats, exact, plan.data, BLOCKS)
    return columns


def keep_images(plan: Plan, cell: Cell, stored: Tensor) -> None:
    """A few samples beside the rows, for grids and reports: uint8 or float16, by cell key."""
    first = stored.numpy()
    path = plan.site.results / "samples" / f"{cell.key}.npz"
    with whole(path) as part, part.open("wb") as file:
        np.savez_compressed(
            file, samples=first if first.dtype == np.uint8 else first.clip(-4, 4).astype(np.float16)
        )


def floor(plan: Plan, report: Callable[[str, int, int], None]) -> None:
    """What real data scores by the same measure: the held-out images against the training images, which
    takes a slow extractor hours the first time: `report` hears a label and how many of how many it has seen.
    """
    names = [name for name in plan.metrics.get("sample", ()) if name not in ("distance", "memorisation")]
    cell = floor_cell(plan)
    if not names or (cell.key, named(names[0], plan)) in store.answered(plan.site.results):
        return
    held_out = plan.data.test[: cell.samples]
    if len(held_out) < 2 * BLOCKS:
        return
    work = plan.site.results / "work"
    work.mkdir(parents=True, exist_ok=True)
    with FileLock(work / f"{cell.key}.lock"):
        if (cell.key, named(names[0], plan)) in store.answered(plan.site.results):
            return  # another run on this folder was faster
        if plan.compares:
            label = f"{plan.extractor.name} at the training images"
            reference(plan.data, plan.extractor, tell=partial(report, label))
        found = compared(plan, names, held_out.split(CHUNK), len(held_out))
        rows = [row_of(plan, cell, name, m, [], None, None) for name, m in found.items()]
        store.append(plan.site.results, rows)


def floor_cell(plan: Plan) -> Cell:
    samples = min(len(plan.data.test), plan.request.samples or SAMPLES)
    fingerprint = plan.cells[0].protocol if plan.cells else ""
    for cell in plan.cells:
        if cell.ask == "sample":
            fingerprint = cell.protocol
            break
    return Cell(
        FLOOR, 1, "{}", plan.request.data, "", "", 0, None, "sample", 0, 0, samples, samples, fingerprint, ""
    )


def floor_key(plan: Plan) -> str:
    return floor_cell(plan).key


def row_of(
    plan: Plan,
    cell: Cell,
    metric: str,
    found: Measured | None,
    chunks: Sequence[Chunk],
    nfe: float | None,
    readied: Readied | None,
    error: str | None = None,
) -> Row:
    """A row with everything that says what its number is a number of."""
    readied = readied or Readied()
    card = readied.card
    parameters = json.loads(cell.parameters)
    if readied.tolerance is not None:
        parameters["tolerance"] = readied.tolerance
    trained = cell.images is not None
    n = sum(chunk.n for chunk in chunks) or 1
    drawn_on = {chunk.readied.device for chunk in chunks} - {""}
    return Row.of(
        key=cell.key,
        method=cell.method,
        version=cell.version,
        parameters=parameters,
        data=cell.data,
        base=cell.base,
        base_id=cell.base_id,
        train_seed=cell.train_seed,
        images=cell.images,
        ask=cell.ask,
        budget=cell.nfe,
        seed=cell.seed,
        samples=found.samples if found else cell.samples,
        protocol=cell.protocol,
        metric=metric,
        value=found.value if found else None,
        replicates=list(found.replicates) if found else [],
        nfe=nfe,
        nfe_max=max((chunk.rows / chunk.n for chunk in chunks), default=None),
        extra=sum(chunk.extra for chunk in chunks) / n,
        jvps=sum(chunk.jvps for chunk in chunks) / n,
        vjps=sum(chunk.vjps for chunk in chunks) / n,
        seconds=n * median(chunk.seconds / chunk.n for chunk in chunks) if chunks else None,
        memory=max((chunk.memory for chunk in chunks), default=None),
        train_images=card.get("images", 0) if trained else 0,
        train_seconds=card.get("seconds", 0.0) if trained else 0.0,
        train_rows=(card.get("rows", 0) if trained else 0) + readied.searched,
        start=readied.start,
        details=(dict(found.extra) if found else {})
        | tuned(plan.request)
        | cut_short(card if trained else {}),
        error=error,
        source=cell.source,
        versions=versions(),
        device=" and ".join(sorted(drawn_on)) or device_name(plan.site.device),
        threads=plan.site.threads,
        host=platform.node(),
        commit=commit(),
        time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )


def tuned(request: Request) -> dict[str, int]:
    """How many trials the settings took, where it was said that they are tuned."""
    return {"trials": request.trials} if request.trials else {}


def cut_short(card: dict) -> dict[str, bool]:
    """That a training was stopped before its budget, by --minutes: the row answers nothing for good."""
    return {"capped": True} if card.get("capped") else {}


@lru_cache
def versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("taxobench", "torch", "diffusers", "torchdiffeq", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


@lru_cache
def commit() -> str:
    """The commit of the checkout this code lies in, with a + where files differ from it; empty outside a
    checkout.
    """
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=here, capture_output=True, text=True, timeout=10
        ).stdout.strip()

    try:
        head = git("rev-parse", "--short=12", "HEAD")
        return head + ("+" if head and git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def error_row(plan: Plan, cell: Cell, why: str, readied: Readied | None) -> Row:
    """A row that says why there is no number."""
    return row_of(plan, cell, "", None, [], None, readied, error=why)
