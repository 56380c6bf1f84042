"""Options and parameter types that several commands share."""

from pathlib import Path

import click

RESULTS = click.option(
    "--results", type=click.Path(path_type=Path), default=Path("runs"), help="Results folder [runs]."
)
FORMAT = click.option("--format", "style", type=click.Choice(["text", "json"]), default="text")
TABLE_FORMAT = click.option(
    "--format", "style", type=click.Choice(["md", "latex", "csv", "json"]), default="md", show_default=True
)


class Numbers(click.ParamType):
    """`5,10,20` or `0-2`: whole numbers, none below `lowest`."""

    name = "numbers"

    def __init__(self, lowest: int):
        self.lowest = lowest

    def convert(self, value, param, context):
        if isinstance(value, tuple):
            return value
        found: list[int] = []
        for part in str(value).split(","):
            first, dash, last = part.strip().partition("-")
            try:
                found += range(int(first), int(last) + 1) if dash and first else [int(part)]
            except ValueError:
                self.fail(f"{part.strip()!r} is not a whole number.", param, context)
        wrong = [n for n in found if n < self.lowest]
        if wrong or not found:
            self.fail(
                f"{wrong[0] if wrong else value} is too small; {self.lowest} is the least.", param, context
            )
        return tuple(dict.fromkeys(found))
