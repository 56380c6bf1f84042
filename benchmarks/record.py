"""What a benchmark gives, and how contenders are timed."""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Record:
    """One measured figure. `value` is in `unit`: "x" for a ratio, which should be at least `bound`, or a
    quantity such as "s", which should be at most `bound`; None where nothing is claimed. `how` says who is
    compared with whom and what is inside the times, `details` holds these.
    """

    name: str
    value: float
    unit: str
    bound: float | None
    how: str
    details: dict = field(default_factory=dict)

    @property
    def holds(self) -> bool | None:
        if self.bound is None:
            return None
        return self.value >= self.bound if self.unit == "x" else self.value <= self.bound

    def facts(self) -> dict:
        return asdict(self) | {"holds": self.holds}


def timed(act: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> Callable[[], float]:
    """A function that does it and gives the seconds that it took."""

    def measured() -> float:
        began = clock()
        act()
        return clock() - began

    return measured


def turns(
    contenders: dict[str, Callable[[], float]], rounds: int, warm: bool = True
) -> dict[str, list[float]]:
    """Seconds of each contender in each round, which are what it gives. They take turns in an order that
    rotates, so that what else the machine does falls on all; `warm` runs each once before.
    """
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-1 if warm else 0, rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            took = contenders[name]()
            if turn >= 0:
                seconds[name].append(took)
    return seconds


def ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> float:
    """How many times as long `slow` takes: the median over the rounds, in which both had their turn."""
    return median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True))


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    return {name: round(median(values), 4) for name, values in seconds.items()}


def process(*words: str, cache: Path | None = None, threads: int = 1, fails: bool = False) -> str:
    """Run Python with these words in the checkout, and give what it prints; RuntimeError where it fails."""
    settings = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}
    if cache is not None:
        settings["TAXOBENCH_CACHE"] = str(cache)
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=settings, capture_output=True, text=True)
    if done.returncode and not fails:
        raise RuntimeError(f"{' '.join(words)} failed: {done.stderr.strip()[-300:]}")
    return done.stdout


def bench(*words: str | Path, cache: Path | None = None, fails: bool = False) -> str:
    """A `bench` command as a process of its own, with one thread."""
    return process("-m", "bench.cli", *map(str, words), cache=cache, fails=fails)


def cpu_of(command: Callable[[], object]) -> float:
    """The processors' seconds that the processes it starts and ends take: less than the clock's on a machine
    that has other work.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def fitted(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float, float]:
    """The least-squares line through (size, seconds): its slope, its start, and the greatest residual as a
    share of the greatest time.
    """
    n, mean, middle = len(sizes), sum(sizes) / len(sizes), sum(seconds) / len(seconds)
    spread = sum((size - mean) ** 2 for size in sizes)
    slope = sum((size - mean) * (s - middle) for size, s in zip(sizes, seconds)) / spread if n > 1 else 0.0
    start = middle - slope * mean
    worst = max(abs(s - start - slope * size) for size, s in zip(sizes, seconds))
    return slope, start, worst / max(seconds)
