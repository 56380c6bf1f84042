"""Where and how a plan runs: the device, the workers, the form in which networks are evaluated."""

import os
from collections.abc import Sequence

import click
import torch

from bench.cache import whole
from bench.data import Data
from bench.diffusion.execution import Execution, can_compile, settle, unfit
from bench.job import Cell
from bench.models.kept import cores
from bench.running.executors import Executor, local, over_ray
from bench.running.plan import Plan, Request
from bench.running.worker import Site

WORTH_WORKERS = 6_000_000  # evaluations times dimensions: some twenty seconds on one core
WORTH_COMPILING = 500_000_000  # likewise: half an hour of a core, a fifth of which repays the minute it takes
WORTH_COMPILING_ON_GPU = 5_000_000_000  # likewise: about a minute, as much as compiling takes


def device_of(name: str) -> str:
    """The device that is meant, `auto` being the GPU where there is one; click.BadParameter for one that is
    not here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise click.BadParameter(f"there is no device {name!r}; give cpu, cuda, cuda:1 or auto.")
    if kind == "cuda" and not torch.cuda.is_available():
        raise click.BadParameter(
            "there is no GPU here that torch can use; leave --device out or give --device cpu."
        )
    return name


def site_of(request: Request) -> Site:
    """The place a request names, made ready; an error where it cannot be used."""
    device = device_of(request.device)
    if why := unfit(request.precision, device):
        raise click.BadParameter(why)
    threads = request.threads or 1
    torch.set_num_threads(threads)
    settle("fp32", device)  # of all that is no network under measurement: extractors and metrics
    try:
        request.results.mkdir(parents=True, exist_ok=True)
        with whole(request.results / ".writable") as part:
            part.write_text("")
        (request.results / ".writable").unlink(missing_ok=True)  # another run may be as far
    except OSError as error:
        raise click.ClickException(
            f"the results folder {request.results} cannot be written: {error.strerror}."
        ) from None
    files = tuple(path.resolve() for path in request.selection.plugin_files)
    run = request.name if request.minutes is not None else ""
    return Site(request.results.resolve(), device, threads, request.micro_batch, files, request.minutes, run)


def execution_of(plan: Plan) -> Execution:
    """The form in which a plan's networks are evaluated: the precision asked for, and compiled where that was
    asked for or all of the plan's work repays it, be it done already or not: a run that was stopped goes on
    as it began.
    """
    request, device = plan.request, plan.site.device
    enough = WORTH_COMPILING if device == "cpu" else WORTH_COMPILING_ON_GPU
    repays = work_of(plan.cells, plan.data) > enough and can_compile(device)
    return Execution(request.precision, repays if request.compile is None else request.compile)


def work_of(cells: Sequence[Cell], data: Data) -> int:
    """What it takes to draw them, in evaluations times dimensions."""
    return sum(cell.nfe * cell.samples for cell in cells) * data.dim


def workers(plan: Plan) -> int:
    """How many processes draw: as many as asked for, else one a core, or one a GPU, where the work repays
    starting them.

    Single-threaded workers draw the same numbers however many there are, and small networks faster than
    threads do.
    """
    if plan.request.workers:
        return plan.request.workers
    left = work_of(plan.todo, plan.data)
    if plan.site.device == "cuda":
        return torch.cuda.device_count() if left > WORTH_COMPILING_ON_GPU else 1
    several = plan.site.device == "cpu" and plan.site.threads == 1 and left > WORTH_WORKERS
    return cores() if several else 1


def executor_of(plan: Plan) -> Executor:
    """Who draws: this process or several, each GPU having its own, or a Ray cluster. What draws on a GPU is a
    process of its own, so that this one can extract features meanwhile.
    """
    request, site = plan.request, plan.site
    if not away(plan):
        gpus = visible_gpus() if site.device == "cuda" else []
        settings = [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus]
        gpu = site.device.startswith("cuda")
        return local(workers(plan), request.time_limit is not None, settings or ({},), gpu)
    if ":" in site.device:
        raise click.BadParameter("under Ray each task sees the GPU that it was given: give --device cuda.")
    return over_ray(request.address, site.threads, request.gpus * (site.device == "cuda"), request.workers)


def ahead(plan: Plan) -> int:
    """How many tasks wait at each worker: on a GPU enough to draw on while a cell is measured."""
    return 64 if plan.site.device.startswith("cuda") else 1


def away(plan: Plan) -> bool:
    """Whether the work is done where neither the results folder nor the cache need be ours."""
    return plan.request.executor == "ray"


def visible_gpus() -> list[str]:
    """The GPUs of this process, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]
