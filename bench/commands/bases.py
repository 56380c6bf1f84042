"""`bench export`: shared models for other programs."""

from pathlib import Path

import click

from bench.commands.options import RANGES


@click.command()
@click.argument("data")
@click.argument("base")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--to",
    type=click.Choice(["diffusers", "folder"]),
    default="diffusers",
    show_default=True,
    help="A pipeline that diffusers opens, or a folder that --base takes.",
)
@click.option("--seed", type=RANGES["train_seed"], default=0, help="Seed of training [0].")
def export(data, base, folder, to, seed) -> None:
    """Write a shared base of DATA into a new FOLDER; it is trained first if need be."""
    from bench.data import load
    from bench.diffusion.denoiser import Denoiser
    from bench.models import bases, checkpoints, specs
    from bench.models.pipelines import exported

    if folder.exists() and any(folder.iterdir()):
        raise click.ClickException(f"{folder} is not empty; give a new folder.")
    asked = specs.parsed(base, specs.DENOISERS)
    if asked.clip and to == "folder":
        raise click.BadParameter("clip=1 is no part of a folder's network; leave it out.")
    if asked.steered:
        raise click.BadParameter("guidance is no part of a folder's network; leave it out.")
    model, card = bases.base_of(base, load(data), seed)
    if not isinstance(model, Denoiser):
        raise click.BadParameter(f"{base} is no denoiser, and only denoisers are exported.")
    if to == "diffusers":
        exported(model, folder)
    else:
        checkpoints.saved(model, card, folder)
    click.echo(f"{folder}: {base} of {data}")
