"""The commands for those who look: `bench plot` and `bench report`."""

from pathlib import Path

import click

from bench.commands.options import REFERENCE, RESULTS, Numbers, folder_of


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
@REFERENCE
@RESULTS
def plot(data, metric, nfe, kind, out, reference, results) -> None:
    """Figures of what was measured, into plots/ of the results folder or the one file asked for."""
    from bench.reporting.plots import plot as drawn

    for path in drawn(folder_of(results, reference), kind, data, metric, nfe, out):
        click.echo(str(path))


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="The file [report.html in the folder]."
)
@REFERENCE
@RESULTS
def report(out, reference, results) -> None:
    """One HTML file with everything measured: table, curves, samples, methods, protocol."""
    from bench.reporting.report import write

    folder = folder_of(results, reference)
    path = write(folder, out or folder / "report.html")
    click.echo(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
