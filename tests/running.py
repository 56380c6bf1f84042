"""Running the command line in a test, and reading what it left."""

from pathlib import Path

from click.testing import CliRunner
from msgspec.structs import asdict

from bench import store
from bench.cli import main

ROOT = Path(__file__).resolve().parents[1]
VOLATILE = {"seconds", "memory", "time", "host", "train_seconds", "commit"}
SMALL = ["--samples", "80", "--nfe", "4,9", "--threads", "1", "--quiet"]


def bench(*words, results=None):
    place = ["--results", str(results)] if results else []
    return CliRunner().invoke(main, [*map(str, words), *place])


def ran(*words, results):
    result = bench("run", *words, *SMALL, results=results)
    assert result.exit_code == 0, result.output
    return result.output


def facts(folder) -> list[dict]:
    """A folder's rows without what may differ between two runs."""
    rows = [{k: v for k, v in asdict(row).items() if k not in VOLATILE} for row in store.read(folder)]
    return sorted(rows, key=lambda row: (row["key"], row["metric"]))
