"""The command that trains shared models."""

import click

from bench.commands.options import RANGES, Size


@click.command()
@click.argument("data")
@click.argument("base", default="denoiser")
@click.option("--images", type=RANGES["images"], help="Budget in images seen; the data's default otherwise.")
@click.option("--minutes", type=RANGES["minutes"], help="Stop after this long; run again to go on.")
@click.option("--seed", type=RANGES["train_seed"], default=0, help="Seed of training [0].")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1 or auto.")
@click.option("--threads", type=RANGES["threads"], help="Threads of training on a CPU [all].")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "tf32", "bf16"]),
    default="fp32",
    show_default=True,
    help="Of training: bf16 is mixed precision.",
)
@click.option(
    "--shard-size",
    type=Size(),
    help="Leave the checkpoint in pieces of at most so much, such as 4MB; they are read like a whole one.",
)
def train(data, base, images, minutes, seed, device, threads, precision, shard_size) -> None:
    """Train a shared base, or go on with it. Under torchrun (torchrun --nproc-per-node N -m bench train ...)
    N processes train it together; that needs the extra multi-gpu.
    """
    from bench.data import load
    from bench.diffusion.execution import slow, unfit
    from bench.diffusion.team import Uneven, started
    from bench.models import bases
    from bench.progress import Progress
    from bench.running.sites import device_of

    device = device_of(device)
    if why := unfit(precision, device):
        raise click.BadParameter(why)
    try:
        team, device = started(device)
    except ModuleNotFoundError:
        raise click.ClickException(
            "several processes train together by Accelerate: install the extra multi-gpu (pip install "
            "'taxobench[multi-gpu]')."
        ) from None
    try:
        with Progress(quiet=not team.leads) as progress:
            if why := slow(precision, device):
                progress.note(why)
            how = bases.How(device, progress.report, minutes, threads, precision, shard_size, team)
            _, card = bases.base_of(base, load(data), seed, images, how)
    except Uneven as error:
        raise click.ClickException(str(error)) from None
    finally:
        team.part()
    if team.leads:
        for name in ("sha256", "images", "seconds", "loss_train", "loss_held_out", "folder"):
            if name in card:
                click.echo(f"{name}: {card[name]}")
        if card.get("capped"):
            click.echo("Not finished: run the same command again to go on.")
