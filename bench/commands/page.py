"""The page of all commands, from what `--help` is made of.

python -m bench.commands.page docs/commands.md
"""

from collections.abc import Iterator
from pathlib import Path

import click

HEAD = """# Commands

Made from the commands' own help by `python -m bench.commands.page docs/commands.md`; `bench COMMAND --help` prints
the same.

METHOD is a name of `bench list`, with parameters where they are not the defaults: `ddim:eta=0,1` is two lines of the
table. Budgets and seeds are lists or ranges, `5,10,20` or `0-2`. Exit codes: 0, 1 for what failed, 2 for what was asked
wrongly, 130 when interrupted.
"""  # noqa: E501


def page(group: click.Group) -> str:
    """The page in Markdown: a section for each command, with a table of its options."""
    parts = [section(path, command) for path, command in sorted(commands(group, "bench"))]
    return "\n".join([HEAD, *parts])


def commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, by its full name."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def section(path: str, command: click.Command) -> str:
    arguments = [argument(p) for p in command.params if isinstance(p, click.Argument)]
    options = [option(p) for p in command.params if isinstance(p, click.Option)]
    usage = " ".join([path, *arguments, *(["[OPTIONS]"] if options else [])])
    text = f"## {path}\n\n`{usage}`\n\n{' '.join((command.help or '').split())}\n"
    table = "\n".join(["| option | |", "|---|---|", *options])
    return text + (f"\n{table}\n" if options else "")


def argument(one: click.Argument) -> str:
    name = one.metavar or (one.name.upper() + ("..." if one.nargs == -1 else ""))
    return name if one.required else f"[{name}]"


def option(one: click.Option) -> str:
    """A line of the table: its names, what it takes, what it does, and its default."""
    names = ", ".join(
        f"`{name}{'' if one.is_flag else ' ' + value_of(one)}`" for name in [*one.opts, *one.secondary_opts]
    )
    says = one.help or ""
    if one.show_default and not one.is_flag and isinstance(one.default, str | int | float):
        says = f"{says} [{one.default}]".strip()
    marks = ["required"] * one.required + ["may be given again"] * one.multiple
    says += f" ({', '.join(marks)})" if marks and "again" not in says else ""
    return f"| {names} | {says.strip()} |".replace("|  |", "| |")


def value_of(one: click.Option) -> str:
    if one.metavar:
        return one.metavar
    if isinstance(one.type, click.Choice):
        return "/".join(one.type.choices)
    return {"integer": "N", "integer range": "N", "float": "X", "float range": "X", "numbers": "N,..."}.get(
        one.type.name, one.type.name.upper()
    )


@click.command()
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
def main(out: Path) -> None:
    """Write the page to OUT."""
    from bench.cli import main as bench

    out.write_text(page(bench), encoding="utf-8")


if __name__ == "__main__":
    main()
