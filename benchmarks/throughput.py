"""Images a second of the harness, of a bare loop over the same network, and of diffusers' own pipeline.

python -m benchmarks throughput                                    # a part of all benchmarks
python -m benchmarks.throughput --data digits --nfe 10 --compile   # one comparison, in another form

All draw the same number of images by DDIM with one network (untrained: its weights do not matter to its
speed), each as it comes: the harness a chunk, counted, checked and quantised, through `worker.ask`; the loop
in the same process, with every coefficient worked out beforehand, in the harness's micro-batches; the
pipeline in one call, in a process of its own, so that it has torch as its users have it. They take turns, and
a ratio is the median over the turns, so that what else the machine does falls on all. With one thread on a
CPU time is the process's own, else it is the clock's.

On one thread all that the harness can save is what lies round the same arithmetic: pages that are given back
and fetched again, and at 28 x 28 the cache. With all cores it has a worker on each, and the pipeline as many
threads.
"""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from multiprocessing.connection import Connection, wait
from pathlib import Path
from statistics import median

import click
import torch
from torch import Tensor

from bench import registry
from bench.data import Data, load
from bench.diffusion.counting import Counted, part_of
from bench.diffusion.denoiser import FORMS, Denoiser, untrained
from bench.diffusion.execution import PLAIN, PRECISIONS, Execution, arithmetic, placed
from bench.diffusion.schedule import SCHEDULES
from bench.job import Cell
from bench.models.kept import cores
from bench.running.worker import Ready, Site, ask, default_micro_batch
from benchmarks.record import Record, ratio, timed, turns

SMALL = 100  # dimensions up to which one thread has nothing to win but pages
HARNESS, LOOP, PIPELINE = "harness", "bare loop", "diffusers pipeline"


def network(data: Data, device: str = "cpu") -> Denoiser:
    """The project's untrained network for these data, under DDPM's schedule."""
    torch.manual_seed(0)
    return placed(untrained(data).eval().requires_grad_(False), device).under(SCHEDULES["ddpm"]())


def harness(model: Denoiser, data: Data, n: int, nfe: int, site: Site) -> Callable[[], Tensor]:
    """One chunk of n samples as `bench run` draws it; gives them in stored form."""
    method = registry.find("ddim", registry.plugins(())).make({})
    asked = Ready(method, model, data, {})
    facts = {"method": "ddim", "version": 1, "parameters": "{}", "base": "", "base_id": "", "train_seed": 0}
    facts |= {"images": None, "ask": "sample", "seed": 0, "protocol": "", "source": ""}
    cell = Cell(**facts, data=data.name, nfe=nfe, samples=n, chunk=n)
    return lambda: ask(asked, cell, 0, site)[0]["samples"]


def bare_loop(model: Denoiser, x: Tensor, nfe: int, size: int, execution: Execution) -> Callable[[], Tensor]:
    """The plain loop: x at t = p x + q net(x / scale, lambda), size rows at a time, in EDM's F form."""
    schedule, counted = model.schedule, model.net
    steps = []
    for s, t in pairwise(schedule.steps(nfe, "time", end="zero")):
        alpha, sigma = schedule.alpha(s), schedule.sigma(s)
        a, b = FORMS[model.form](alpha, sigma, model.sigma_data)
        on_x0, on_eps, solved = schedule.alpha(t), schedule.sigma(t), alpha * b - sigma * a
        p, q = (on_x0 * b - on_eps * a) / solved, (on_eps * alpha - on_x0 * sigma) / solved
        scale = 1 / (alpha * torch.sqrt(model.sigma_data**2 + (sigma / alpha) ** 2))
        steps.append(tuple(float(value) for value in (scale, torch.log(alpha / sigma), p, q)))

    @torch.no_grad()
    def draw() -> Tensor:
        net = compiled_or_plain(counted, x, execution)
        parts = []
        with arithmetic(execution.precision, str(x.device)):
            for rows in x.split(size):
                lam = torch.empty(len(rows), device=x.device)
                for scale, value, p, q in steps:
                    rows = p * rows + q * execution.evaluate(net, scale * rows, lam.fill_(value))
                parts.append(rows)
        return torch.cat(parts).cpu()

    return draw


