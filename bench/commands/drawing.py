"""The commands for those who look: `bench plot` and `bench report`."""

from pathlib import Path

import click

from bench.commands.options import RESULTS, Numbers


@click.command()
@click.option("--data", help="Only this data set.")
@click.option("--metric", help="Only this metric (fid, or fid[digits]).")
@click.option("--nfe", type=Numbers(1), help="Only these budgets.")
@click.option(
    "--kind",
    type=click.Choice(["curves", "pareto", "nll-fid", "samples", "convergence"]),
    help="Only figures of this kind.",
)
@click.option("--out", type=click.Path(path_type=Path), help="One figure's file: .png, .svg or .pdf.")
@RESULTS
def plot(data, metric, nfe, kind, out, results) -> None:
    """Figures of what was measured, into plots/ of the results folder or the one file asked for."""
    from bench.plots import plot as drawn

    for path in drawn(results, kind, data, metric, nfe, out):
        click.echo(str(path))


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="The file [report.html in the folder]."
)
@RESULTS
def report(out, results) -> None:
    """One HTML file with everything measured: table, curves, samples, methods, protocol."""
    from bench.report import write

    path = write(results, out or results / "report.html")
    click.echo(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
