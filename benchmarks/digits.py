"""The table of four methods on digits, whole: `bench run` with two workers against a script that does the
same with diffusers' schedulers and torch-fidelity (`with_diffusers.py`), which has two threads.

Both are whole processes with the same network, the same 2,000 samples and NFE, FID and the Inception score by
the same extractor. The harness always gives their errors, and the bound is on the script that gives them too:
the same table. Without them it does less, and what is left of its time is the network's arithmetic, which
runs at the processor's speed in both. The network saw 256 images: how good it is does not matter to its
speed.
"""

import tempfile
from pathlib import Path

from benchmarks.record import Record, bench, medians, process, ratio, timed, turns

METHODS = ("ddim", "ddpm", "dpmpp_2m", "unipc")
BASE = "denoiser@256"
WHAT = ("--data", "digits", "--base", BASE, "--metric", "fid", "--metric", "is", "--quiet")


def prepared(cache: Path) -> None:
    """The network and the reference's features in a new cache, outside all times."""
    with tempfile.TemporaryDirectory() as runs:
        bench("run", "ddim", *WHAT, "--nfe", "1", "--samples", "40", "--results", runs, cache=cache)


def measure(small: bool = False) -> list[Record]:
    samples, budgets = (40, "5") if small else (2000, "10,50")
    size = ("--samples", str(samples), "--nfe", budgets)
    with tempfile.TemporaryDirectory() as place:
        cache = Path(place) / "cache"
        prepared(cache)

        def ours() -> None:
            with tempfile.TemporaryDirectory() as runs:
                bench("run", *METHODS, *WHAT, *size, "--workers", "2", "--results", runs, cache=cache)

        def theirs(*more: str) -> None:
            words = ("-m", "benchmarks.with_diffusers", *size, "--base", BASE, *more)
            process(*words, cache=cache, threads=2)

        contenders = {
            "harness": timed(ours),
            "values alone": timed(theirs),
            "values and errors": timed(lambda: theirs("--errors")),
        }
        took = turns(contenders, 1, warm=False)
    script = "diffusers' schedulers and torch-fidelity's calculate_metrics with two threads, "
    run = (
        f", over bench run with two workers: {', '.join(METHODS)} at {budgets} NFE, {samples:,} samples "
        "each, whole processes, once"
    )
    facts = medians(took)
    same = ratio(took, "values and errors", "harness")
    less = ratio(took, "values alone", "harness")
    return [
        Record(
            "whole table on digits, values and errors",
            same,
            "x",
            2.0,
            f"{script}errors by leaving out blocks{run}",
            facts,
        ),
        Record("whole table on digits, values alone", less, "x", None, f"{script}without errors{run}", facts),
    ]
