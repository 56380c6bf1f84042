"""`bench table` over 100,000 rows, as a whole process.

The rows are the committed ones once more for other seeds and under other data sets' names, each with numbers
of its own: every method, budget and metric that was measured, with all 20 replicates.
"""

import json
import random
import shutil
import tempfile
from itertools import count, islice
from pathlib import Path

from benchmarks.record import ROOT, Record, bench, cpu_of, medians, timed, turns

ROWS, SEEDS = 100_000, 10


def written(folder: Path, rows: int) -> Path:
    """The results folder with that many rows."""
    from bench.cache import canonical

    folder.mkdir(parents=True, exist_ok=True)
    lines = (ROOT / "results" / "rows.jsonl").read_text().splitlines()
    measured = [row for row in map(json.loads, lines) if row["error"] is None and row["budget"]]
    chance = random.Random(0)

    def copies():
        for number in count():
            for seed in range(SEEDS):
                for row in measured:
                    spread = [chance.gauss(1, 0.002) for _ in row["replicates"]]
                    yield row | {
                        "data": row["data"] + (f"-{number}" if number else ""),
                        "seed": seed,
                        "key": f"{row['key'][:12]}{number:04x}{seed:04x}",
                        "replicates": [a * b for a, b in zip(row["replicates"], spread)],
                    }

    with (folder / "rows.jsonl").open("w") as file:
        file.writelines(canonical(row) + "\n" for row in islice(copies(), rows))
    shutil.copytree(ROOT / "results" / "protocols", folder / "protocols", dirs_exist_ok=True)
    return folder


def measure(small: bool = False) -> list[Record]:
    rows = 2000 if small else ROWS
    with tempfile.TemporaryDirectory() as place:
        folder = written(Path(place), rows)
        command = lambda: bench("table", "--results", folder)
        cpu = cpu_of(command)
        took = turns({"bench table": timed(command)}, 1 if small else 3, warm=False)
    seconds = medians(took)["bench table"]
    how = "the whole process, from starting Python to the last line; median of three, after one that took "
    how += f"{cpu:.2f} s of processor"
    facts = {"seconds": took["bench table"], "processor": cpu}
    return [Record(f"bench table over {rows:,} rows", seconds, "s", 3.0, how, facts)]