def compiled_or_plain(counted: Counted, x: Tensor, execution: Execution) -> Callable:
    """The network the harness calls, which compiles it once."""
    return counted.fast.get(str(x.device), counted.net) if execution.compiled else counted.net


def pipeline(name: str, n: int, nfe: int, device: str) -> Callable[[], object]:
    """diffusers' DDIMPipeline over the same UNet2DModel, n images in one call, as arrays."""
    from diffusers import DDIMPipeline, DDIMScheduler

    pipe = DDIMPipeline(network(load(name)).net.net.unet, DDIMScheduler(clip_sample=False)).to(device)
    pipe.set_progress_bar_config(disable=True)
    return lambda: pipe(batch_size=n, num_inference_steps=nfe, output_type="np").images


def clocked(draw: Callable[[], object], clock: str) -> Callable[[], float]:
    """Seconds that one drawing takes, by the process's own time or the wall's."""

    def finished() -> None:
        draw()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return timed(finished, time.process_time if clock == "process" else time.perf_counter)


def chunk(name: str, n: int, nfe: int, device: str, execution: Execution = PLAIN) -> Callable[[], object]:
    """`harness` for a worker process."""
    data = load(name)
    return harness(network(data, device), data, n, nfe, Site(Path("."), device, 1, execution=execution))


def serve(pipe: Connection, build: Callable, threads: int, clock: str, *facts) -> None:
    """The life of a process: draw whenever something is sent, and say how long it took."""
    torch.set_num_threads(threads)
    measured = clocked(build(*facts), clock)
    pipe.send(None)
    while pipe.recv():
        pipe.send(measured())


@contextmanager
def apart(
    build: Callable, count: int, threads: int, clock: str, *facts, each: int = 1
) -> Iterator[Callable[[], float]]:
    """Seconds that `count` processes take together to draw what `build(*facts)` draws `each` times a process:
    who is free draws next, as in a run.
    """
    context = multiprocessing.get_context("spawn")
    ends = [context.Pipe() for _ in range(count)]
    words = (build, threads, clock, *facts)
    processes = [context.Process(target=serve, args=(theirs, *words), daemon=True) for _, theirs in ends]

    def measured() -> float:
        began = time.perf_counter()
        own = handed_out([ours for ours, _ in ends], count * each)
        return sum(own) if clock == "process" else time.perf_counter() - began

    for process, (_, theirs) in zip(processes, ends):
        process.start()
        theirs.close()  # else nobody would hear of its death
    try:
        for ours, _ in ends:
            ours.recv()
        yield measured
    finally:
        for (ours, _), process in zip(ends, processes):
            with suppress(OSError):  # it is dead
                ours.send(False)
            process.join(10)
            process.kill()
            process.join()


def handed_out(pipes: list[Connection], times: int) -> list[float]:
    """Let whoever is free draw, so many times in all; the seconds that each drawing took."""
    for pipe in pipes:
        pipe.send(True)
    left, busy, took = times - len(pipes), list(pipes), []
    while busy:
        for pipe in wait(busy):
            took.append(pipe.recv())
            if left > 0:
                pipe.send(True)
                left -= 1
            else:
                busy.remove(pipe)
    return took


def restarted(starts: int, measured: Callable[[], dict[str, list[float]]]) -> dict[str, list[float]]:
    """The seconds of several measurements one after the other, each with processes of its own, so that no
    minute of the machine and no one process decides.
    """
    took: dict[str, list[float]] = {}
    for _ in range(starts):
        for who, seconds in measured().items():
            took.setdefault(who, []).extend(seconds)
    return took


