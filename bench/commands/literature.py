"""Commands that tell what the surveys and the literature say: taxonomy, show, cite, published."""

import json
from pathlib import Path

import click

from bench.commands.options import FORMAT, TABLE_FORMAT, Numbers


@click.command()
@click.option("--category", help="Only this category.")
@click.option("--survey", help="A survey's own tree: yang, cao, croitoru or ulhaq.")
@click.option("--crosswalk", is_flag=True, help="A table of methods by the surveys' labels.")
@FORMAT
def taxonomy(category, survey, crosswalk, style) -> None:
    """The tree of the surveys: what is covered and what is missing."""
    from bench import registry
    from bench.literature.crosswalk import crosswalk as table
    from bench.literature.crosswalk import sentence, survey_coverage
    from bench.reporting.sheets import render
    from bench.taxonomy import coverage, load

    tree = load()
    known = registry.plugins()
    if crosswalk:
        chosen = tree.select(category=category, survey=survey) if category or survey else None
        sheet = table(tree, set(known), chosen)
        click.echo(render([sheet], "json" if style == "json" else "md"))
        return
    if survey:
        found = survey_coverage(tree, survey, set(known))
        if style == "json":
            click.echo(json.dumps(vars(found), indent=1))
        else:
            click.echo(f"{tree_text(tree.view(survey, set(known)))}\n\n{sentence(found)}")
        return
    records = coverage(tree, [(plugin.name, plugin.folder) for plugin in known.values() if plugin.folder])
    if category:
        wanted = tree.category(category).id
        records = [record for record in records if record["category"] == wanted]
    if style == "json":
        click.echo(json.dumps(records, indent=1))
        return
    for record in records:
        mark = "covered" if record["covered"] else "missing"
        click.echo(f"{record['category']} / {record['title']}: {mark}")
        for what in ("methods", "missing"):
            if record[what]:
                click.echo(f"    {what}: {', '.join(record[what])}")


def tree_text(branch, depth: int = 0) -> str:
    lines = [f"{'  ' * depth}{branch.title}" + (f"  [{', '.join(branch.plugins)}]" if branch.plugins else "")]
    return "\n".join([*lines, *(tree_text(child, depth + 1) for child in branch.branches)])


@click.command()
@click.argument("method")
@click.option(
    "--plugin",
    "plugin_files",
    type=click.Path(path_type=Path),
    multiple=True,
    help="A method's file outside the zoo.",
)
def show(method, plugin_files) -> None:
    """A method's card: idea, paper, place, cost, published numbers and their command."""
    from bench.reporting.cards import card

    click.echo(card(method, plugin_files))


@click.command()
@click.argument("methods", nargs=-1, required=True)
def cite(methods) -> None:
    """BibTeX of METHODS, by their names here or in the surveys."""
    from bench.literature.citing import bibtex

    click.echo(bibtex(methods))


@click.command()
@click.option("--data", help="Only this data set, such as cifar10.")
@click.option("--nfe", type=Numbers(1), help="Only these evaluations; several give a table method x NFE.")
@click.option("--category", help="Only methods of this category.")
@click.option("--method", "methods", multiple=True, help="Only this method; may be given again.")
@click.option("--group", help="Only this network, or same-network: all that several methods share.")
@click.option("--survey", help="A survey's own tables as printed, errata struck: cao.")
@TABLE_FORMAT
def published(data, nfe, category, methods, group, survey, style) -> None:
    """The literature's numbers at matched NFE; without conditions, what there is."""
    from bench.literature import surveys, views
    from bench.reporting.sheets import render

    if survey and group:
        raise click.UsageError("a survey's tables name no networks; give --survey or --group, not both.")
    if survey:
        found = surveys.sheets(survey, data, nfe, category, methods)
    elif any((data, nfe, category, methods, group)) or style in ("csv", "json"):
        found = views.sheets(data, nfe, category, methods, group)
    else:
        found = views.overview()
    click.echo(render(found, style))
