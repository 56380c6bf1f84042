"""Commands of data sets, and of the networks that look at them: data list, data fetch, data import."""

from pathlib import Path

import click


@click.group("data")
def data_group() -> None:
    """Data sets: what there is, and how to get it."""


@data_group.command("list")
def data_list() -> None:
    """The names of the data sets."""
    from bench.data import names

    click.echo("\n".join([*names(), "folder:PATH@SIZE", "npz:PATH", "text:PATH"]))


@data_group.command("fetch")
@click.argument("name")
def data_fetch(name) -> None:
    """Download a data set, or the weights of an extractor such as inception."""
    from bench.data import fetch
    from bench.metrics import weights

    where = weights.fetch(name) if name in weights.WEIGHTS else fetch(name)
    click.echo(f"{name}: {where}" if where else f"{name} needs no download.")


@data_group.command("import")
@click.argument("name")
@click.argument("path", type=click.Path(path_type=Path))
def data_import(name, path) -> None:
    """Make the data set NAME (celeba64, imagenet64) of the originals at PATH, a folder, .zip or .tar."""
    from bench.data import bring, load
    from bench.data.prepared import short_of

    for part, file in bring(name, path).items():
        click.echo(f"{part}: {file}")
    load.cache_clear()
    data = load(name)
    click.echo(f"{len(data.train):,} and {len(data.test):,} images, sha256 of the data {data.fingerprint}")
    if said := short_of(name, data):
        click.echo(said, err=True)
