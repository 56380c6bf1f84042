"""The command line. No logic here, and nothing heavy is imported before the command that needs it."""

import atexit
import io
import json
import os
import sys
from contextlib import suppress
from pathlib import Path

import click

from bench.commands.bases import export
from bench.commands.data import data_group
from bench.commands.drawing import plot, report
from bench.commands.literature import cite, published, show, taxonomy
from bench.commands.options import FORMAT, RANGES, RESULTS, STATISTICS, TABLE_FORMAT, Numbers, code_runs
from bench.commands.plugins import check, new
from bench.commands.results import diff, merge, table
from bench.commands.training import train
from bench.commands.upkeep import doctor, gc, verify


class Group(click.Group):
    """No traceback for what a person can mend."""

    def invoke(self, context):
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be text
        try:
            return super().invoke(context)
        except KeyboardInterrupt:
            click.echo("Stopped. The same command goes on from here.", err=True)
            sys.exit(130)
        except BrokenPipeError:
            sys.exit(0)
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            raise click.ClickException(
                f"{error.strerror or error}{where}. What was done is kept; run again to go on."
            ) from error


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="taxobench")
def main() -> None:
    """Diffusion models along the surveys' taxonomies: FID, IS and NLL at matched, measured NFE."""


@main.command("list")
@click.option("--category", help="Only this category.")
@click.option("--leaf", help="Only this leaf.")
@FORMAT
def list_methods(category, leaf, style) -> None:
    """What methods there are, without importing any."""
    from bench import registry
    from bench.selection import Selection, labelled
    from bench.taxonomy import load

    known = registry.plugins()
    chosen = labelled(Selection(category=category, leaf=leaf), known) if category or leaf else set(known)
    tree = load()
    places = {leaf.folder: leaf for leaf in tree.leaves if leaf.folder}
    records = [
        {
            "name": plugin.name,
            "title": plugin.title,
            "category": places[plugin.folder].category if plugin.folder in places else "",
            "leaf": places[plugin.folder].id if plugin.folder in places else plugin.folder,
            "paper": plugin.paper,
            "kinds": plugin.kinds,
            "abilities": list(plugin.abilities),
        }
        for plugin in sorted(known.values(), key=lambda p: (p.folder, p.name))
        if plugin.name in chosen
    ]
    if style == "json":
        click.echo(json.dumps(records, indent=1))
        return
    from tabulate import tabulate

    header = {"name": "name", "title": "title", "leaf": "leaf", "paper": "paper", "abilities": "abilities"}
    rows = [
        {key: ", ".join(r[key]) if isinstance(r[key], list) else r[key] for key in header} for r in records
    ]
    click.echo(tabulate(rows, header, tablefmt="simple"))


