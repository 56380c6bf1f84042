"""Commands that look after results and caches: verify, gc, doctor."""

import json
from collections import Counter
from pathlib import Path

import click

from bench.commands.options import FORMAT, RESULTS, Finite


@click.command()
@click.argument(
    "results", type=click.Path(path_type=Path, exists=True, file_okay=False), default=Path("runs")
)
@click.option(
    "--repair", is_flag=True, help="Move what is damaged aside, so that the next run makes it again."
)
@FORMAT
def verify(results, repair, style) -> None:
    """Read everything in RESULTS [runs] and in the cache again, and say what is damaged."""
    from bench import store
    from bench.cache import cache_dir
    from bench.upkeep import verifying

    read, damaged = Counter(), []
    for found in verifying.everything(results, cache_dir()):
        read[found.kind] += 1
        if found.fault:
            damaged.append(found)
            if style == "text":
                click.echo(found.sentence)
    missing = verifying.missing(results)
    left = verifying.repair(damaged, results, cache_dir()) if repair else damaged
    if style == "json":
        sentences = [found.sentence for found in damaged]
        record = {"read": read, "damaged": sentences, "left": len(left), "missing": missing}
        click.echo(json.dumps(record, indent=1))
    else:
        if missing:
            rows = "1 row was" if missing == 1 else f"{missing:,} rows were"
            there = "is not there" if missing == 1 else "are not there"
            why = "taken out since, or a kill fell before they were written"
            click.echo(f"{rows} noted in {results / store.SUMS} and {there}: {why}.")
        what = ", ".join(f"{count:,} x {kind}" for kind, count in read.items()) or "nothing"
        moved = f", of which {len(damaged) - len(left):,} moved aside" if repair else ""
        click.echo(f"read again: {what}; damaged: {len(damaged):,}{moved}.")
    if left:
        raise click.exceptions.Exit(1)


@click.command()
@click.option("--keep-gb", type=Finite(0), help="Keep so much of the cache, what was used last [everything].")
@click.option("--older-than", type=Finite(0), help="Free what was not used for so many days [nothing].")
@click.option("--data", is_flag=True, help="Data sets too; they have to be brought again.")
@click.option("--dry-run", is_flag=True, help="Say what would be freed, and free nothing.")
@RESULTS
def gc(keep_gb, older_than, data, dry_run, results) -> None:
    """Free what can be made again: left-over work always, the cache as far as it is told; never a result."""
    from bench.cache import cache_dir
    from bench.upkeep import collecting

    sizes, counts, busy = Counter(), Counter(), 0

    def take(waste) -> None:
        nonlocal busy
        if dry_run or collecting.free(waste):
            sizes[waste.what] += waste.size
            counts[waste.what] += 1
        else:
            busy += 1

    for waste in collecting.useless(results, cache_dir()):
        take(waste)
    if keep_gb is not None or older_than is not None:
        keep = None if keep_gb is None else keep_gb * 1e9
        for waste in collecting.beyond(collecting.cached(cache_dir(), data), keep, older_than):
            take(waste)
    for what, size in sizes.most_common():
        click.echo(f"{size / 1e6:,.1f} MB: {counts[what]:,} x {what}")
    total = f"{sum(sizes.values()) / 1e6:,.1f} MB"
    click.echo(f"{total} {'would be' if dry_run else 'were'} freed" + (f"; {busy} in use." if busy else "."))


@click.command()
@FORMAT
@RESULTS
def doctor(style, results) -> None:
    """Versions, devices, folders, extractors and data: what is here, and what is wrong."""
    from bench.upkeep.doctor import findings

    wrong, records = 0, []
    for found in findings(results):
        wrong += found.ok is False
        records.append({"what": found.what, "said": found.said, "ok": found.ok})
        if style == "text":
            mark = {True: "ok", False: "WRONG", None: "-"}[found.ok]
            click.echo(f"{mark:5}  {found.what}: {found.said}")
    if style == "json":
        click.echo(json.dumps(records, indent=1))
    if wrong:
        raise click.exceptions.Exit(1)