def compared(
    name: str, nfe: int, n: int, rounds: int, site: Site, clock: str, starts: int = 1
) -> list[Record]:
    """How many times as fast as the others the harness draws n images; details are images a second. The
    pipeline is started `starts` times.
    """
    data = load(name)
    model = network(data, site.device)
    most = site.micro_batch or default_micro_batch(data, site.device)
    size = part_of(n, most, site.execution.compiled)
    x = torch.randn(n, *data.shape, device=site.device)
    ours = {
        HARNESS: clocked(harness(model, data, n, nfe, site), clock),
        LOOP: clocked(bare_loop(model, x, nfe, size, site.execution), clock),
    }

    def measured() -> dict[str, list[float]]:
        with apart(pipeline, 1, site.threads, clock, name, n, nfe, site.device) as pipe:
            return turns(ours | {PIPELINE: pipe}, rounds)

    took = restarted(starts, measured)
    form = form_of(site.execution)
    how = f"{n} images by DDIM, {starts} x {rounds} rounds, {site.threads} thread, {clock} time"
    fast = site.device != "cpu" or (site.execution.compiled and data.dim > SMALL)
    return [
        record(f"{name}, {nfe} NFE{form}: against the {LOOP}", took, LOOP, n, 0.95, how),
        record(
            f"{name}, {nfe} NFE{form}: against the {PIPELINE}", took, PIPELINE, n, 1.5 if fast else None, how
        ),
    ]


def form_of(execution: Execution) -> str:
    return ", compiled" if execution.compiled else ""


def on_all_cores(
    name: str, nfe: int, size: int, each: int, rounds: int, starts: int, execution: Execution = PLAIN
) -> list[Record]:
    """A worker a core, which draws `each` chunks of `size` images a turn, against the pipeline with a thread
    a core, which draws as many, a chunk for every core in one call.
    """
    count = cores()

    def measured() -> dict[str, list[float]]:
        with (
            apart(chunk, count, 1, "wall", name, size, nfe, "cpu", execution, each=each) as workers,
            apart(pipeline, 1, count, "wall", name, count * size, nfe, "cpu", each=each) as pipe,
        ):
            return turns({HARNESS: workers, PIPELINE: pipe}, rounds)

    took, n = restarted(starts, measured), count * size * each
    how = f"{n} images by DDIM in chunks of {size}, {starts} x {rounds} rounds, {count} workers against "
    how += f"{count} threads, wall time"
    title = f"{name}, {nfe} NFE{form_of(execution)}, all cores: against the {PIPELINE}"
    return [record(title, took, PIPELINE, n, 1.5 if execution.compiled else None, how)]


def record(
    title: str, took: dict[str, list[float]], other: str, n: int, bound: float | None, how: str
) -> Record:
    """How many times as fast as `other` the harness was; details are images a second."""
    speeds = {who: round(n / median(seconds), 2) for who, seconds in took.items()}
    return Record(
        title, ratio(took, other, HARNESS), "x", bound, f"{how}; its time over the harness's", speeds
    )


def measure(small: bool = False) -> list[Record]:
    """8 x 8 images at two budgets, and on all cores, in the chunks of a run; 28 x 28 at one. The bound
    against the pipeline is on compiled networks, which a run has where it takes longer than that.
    """
    site = Site(Path("."), "cpu", 1)
    torch.set_num_threads(1)
    if small:
        return compared("digits", 2, 2, 1, site, "process")
    fast = replace(site, execution=Execution(compiled=True))
    found = compared("digits", 10, 500, 25, site, "process") + compared("digits", 50, 500, 5, site, "process")
    found += compared("digits", 10, 500, 25, fast, "process")  # turns of two seconds, which swing by a tenth
    for form, starts in ((site, 1), (fast, 3)):  # one swings by a fifth, which is too much for a bound
        found += on_all_cores("digits", 10, 500, each=3, rounds=5, starts=starts, execution=form.execution)
        found += compared("mixture-fashion", 10, 500, 3, form, "process", starts)
    return found


@click.command()
@click.option("--data", "name", default="digits", show_default=True, help="Data of which shape.")
@click.option("--nfe", type=click.IntRange(1), default=10, show_default=True)
@click.option("--images", type=click.IntRange(1), default=500, show_default=True, help="Images a turn.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", help="Not the pipeline's.")
@click.option("--compile", is_flag=True, help="Compile the network of the harness and of the loop.")
def main(name, nfe, images, rounds, device, threads, precision, compile) -> None:
    """Compare the harness with a bare loop and with diffusers' pipeline once."""
    torch.set_num_threads(threads)
    site = Site(Path("."), device, threads, execution=Execution(precision, compile))
    clock = "process" if device == "cpu" and threads == 1 else "wall"
    for found in compared(name, nfe, images, rounds, site, clock):
        click.echo(f"{found.name}: {found.value:.3g} x ({found.how}; images a second: {found.details})")


if __name__ == "__main__":
    main()
