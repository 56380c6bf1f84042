"""The panels of figures: lines with error bands and their names, slopes, fronts.

Each draws on matplotlib axes that it is given.
"""

from collections.abc import Sequence

from bench.reporting.series import GREY, Column, Line, Look, measured_order, pareto, scale_of


def panel(ax, lines: Sequence[Line], look: dict[str, Look], column: Column, slopes: bool) -> list[tuple]:
    """Metric against measured NFE for some methods; returns the ends of the lines for `name_ends`."""
    floor = column.table.floor
    shown = [p.value for line in column.lines for p in line.points] + ([floor.value] if floor else [])
    set_scale(ax, shown)
    least = min(value for value in shown) / 3
    ends = []
    for line in sorted(lines, key=lambda line: not line.baseline):
        style, points = look[line.label], sorted((p for p in line.points if p.nfe > 0), key=lambda p: p.nfe)
        x, y = [p.nfe for p in points], [p.value for p in points]
        low = [max(p.low, least) if ax.get_yscale() == "log" else p.low for p in points]
        ax.fill_between(x, low, [p.high for p in points], color=style.colour, alpha=0.15, linewidth=0)
        ax.plot(x, y, **drawing(style), zorder=2 if line.baseline else 3)
        ends.append((x[-1], y[-1], line.label + order_text(line, slopes), style))
    if floor:
        ax.axhline(floor.value, color="#555", linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
        ends.append((None, floor.value, "real data", None))
    budgets = sorted({p.budget for line in lines for p in line.points if p.budget})
    ax.set_xscale("log")
    if len(budgets) <= 8:
        ticks = [b for i, b in enumerate(budgets) if not i or b > 1.3 * budgets[i - 1]]
        ax.set_xticks(ticks, [str(b) for b in ticks])
        ax.set_xticks([], minor=True)
    plain_logs(ax.yaxis)
    ax.set_xlabel("measured NFE")
    if slopes:
        guides(ax, [p.nfe for line in lines for p in line.points if p.nfe > 0], shown)
    return ends


def drawing(style: Look) -> dict:
    """What matplotlib needs to draw in this look."""
    return {
        "color": style.colour,
        "marker": style.marker,
        "linestyle": (0, style.dashes) if style.dashes else "-",
        "markeredgecolor": "white",
        "markeredgewidth": 0.5,
    }


def order_text(line: Line, slopes: bool) -> str:
    """The measured order in brackets, for figures of convergence."""
    order = measured_order(line) if slopes else None
    return f" ({order[0]:.1f})" if order and order[0] > 0.25 else ""  # noise does not converge


def set_scale(ax, values: Sequence[float]) -> None:
    scale, middle = scale_of(values)
    if scale == "symlog":
        ax.set_yscale("symlog", linthresh=middle)
    else:
        ax.set_yscale(scale)


def guides(ax, nfe: Sequence[float], values: Sequence[float]) -> None:
    """Grey slopes of orders 1, 2, 3 from the upper left corner of what is measured."""
    if not nfe or max(nfe) == min(nfe):
        return
    left, right, top, bottom = min(nfe), max(nfe), max(values), min(values)
    for order in (1, 2, 3):
        end = min(right, left * (top / bottom) ** (1 / order))
        y = top * (end / left) ** -order
        ax.plot([left, end], [top, y], color="#BBBBBB", linewidth=0.8, zorder=1)
        ax.annotate(
            f"order {order}",
            (end, y),
            xytext=(-3, 3),
            textcoords="offset points",
            ha="right",
            fontsize=7,
            color="#777",
        )


def name_ends(ax, ends: Sequence[tuple]) -> None:
    """Name every line beside its end, moved apart where they are close, with a hair to the end.

    The figure must have been laid out, as the places depend on it.
    """
    height = ax.get_window_extent().height
    gap = 9.5 * ax.figure.dpi / 72 / height
    share = lambda y: ax.transAxes.inverted().transform(ax.transData.transform((1, y)))[1]
    ranked = sorted(((share(y), x, y, text, style) for x, y, text, style in ends), key=lambda end: end[0])
    for place, (_, x, y, text, style) in zip(apart([end[0] for end in ranked], gap), ranked, strict=True):
        colour = style.colour if style else "#555"
        grey = style is None or colour == GREY
        beyond = {"xycoords": ax.get_yaxis_transform() if x is None else "data"}
        ax.annotate(
            "", ((1.0 if x is None else x), y), xytext=(1.04, place), textcoords="axes fraction",
            annotation_clip=False, **beyond,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2},
        )  # fmt: skip
        ax.text(1.075, place, text, transform=ax.transAxes, va="center", fontsize=7.5,
                color="#555" if grey else "black")  # fmt: skip
        if style:
            ax.plot([1.052], [place], transform=ax.transAxes, clip_on=False, **drawing(style),
                    scalex=False, scaley=False)  # fmt: skip


