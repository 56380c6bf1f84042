"""Planning 100,000 cells, as a whole process: `bench run --dry-run` of every method for vectors at six
budgets and many seeds, on a results folder that answers other questions.
"""

import tempfile
from pathlib import Path

from benchmarks.record import Record, bench, cpu_of, medians, process, timed, turns
from benchmarks.rows import written

BUDGETS, SEEDS = "5,10,20,50,100,200", 183


def measure(small: bool = False) -> list[Record]:
    seeds = 2 if small else SEEDS
    words = ["run", "--data", "mixture2d", "--nfe", BUDGETS, "--seeds", f"0-{seeds - 1}", "--dry-run"]
    with tempfile.TemporaryDirectory() as place:
        folder, cache = written(Path(place) / "runs", 1000), Path(place) / "cache"
        command = lambda: bench(*words, "--results", folder, cache=cache)
        cells = command().splitlines()[-1].split()[0]
        cpu = cpu_of(command)
        bare = lambda: process("-c", "import torch")
        contenders = {"planning": timed(command), "import torch": timed(bare)}
        took = turns(contenders, 1 if small else 3, warm=False)
    seconds = medians(took)
    how = f"the whole process, of which importing torch takes {seconds['import torch']:.1f} s; median of "
    how += f"three, after one that took {cpu:.2f} s of processor"
    return [Record(f"planning {cells} cells", seconds["planning"], "s", 5.0, how, seconds)]
