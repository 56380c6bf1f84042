"""The commands for those who write a plugin: `bench new` and `bench check`."""

import json
from pathlib import Path

import click

from bench.commands.options import FORMAT, code_runs


@click.command()
@click.argument("methods", nargs=-1)
@click.option(
    "--plugin",
    "files",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    callback=code_runs,
    help="A method's file outside the zoo; its code runs.",
)
@FORMAT
@click.option("--verbose", is_flag=True, help="Also what passes.")
def check(methods, files, style, verbose) -> None:
    """Hold METHODS, or the whole zoo, to what every plugin promises; one sentence a failure."""
    from bench.check import everything, line, record

    found = []
    for result in everything(methods, files):
        found.append(result)
        if style == "text" and (verbose or result.ok is False):
            click.echo(line(result))
    failed = [result for result in found if result.ok is False]
    if style == "json":
        click.echo(json.dumps([record(result) for result in found], indent=1))
    else:
        passed, methods = sum(bool(result.ok) for result in found), {result.method for result in found}
        click.echo(f"{len(methods)} methods: {passed} checks passed, {len(failed)} failed.")
    if failed:
        raise click.exceptions.Exit(1)


@click.command()
@click.argument("leaf")
@click.argument("method")
@click.option("--paper", required=True, metavar="arXiv:XXXX.XXXXX", help="The paper it is from.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="A folder outside the zoo.")
def new(leaf, method, paper, out) -> None:
    """Write the plugin file of a new METHOD under a LEAF of the taxonomy."""
    from bench.scaffold import new as written

    path = written(leaf, method, paper, out)
    what = f"--plugin {path}" if out else method
    click.echo(f"{path} is written and runs; `bench check {what}` says what it still lacks.")
