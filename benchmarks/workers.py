"""Two workers against one, on a digits run of some two minutes: a second process takes seconds to start."""

import tempfile
from pathlib import Path

from benchmarks.digits import WHAT, prepared
from benchmarks.record import Record, bench, medians, ratio, timed, turns

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
    return [Record("two workers", ratio(took, "one", "two"), "x", 1.7, how, medians(took))]
