"""Two workers against one, on a digits run of some two minutes: a second process takes seconds to start. And
what the machine itself has to give: two processes at once that do nothing but draw, against one.
"""

import tempfile
from pathlib import Path

from benchmarks.digits import WHAT, prepared
from benchmarks.record import Record, bench, medians, ratio, timed, turns
from benchmarks.throughput import apart, chunk

METHODS = ("ddim", "ddpm", "dpmpp_2m")


def measure(small: bool = False) -> list[Record]:
    samples, budgets = (40, "5") if small else (2000, "10,20,50")
    with tempfile.TemporaryDirectory() as place:
        cache = Path(place) / "cache"
        prepared(cache)

        def run(workers: int) -> None:
            with tempfile.TemporaryDirectory() as runs:
                size = ("--samples", str(samples), "--nfe", budgets, "--workers", str(workers))
                bench("run", *METHODS, *WHAT, *size, "--results", runs, cache=cache)

        took = turns({"one": timed(lambda: run(1)), "two": timed(lambda: run(2))}, 1, warm=False)
    how = f"bench run with one worker over with two: {', '.join(METHODS)} at {budgets} NFE, {samples:,} "
    how += "samples each, whole processes, once"
    return [
        Record("two workers", ratio(took, "one", "two"), "x", 1.7, how, medians(took)),
        drawing(*((40, 5, 1) if small else (500, 20, 5))),
    ]


def drawing(n: int, nfe: int, rounds: int) -> Record:
    """The most that two workers could gain here: the cores share what they read from and write to."""
    what = (1, "wall", "digits", n, nfe, "cpu")
    with apart(chunk, 1, *what) as one, apart(chunk, 2, *what) as two:
        took = turns({"one": one, "two": two}, rounds)
    how = f"processes that draw {n} images each by DDIM and do nothing else: what two draw in a time over "
    how += f"what one does; {rounds} rounds"
    return Record("two workers, drawing alone", 2 * ratio(took, "one", "two"), "x", None, how, medians(took))
