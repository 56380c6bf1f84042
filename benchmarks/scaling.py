"""How the cost of a run grows with samples, methods and NFE: a line is fitted through each.

Runs on digits with one worker, in this process, whose own time counts: drawing, counting, metrics, rows.
"""

import tempfile
import time
from pathlib import Path

from benchmarks.digits import BASE
from benchmarks.record import Record, fitted

START = {"samples": 500, "methods": 1, "nfe": 10}
TIMES = (1, 2, 3, 4)  # the start
CROOKED = 0.05  # of the greatest time, by which no point should miss its line


def seconds(samples: int, methods: int, nfe: int) -> float:
    """This process's seconds for a run of so many lines of DDIM, of one cost whatever their parameter is."""
    from bench.progress import Progress
    from bench.running import runner
    from bench.running.plan import Request
    from bench.selection import Selection

    lines = ("ddim:eta=" + ",".join(f"{k / 10:g}" for k in range(methods)),)
    with tempfile.TemporaryDirectory() as place, Progress(quiet=True) as progress:
        began = time.process_time()
        request = Request(
            Selection(lines),
            base=BASE,
            nfe=(nfe,),
            samples=samples,
            metrics=("fid", "is"),
            results=Path(place),
            workers=1,
            keep=0,
        )
        runner.carried_out(request, progress)
        return time.process_time() - began


def measure(small: bool = False) -> list[Record]:
    start, times = (START | {"samples": 40}, TIMES[:2]) if small else (START, TIMES)
    seconds(**start)  # trains the network, warms everything up
    records = []
    for what in start:
        sizes = [start[what] * factor for factor in times]
        took = [seconds(**start | {what: size}) for size in sizes]
        slope, first, residual = fitted(sizes, took)
        others = " and ".join(f"{value:,} {name}" for name, value in start.items() if name != what)
        how = (
            f"a line through {sizes[0]:,} to {sizes[-1]:,} {what} at {others}: {1000 * slope:.3g} ms each "
            f"after {first:.2f} s; how far the worst point lies from it, as a share of the greatest time"
        )
        facts = {"sizes": sizes, "seconds": took, "slope": slope, "start": first}
        records.append(Record(f"cost grows linearly with {what}", residual, "off", CROOKED, how, facts))
    return records