@main.command()
@click.argument("methods", nargs=-1)
@click.option("--category", help="Every method of a category, with its baselines.")
@click.option("--leaf", help="Every method of a leaf.")
@click.option("--survey", help="Read --category and --leaf as this survey's own labels.")
@click.option("--data", help="Data set [digits, or what the methods selected are for].")
@click.option(
    "--base",
    default="denoiser",
    show_default=True,
    help="denoiser[@IMAGES], conditional:guidance=2, a checkpoint folder, diffusers:FOLDER, module.py:make.",
)
@click.option(
    "--nfe", type=Numbers(1), default="5,10,20,50", show_default=True, help="Budgets, evaluations a sample."
)
@click.option(
    "--seeds", type=Numbers(0), default="0", show_default=True, help="Seeds of sampling: 0,1 or 0-2."
)
@click.option("--train-seed", type=RANGES["train_seed"], default=0, help="Seed of training.")
@click.option(
    "--images",
    type=RANGES["images"],
    help="Training budget, in images seen, of methods that train and of what they share beside the base.",
)
@click.option("--samples", type=RANGES["samples"], help="Samples a cell [2000].")
@click.option("--held-out", type=RANGES["held_out"], help="Test rows whose likelihood is asked [all].")
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    help="fid, is, kid, precision, recall, ...; the data's defaults otherwise.",
)
@click.option("--extractor", help="Feature extractor; the data's default otherwise.")
@STATISTICS
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1 or auto.")
@click.option("--threads", type=RANGES["threads"], help="Threads of each worker [1], and of training [all].")
@click.option("--workers", type=RANGES["workers"], help="Worker processes [1, or one a core].")
@click.option(
    "--executor",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Processes of this machine, or a Ray cluster.",
)
@click.option("--address", help="Of the Ray cluster, HOST:PORT [the one this machine is a node of].")
@click.option(
    "--gpus",
    type=RANGES["gpus"],
    default=1.0,
    show_default=True,
    help="GPUs of a task under Ray; a fraction shares one.",
)
@click.option(
    "--time-limit",
    type=RANGES["time_limit"],
    help="Seconds of drawing that a cell may take; beyond it fails [no limit].",
)
@click.option("--micro-batch", type=RANGES["micro_batch"], help="Rows given to the network at once.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "tf32", "bf16"]),
    default="fp32",
    show_default=True,
    help="Of the networks; part of the protocol.",
)
@click.option("--compile/--no-compile", default=None, help="Compile the networks, or not [where it repays].")
@click.option(
    "--minutes", type=RANGES["minutes"], help="Cap on each training's time; it goes on at the next run."
)
@click.option(
    "--plugin",
    "plugin_files",
    type=click.Path(path_type=Path),
    multiple=True,
    callback=code_runs,
    help="A method's file outside the zoo; its code runs.",
)
@click.option("--keep", type=RANGES["keep"], default=16, show_default=True, help="Sample images kept a cell.")
@click.option(
    "--trials", type=RANGES["trials"], default=0, help="Settings tried before these, if they are tuned."
)
@click.option("--again", is_flag=True, help="Measure again what is answered already.")
@click.option("--dry-run", is_flag=True, help="Print the plan and its cost, and draw nothing.")
@TABLE_FORMAT
@click.option("--quiet", is_flag=True, help="No progress.")
@RESULTS
def run(
    methods, category, leaf, survey, data, plugin_files, dry_run, style, quiet, device, **settings
) -> None:
    """Measure METHODS (name[:param=a,b]...) and print the table; goes on where an earlier run stopped."""
    from bench.running.crews import begun

    several = (settings["workers"] or 1) > 1 and settings["executor"] == "local"
    if several and not dry_run and not device.startswith("cuda"):
        begun()  # it imports what workers need while this process imports and plans
    from bench.running import planning
    from bench.running.plan import Request
    from bench.running.sites import device_of
    from bench.selection import Selection, data_of

    device = device_of(device)
    selection = Selection(methods, category, leaf, survey, plugin_files)
    names = [data] if data else data_of(selection)
    requests = [Request(selection, data=name, device=device, **settings) for name in names]
    if dry_run:
        from bench.running.estimating import described

        for request in requests:
            click.echo(described(planning.planned(request, train=False)))
        return
    from bench.progress import Progress
    from bench.reporting.rendering import render
    from bench.running import runner

    failed = False
    for request in requests:
        with Progress(quiet) as progress:
            plan = runner.carried_out(request, progress)
        found = runner.results(plan)
        click.echo(render(found.tables, style, found.baselines))
        for line in plan.skipped:
            click.echo(f"left out: {line}", err=True)
        failed = failed or bool(found.failed)
    if failed:
        raise click.exceptions.Exit(1)


@main.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--data", required=True, help="The data set the samples are of.")
@click.option("--metric", "metrics", multiple=True, help="fid, is, kid, precision, recall, ...")
@click.option("--extractor", help="Feature extractor; the data's default otherwise.")
@STATISTICS
@click.option("--method", default="", help="A name for these samples: appends rows to --results.")
@click.option("--nfe", type=click.IntRange(1), help="Their NFE, as declared; it is not measured.")
@FORMAT
@RESULTS
def score(path, data, metrics, extractor, statistics, method, nfe, style, results) -> None:
    """FID, IS, KID with error bars for anyone's samples (.npz or a folder of images)."""
    from bench.running.scoring import score_file

    adopt = (results, method, nfe) if method else None
    found = score_file(path, data, metrics, extractor, adopt, statistics)
    if style == "json":
        click.echo(json.dumps(found, indent=1))
    else:
        for record in found:
            number = f"{record['value']:.4f} ± {record['stderr']:.4f}"
            click.echo(f"{record['metric']}: {number}  ({record['samples']:,} samples)")


STATED = (taxonomy, show, cite, published)
UPKEEP = (verify, gc, doctor)
for command in (data_group, train, export, table, diff, merge, check, new, plot, report, *STATED, *UPKEEP):
    main.add_command(command)


def program() -> None:
    """`bench` as a process of its own. A command may `end` it as its last act."""
    code = 0
    try:
        main(prog_name="bench", obj=end)
    except SystemExit as left:
        code = left.code
    end(code)


def end(code: int | str | None = 0) -> None:
    """End the process, when all is said and closed: an interpreter takes up to a second to free what torch
    and diffusers are made of, or a hundred thousand rows, object by object.
    """
    atexit._run_exitfuncs()
    with suppress(OSError):  # nobody reads on
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


if __name__ == "__main__":
    program()
