"""python -m benchmarks [NAME]...: run the benchmarks, print their figures, keep them in benchmarks/results.

With --small it tries everything out on next to nothing, and keeps nothing.
"""

import json
import platform
import time
from importlib import import_module
from pathlib import Path

import click

from benchmarks import costs
from benchmarks.record import ROOT, Record

PARTS = ("startup", "planning", "rows", "frechet", "throughput", "scaling", "workers", "digits")
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "benchmarks" / "README.md"
START, END = "<!-- figures -->", "<!-- end of figures -->"


def taken(part: str, small: bool) -> dict:
    """What a part's module measures, with where and when."""
    import torch

    began = time.perf_counter()
    records: list[Record] = import_module(f"benchmarks.{part}").measure(small)
    return {
        "records": [record.facts() for record in records],
        "minutes": round((time.perf_counter() - began) / 60, 2),
        "machine": f"{processor()}, {cores()} cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def kept(folder: Path) -> dict[str, dict]:
    """By name, the parts that were measured, in the order of PARTS."""
    found = {name: folder / f"{name}.json" for name in PARTS}
    return {name: json.loads(path.read_text()) for name, path in found.items() if path.is_file()}


def table(parts: dict[str, dict]) -> str:
    """The figures in Markdown, a line each."""
    lines = ["| part | figure | measured | bound | holds | how |", "|---|---|---|---|---|---|"]
    for part, facts in parts.items():
        for one in facts["records"]:
            sign = "≥" if one["unit"] == "x" else "≤"
            bound = "" if one["bound"] is None else f"{sign} {one['bound']:g} {one['unit']}"
            holds = {True: "yes", False: "**no**", None: ""}[one["holds"]]
            cells = (part, one["name"], f"{one['value']:.3g} {one['unit']}", bound, holds, one["how"])
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def page(text: str, parts: dict[str, dict]) -> str:
    """The page with its figures replaced."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    machines = dict.fromkeys(f"{facts['machine']}, torch {facts['torch']}" for facts in parts.values())
    minutes = ", ".join(f"{name} {facts['minutes']:.1f}" for name, facts in parts.items())
    where = f"On {'; '.join(machines)}. Minutes: {minutes}."
    return f"{before}{START}\n{where}\n\n{table(parts)}\n{END}{after}"


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", type=click.Choice(PARTS))
@click.option("--small", is_flag=True, help="On next to nothing, to see that it works; keeps nothing.")
def main(names: tuple[str, ...], small: bool) -> None:
    """Run the benchmarks NAME, or all, and print every figure; exit code 1 where a bound does not hold."""
    found = {}
    for name in names or PARTS:
        click.echo(f"{name} ...", err=True)
        found[name] = taken(name, small)
        if not small:
            RESULTS.mkdir(exist_ok=True)
            text = json.dumps(found[name], indent=1, ensure_ascii=False) + "\n"
            (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")
    click.echo(table(found))
    if small:
        return
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), kept(RESULTS)), encoding="utf-8")
    if {"frechet", "throughput"} <= kept(RESULTS).keys():
        costs.write()
    if any(one["holds"] is False for facts in found.values() for one in facts["records"]):
        raise click.exceptions.Exit(1)


if __name__ == "__main__":
    main()
