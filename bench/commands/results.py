"""Commands that read results folders: table, diff, merge."""

import json
from pathlib import Path

import click

from bench.commands.options import FORMAT, REFERENCE, RESULTS, TABLE_FORMAT, Numbers, folder_of
from bench.store import uncollected

FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


@click.command()
@click.option("--category", help="Only methods of this category.")
@click.option("--data", help="Only this data set.")
@click.option("--metric", "metrics", multiple=True, help="Only these metrics (fid, or fid[digits]).")
@click.option("--nfe", type=Numbers(0), help="Only these budgets.")
@click.option("--protocol", help="Only rows of this protocol fingerprint.")
@REFERENCE
@click.option("--published", is_flag=True, help="The literature's numbers beside ours.")
@click.option("--long", "long_form", is_flag=True, help="A line a cell, with its measured NFE and cost.")
@click.option("--write", is_flag=True, help="Write all tables, in every format, to tables/ of the folder.")
@click.option("--stale", is_flag=True, help="Fail if the written tables are not what the rows give.")
@TABLE_FORMAT
@RESULTS
@click.pass_obj
@uncollected()
def table(end, metrics, reference, published, long_form, write, stale, style, results, **conditions) -> None:
    """Tables of what was measured."""
    from bench import store
    from bench.reporting.tables import Reading, chosen, tables
    from bench.row import Answer

    folder = folder_of(results, reference)
    if write or stale:
        written_or_stale(folder, reference, write)
        return
    rows = chosen(store.read(folder, Answer), **conditions)
    if not rows:
        raise click.ClickException(f"{folder} holds no rows of that kind; `bench run` measures some.")
    show(tables(rows, Reading(folder), metrics), folder, long_form, published, style)
    if end:  # a process of its own, which need not free its rows
        end()


def show(found: list, folder: Path, long_form: bool, published: bool, style: str) -> None:
    """Print tables: a line a cell, with the literature's numbers, or as they are."""
    from bench.reporting.rendering import render
    from bench.reporting.tables import Reading

    if long_form:
        from bench.reporting.tablefiles import long

        click.echo(long(found, style))
        return
    if not published:
        click.echo(render(found, style))
        return
    from bench.literature.beside import beside
    from bench.reporting import sheets

    pairs = beside(found, Reading(folder))
    shown = [pair for pair in pairs if not isinstance(pair, str)]
    if style in ("md", "latex"):
        click.echo(render(found, style))
        click.echo()
    if shown or style in ("csv", "json"):
        click.echo(sheets.render(shown, style))
    for pair in pairs:
        if isinstance(pair, str):
            click.echo(pair, err=style in ("csv", "json"))


def written_or_stale(folder: Path, reference: bool, write: bool) -> None:
    """Write a folder's tables, or say which are stale and fail; the reference has the literature's too."""
    from bench.reporting import tablefiles

    if write:
        click.echo(f"{len(tablefiles.write(folder, reference))} files written to {folder / 'tables'}.")
    elif names := tablefiles.stale(folder, reference):
        several = f" and {len(names) - 6} more" if len(names) > 6 else ""
        where = "--reference" if reference else f"--results {folder}"
        raise click.ClickException(
            f"stale in {folder / 'tables'}: {', '.join(names[:6])}{several}; "
            f"`bench table {where} --write` writes them anew."
        )


@click.command()
@click.argument("a", type=FOLDER)
@click.argument("b", type=FOLDER)
@click.option("--data", help="Only this data set.")
@click.option("--metric", "metrics", multiple=True, help="Only these metrics (fid, or fid[digits]).")
@click.option("--all", "everything", is_flag=True, help="Also what did not change significantly.")
@TABLE_FORMAT
def diff(a, b, data, metrics, everything, style) -> None:
    """What changed significantly from results folder A to B."""
    from bench.reporting.differences import compare, sheet
    from bench.reporting.sheets import render

    click.echo(render([sheet(compare(a, b, data, metrics), everything)], style))


@click.command()
@click.argument("sources", metavar="FROM...", type=FOLDER, nargs=-1, required=True)
@click.argument("into", type=click.Path(path_type=Path, file_okay=False))
@click.option("--dry-run", is_flag=True, help="Check everything and write nothing.")
@FORMAT
def merge(sources, into, dry_run, style) -> None:
    """Adopt the rows of results folders FROM... into the folder INTO; all are checked first."""
    from bench.upkeep.merging import merge as merged

    found = merged(sources, into, dry_run)
    if style == "json":
        click.echo(json.dumps([vars(one) | {"folder": str(one.folder)} for one in found], indent=1))
        return
    for one in found:
        would = "would be adopted" if dry_run else "adopted"
        click.echo(
            f"{one.folder}: {one.rows} rows {would}, {one.images} with sample images; left out: "
            f"{one.duplicates} answered already, {one.failures} failures."
        )