def apart(places: Sequence[float], gap: float) -> list[float]:
    """Rising places moved to be `gap` apart, as little as a sweep up and a sweep down allow."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else place)
    excess = max(0.0, moved[-1] - max(1.0, places[-1])) if moved else 0.0
    limit = (moved[-1] - excess) if moved else 0.0
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], limit)
        limit = moved[i] - gap
    return moved


def pareto_panel(ax, timed: Sequence[tuple], look: dict[str, Look]) -> None:
    ax.set_xscale("log")
    set_scale(ax, [p.value for _, p in timed])
    front = [timed[i] for i in pareto([(p.seconds, p.value) for _, p in timed])]
    best = {line.label for line, _ in front}
    for label in dict.fromkeys(line.label for line, _ in timed):
        points = sorted((p for line, p in timed if line.label == label), key=lambda p: p.nfe)
        style = drawing(look[label]) | ({} if label in best else {"alpha": 0.45})
        ax.plot([p.seconds for p in points], [p.value for p in points], **style, label=label)
    x, y = [p.seconds for _, p in front], [p.value for _, p in front]
    ax.step([*x, max(p.seconds for _, p in timed)], [*y, y[-1]], where="post", color="#999", linewidth=5,
            alpha=0.3, zorder=0, label="front")  # fmt: skip
    for _, p in front:
        ax.annotate(f"{p.nfe:g}", (p.seconds, p.value), xytext=(4, 4), textcoords="offset points", fontsize=7)
    ax.set_xlabel("seconds for 1,000 samples")
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=7.5, handlelength=3.2)


def nll_fid_panel(ax, shown: dict[Line, list], everyone: dict[Line, list], look: dict[str, Look]) -> None:
    """Likelihood against FID, both less being better, for some lines; the scales are those of all lines."""
    values = lambda i: [pair[i].value for pairs in everyone.values() for pair in pairs]
    set_scale(ax, values(1))
    ax.set_xscale("log" if scale_of(values(0))[0] == "log" else "linear")
    for line, pairs in sorted(shown.items(), key=lambda pair: not pair[0].baseline):
        x, y = [a.value for a, _ in pairs], [b.value for _, b in pairs]
        spread = {
            "xerr": [[a.value - a.low for a, _ in pairs], [a.high - a.value for a, _ in pairs]],
            "yerr": [[b.value - b.low for _, b in pairs], [b.high - b.value for _, b in pairs]],
        }
        style = look[line.label]
        ax.errorbar(x, y, **spread, **drawing(style), elinewidth=0.6, label=line.label)
        for a, b in (*pairs[:1], *pairs[1:][-1:]):
            ax.annotate(
                f"{a.budget}", (a.value, b.value), xytext=(4, 4), textcoords="offset points", fontsize=7,
                color=style.colour,
            )  # fmt: skip
    plain_logs(ax.xaxis, ax.yaxis)
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=7.5, handlelength=3.2)


def plain_logs(*axes) -> None:
    """Plain numbers at 1, 2, 5 of each decade, not powers, where a logarithmic axis has few decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis in axes:
        low, high = axis.get_view_interval()
        if axis.get_scale() == "log" and 0 < high < 1000 * low:
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
