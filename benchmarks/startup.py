"""What it takes to start: commands that need no network, beside an empty Python; and eight workers, which on
Linux are forked from one process, beside eight that import everything themselves.

python -m benchmarks.startup forked    # or anew: eight workers, until each has answered
"""

import sys
import tempfile
from importlib import import_module
from pathlib import Path
from statistics import median

from bench.running.crews import IMPORTED
from benchmarks.record import Record, bench, medians, process, ratio, timed, turns

BOUND = 1.0  # seconds, after which a person has begun to wait
WORKERS = 8


def measure(small: bool = False) -> list[Record]:
    with tempfile.TemporaryDirectory() as empty:
        contenders = {
            "python -c pass": lambda: process("-c", "pass"),
            "bench --help": lambda: bench("--help"),
            "bench list": lambda: bench("list"),
            "bench table (no rows)": lambda: bench("table", "--results", empty, fails=True),
        }
        took = turns({name: timed(act) for name, act in contenders.items()}, 1 if small else 9)
    records = []
    for name in list(contenders)[1:]:
        times = ratio(took, name, "python -c pass")
        how = f"the whole process; median of nine, {times:.1f} times an empty Python's"
        records.append(Record(name, medians(took)[name], "s", BOUND, how, medians(took)))
    return records if small else [*records, workers()]


def workers() -> Record:
    """How much sooner forked workers are there."""
    own: dict[str, float] = {}

    def started(how: str) -> None:
        own[how] = float(process("-m", "benchmarks.startup", how))

    took = turns({how: timed(lambda how=how: started(how)) for how in ("anew", "forked")}, 1, warm=False)
    memory = {f"MiB of its own, {how}": value for how, value in own.items()}
    how = f"the whole process until each has answered, once; {own['forked']:.0f} MiB of memory of its own a "
    how += f"worker instead of {own['anew']:.0f}"
    name = f"{WORKERS} workers: started anew, over forked"
    return Record(name, ratio(took, "anew", "forked"), "x", None, how, medians(took) | memory)


def own_memory(_: int) -> float:
    """MiB that this process shares with no other, once it could draw."""
    for module in IMPORTED:
        import_module(module)
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) / 1024


def main(how: str) -> None:
    """Start them, and print the median of their own memory."""
    from bench.running.crews import Processes
    from bench.running.executors import Pool

    pool = Pool(Processes(WORKERS, gpu=how == "anew"))
    print(median(memory for _, memory in pool.map(own_memory, range(WORKERS))))
    pool.close()


if __name__ == "__main__":
    main(sys.argv[1])
