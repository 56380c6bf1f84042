"""Figures of what was measured, for print: colours that the colour-blind can tell, and never colour alone."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from textwrap import fill

import click

from bench import store
from bench.reporting import samples
from bench.reporting.panels import name_ends, nll_fid_panel, panel, pareto_panel
from bench.reporting.series import (
    BASELINES,
    BETTER,
    Column,
    Line,
    Point,
    columns_of,
    looks,
    place_of,
    reading_of,
)

STYLE = {
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "svg.hashsalt": "taxobench",  # the same rows give the same file
    "pdf.fonttype": 42,
}
BARS = "Bars: 95 % intervals."
UNDATED = {"svg": {"Date": None}, "pdf": {"CreationDate": None, "ModDate": None}, "png": {"Software": None}}


def plot(
    folder: Path,
    kind: str | None = None,
    data: str | None = None,
    metric: str | None = None,
    nfe: Sequence[int] | None = None,
    out: Path | None = None,
) -> list[Path]:
    """Draw the figures of a results folder into its plots/, or the one that is asked for to `out`.

    Raises ClickException where nothing can be drawn, or several figures would go to one file.
    """
    import matplotlib as mpl

    rows = store.read(folder)
    if nfe:
        rows = [row for row in rows if row.budget in nfe or row.budget == 0]
    with mpl.rc_context(STYLE):
        columns = columns_of(rows, reading_of(folder), data, metric)
        draw = [KINDS[kind]] if kind else KINDS.values()
        figures = [figure for one in draw for figure in one(columns, folder)]
        if not figures:
            raise click.ClickException(
                f"{folder} has nothing to draw of that kind; `bench table` shows what it has."
            )
        if out and len(figures) > 1:
            several = ", ".join(name for name, _ in figures[:8])
            raise click.ClickException(
                f"that is {len(figures)} figures ({several}): narrow it down with --kind, --data, "
                "--metric and --nfe, or leave out --out."
            )
        return [saved(figure, out or folder / "plots" / f"{name}.png") for name, figure in figures]


def saved(figure, path: Path) -> Path:
    form = path.suffix.lower().lstrip(".")
    if form not in UNDATED:
        raise click.BadParameter(f"{path} must end in .png, .svg or .pdf.")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=200, metadata=UNDATED[form], bbox_inches="tight")
    return path


def name_of(kind: str, column: Column, name: str | None = None) -> str:
    """A file's name: kind, data, column, and the protocol where there are several of them."""
    parts = [kind, column.data, column.name if name is None else name]
    text = "-".join([*filter(None, parts), *([] if column.alone else [column.protocol])])
    return re.sub(r"[^\w.]+", "-", text).strip("-")


def heading(figure, column: Column, what: str, errors: str = "Bands: 95 % intervals.") -> None:
    """The figure's title, and under the figure how it was measured."""
    figure.suptitle(what, fontsize=10.5, x=0.01, ha="left")
    protocol = "" if column.alone else f" Protocol {column.protocol}."
    notes = column.table.notes[0].partition(";")[0] if column.table.notes else ""
    figure.text(0.01, -0.01, f"{notes}. {errors}{protocol}", fontsize=7.5, va="top", color="#444")


def curves(columns: Sequence[Column], folder: Path) -> Iterator[tuple[str, object]]:
    """Each metric against measured NFE, one panel a leaf, baselines in grey in all of them."""
    for column in columns:
        if drawn(column.lines) and column.name != "distance":
            yield name_of("curves", column), panels(column, f"{titled(column)}, on {column.data}")


def convergence(columns: Sequence[Column], folder: Path) -> Iterator[tuple[str, object]]:
    """The distance to the converged solution against measured NFE, with slopes of orders 1, 2, 3."""
    for column in columns:
        if column.table.metric == "distance" and drawn(column.lines):
            what = f"Distance to the converged solution, on {column.data} (exact score)"
            yield name_of("convergence", column, ""), panels(column, what, slopes=True)


def titled(column: Column) -> str:
    unit = next((p.entry.rows[0].details.get("unit") for line in column.lines for p in line.points), None)
    title = column.metric.title[0].upper() + column.metric.title[1:]
    return f"{title}: {column.name}{f' in {unit}' if unit else ''} ({BETTER[column.metric.better]})"


def drawn(lines: Sequence[Line]) -> list[Line]:
    """The lines that have a place on an axis of NFE."""
    return [line for line in lines if any(p.nfe > 0 for p in line.points)]


def panels(column: Column, what: str, slopes: bool = False):
    """A figure with one panel for each leaf."""
    look, lines = looks(column.lines), drawn(column.lines)
    figure, places = leaf_by_leaf(lines, column.name)
    ends = [(ax, panel(ax, mine, look, column, slopes)) for ax, mine in places]
    figure.draw_without_rendering()
    for ax, there in ends:
        name_ends(ax, there)
    heading(figure, column, what)
    return figure


