"""Options and parameter types that several commands share."""

import math
from pathlib import Path

import click

RESULTS = click.option(
    "--results", type=click.Path(path_type=Path), default=Path("runs"), help="Results folder [runs]."
)
REFERENCE = click.option("--reference", is_flag=True, help="The committed results instead of runs/.")
STATISTICS = click.option(
    "--statistics",
    type=click.Path(path_type=Path),
    help="Moments to compare with (.npz: mu, sigma); the training images' otherwise.",
)
FORMAT = click.option(
    "--format",
    "style",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="To be read, or all of it for programs.",
)
TABLE_FORMAT = click.option(
    "--format",
    "style",
    type=click.Choice(["md", "latex", "csv", "json"]),
    default="md",
    show_default=True,
    help="Markdown or LaTeX to be read, CSV or JSON with every digit.",
)

COMMITTED = Path(__file__).resolve().parents[2] / "results"


def code_runs(context: click.Context, parameter: click.Parameter, files: tuple[Path, ...]):
    """Say, once a command, that these files are programs: the callback of a --plugin that imports them."""
    if files:
        names = ", ".join(str(path) for path in files)
        click.echo(f"Plugins are code, which runs as you: {names}.", err=True)
    return files


def folder_of(results: Path, reference: bool) -> Path:
    """The results folder that is meant; ClickException where the committed one did not come along."""
    if reference and not COMMITTED.is_dir():
        raise click.ClickException("the committed results lie in a checkout only; give --results FOLDER.")
    return COMMITTED if reference else results


class Size(click.ParamType):
    """`4MB`: a number of bytes, at least one."""

    name = "size"

    def convert(self, value, param, context):
        from bench.diffusion.pieces import bytes_of

        try:
            return value if isinstance(value, int) else bytes_of(value)
        except ValueError as error:
            self.fail(str(error), param, context)


class Numbers(click.ParamType):
    """`5,10,20` or `0-2`: whole numbers, none below `lowest`, and no more than `MOST` in all."""

    name = "numbers"
    MOST = 10_000

    def __init__(self, lowest: int):
        self.lowest = lowest

    def convert(self, value, param, context):
        if isinstance(value, tuple):
            return value
        found: list[int] = []
        count = 0
        for part in str(value).split(","):
            first, dash, last = part.strip().partition("-")
            try:
                low, high = (int(first), int(last)) if dash and first else (int(part), int(part))
            except ValueError:
                self.fail(f"{part.strip()!r} is not a whole number.", param, context)
            count += max(0, high - low + 1)
            if count > self.MOST:
                self.fail(f"these are more than {self.MOST:,} numbers; give fewer.", param, context)
            found += range(low, high + 1)
        wrong = [n for n in found if n < self.lowest]
        if wrong or not found:
            self.fail(
                f"{wrong[0] if wrong else value} is too small; {self.lowest} is the least.", param, context
            )
        return tuple(dict.fromkeys(found))


class Finite(click.FloatRange):
    """A number of a range that is neither infinite nor no number at all."""

    def convert(self, value, param, context):
        number = super().convert(value, param, context)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, context)
        return number


# What numbers a run or a training takes, by the option's name: no more than any machine has or time allows.
RANGES = {
    "gpus": Finite(0, 1024, min_open=True),
    "held_out": click.IntRange(1, 10**12),
    "images": click.IntRange(1, 10**12),
    "keep": click.IntRange(0, 10**5),
    "micro_batch": click.IntRange(1, 10**7),
    "minutes": Finite(0),
    "samples": click.IntRange(1, 10**7),
    "threads": click.IntRange(1, 1024),
    "time_limit": Finite(0, min_open=True),
    "train_seed": click.IntRange(0, 2**32 - 1),
    "trials": click.IntRange(0, 10**9),
    "workers": click.IntRange(1, 1024),
}
