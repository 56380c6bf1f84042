"""What it takes to start: commands that need no network, beside an empty Python."""

import tempfile

from benchmarks.record import Record, bench, medians, process, ratio, timed, turns

BOUND = 1.0  # seconds, after which a person has begun to wait


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
    return records