def leaf_by_leaf(lines: Sequence[Line], ylabel: str, sharex: bool = False):
    """A figure, and for each leaf its axes with the lines to draw there: its own, and the baselines."""
    from matplotlib.figure import Figure

    leaves = sorted({line.folder for line in lines if not line.baseline}) or [BASELINES]
    wide = min(2, len(leaves))
    tall = -(-len(leaves) // wide)
    figure = Figure(figsize=(4.9 * wide, 3.5 * tall + 0.2), layout="constrained")
    axes = figure.subplots(tall, wide, squeeze=False, sharey=True, sharex=sharex).ravel()
    for ax, leaf in zip(axes, leaves, strict=False):
        ax.set_title(fill(": ".join(dict.fromkeys(place_of(leaf))), 44), loc="left")
        ax.xaxis.set_tick_params(labelbottom=True)
    for ax in axes[::wide]:
        ax.set_ylabel(ylabel)
    for ax in axes[len(leaves) :]:
        ax.remove()
    mine = [[line for line in lines if line.folder == leaf or line.baseline] for leaf in leaves]
    return figure, list(zip(axes, mine, strict=False))


def pareto_front(columns: Sequence[Column], folder: Path) -> Iterator[tuple[str, object]]:
    """FID against seconds, a panel for each machine, with the methods that nothing beats in both."""
    from matplotlib.figure import Figure

    for column in columns:
        timed = [(line, p) for line in column.lines for p in line.points if p.seconds and p.value > 0]
        if column.table.metric != "fid" or not timed:
            continue
        machines = sorted({p.machine for _, p in timed})
        figure = Figure(figsize=(6.2, 3.9 * len(machines)), layout="constrained")
        for ax, machine in zip(figure.subplots(len(machines), 1, squeeze=False)[:, 0], machines, strict=True):
            pareto_panel(
                ax, [pair for pair in timed if pair[1].machine == machine], looks(column.lines, False)
            )
            ax.set_ylabel(column.name)
            ax.set_title(f"on {machine}", loc="left")
        heading(figure, column, f"{column.name} against time, on {column.data}; numbers are NFE", "")
        yield name_of("pareto", column), figure


def nll_fid(columns: Sequence[Column], folder: Path) -> Iterator[tuple[str, object]]:
    """Likelihood against FID at the same budgets, for the methods that have both: a panel a leaf."""
    for nll in (c for c in columns if c.table.metric == "nll"):
        for fid in (c for c in columns if c.table.metric == "fid" and c.data == nll.data):
            joint = joined(nll, fid)
            if not joint:
                continue
            unit = next(iter(joint.values()))[0][1].entry.rows[0].details.get("unit", "")
            label = f"{nll.name}{f' in {unit}' if unit else ''}"
            figure, places = leaf_by_leaf(list(joint), label, sharex=True)
            look = looks(list(joint))
            for ax, mine in places:
                nll_fid_panel(ax, {line: joint[line] for line in mine}, joint, look)
                ax.set_xlabel(fid.name)
            what = f"{nll.name} against {fid.name}, on {nll.data}; numbers are the least and greatest budget"
            heading(figure, nll, what, BARS)
            yield name_of("nll-fid", nll, f"{nll.name}-{fid.name}"), figure


def joined(nll: Column, fid: Column) -> dict[Line, list[tuple[Point, Point]]]:
    """The lines of `nll` with their points as pairs of FID and likelihood, where there are both."""
    quality = {(line.identity, p.budget): p for line in fid.lines for p in line.points}
    pairs = {line: [(quality.get((line.identity, p.budget)), p) for p in line.points] for line in nll.lines}
    both = {line: [pair for pair in found if pair[0]] for line, found in pairs.items()}
    return {line: found for line, found in both.items() if found}


def grids(columns: Sequence[Column], folder: Path) -> Iterator[tuple[str, object]]:
    """Samples of every method from the same noise at the same NFE, a figure for each data set and budget."""
    from matplotlib.figure import Figure

    for shelf in samples.shelves(columns, folder):
        count = min(16, max(len(kept.images) for kept in shelf.kept))
        starts = len({kept.start for kept in shelf.kept})
        tall = 1.08 * len(shelf.kept) + 0.6 * starts
        figure = Figure(figsize=(0.42 * count, 0.42 * tall))
        shelf_on(figure.add_axes((0, 0, 1, 1)), shelf, count, tall)
        what = f"Samples on {shelf.data}, NFE {shelf.budget}: the same noise down each column of a block"
        figure.suptitle(what, x=0, y=1 + 0.12 / (0.42 * tall), ha="left", va="bottom", fontsize=10.5)
        name = f"samples-{shelf.data}-nfe{shelf.budget}-{shelf.mark}"
        yield re.sub(r"[^\w.]+", "-", name).strip("-"), figure


def shelf_on(ax, shelf: samples.Shelf, count: int, tall: float) -> None:
    """One strip a method, one unit high each, and a line of text above each block of one start."""
    ax.set(xlim=(0, count), ylim=(tall, 0))
    ax.set_axis_off()
    y, start = 0.0, None
    for kept in shelf.kept:
        if kept.start != start:
            start, y = kept.start, y + 0.6
            ax.text(0, y - 0.12, f"start: {start or 'not recorded'}", fontsize=7.5, color="#555")
        picture = samples.strip(kept.images, shelf.top, count)
        shown = picture[..., 0] if picture.shape[2] == 1 else picture
        wide = min(count, len(kept.images))
        ax.imshow(
            shown, cmap="gray", vmin=0, vmax=255, interpolation="nearest", extent=(0, wide, y + 1, y),
            aspect="auto",
        )  # fmt: skip
        ax.text(-0.15, y + 0.5, kept.label, ha="right", va="center", fontsize=8.5)
        y += 1.08
    ax.set(xlim=(0, count), ylim=(tall, 0))


KINDS: dict[str, Callable] = {
    "curves": curves,
    "pareto": pareto_front,
    "nll-fid": nll_fid,
    "samples": grids,
    "convergence": convergence,
}
