"""The names of the metrics: what each is called, of what it is, and which way is better. Imports no torch."""

import difflib
import re
from dataclasses import dataclass

import click


@dataclass(frozen=True)
class Metric:
    """A metric: its name, its title in tables, what it is `of`, which way is better, and the data it fits."""

    name: str
    title: str
    of: str  # "samples" | "nll", which a variational bound is too
    better: str  # "lower" | "higher" | "target": nearest to what held-out data score
    kinds: frozenset[str]  # of data: see bench.data.KINDS
    needs_extractor: bool = False
    exact: bool = False  # only for data whose distribution is known


IMAGE = frozenset({"image"})
EITHER = frozenset({"image", "vector"})
TOKENS = frozenset({"tokens"})
CURVED = frozenset({"sphere", "torus"})
BOX = frozenset({"box"})
ANY = frozenset({"image", "vector", "tokens", "sphere", "torus", "box"})
PAIRS = frozenset({"kid", "precision", "recall"})  # metrics of rows of features, which moments are not
COMPARED = PAIRS | {"fid"}  # with what an extractor sees of the data
# what is measured by default where it is not what images and vectors have
OF_KIND = {
    "tokens": ("tv1", "tv2", "tv3", "nll", "nll_excess"),
    "sphere": ("mmd", "coverage", "nll", "nll_excess"),
    "torus": ("mmd", "coverage", "nll", "nll_excess"),
    "box": ("sliced_wasserstein", "coverage", "nll", "nll_excess"),
}

METRICS = {
    metric.name: metric
    for metric in (
        Metric("fid", "Fréchet distance", "samples", "lower", EITHER, needs_extractor=True),
        Metric("is", "Inception score", "samples", "higher", IMAGE, needs_extractor=True),
        Metric("kid", "kernel distance (squared MMD)", "samples", "lower", EITHER, needs_extractor=True),
        Metric("precision", "precision", "samples", "higher", EITHER, needs_extractor=True),
        Metric("recall", "recall", "samples", "higher", EITHER, needs_extractor=True),
        Metric("memorisation", "distance to the training set, held-out = 1", "samples", "target", EITHER),
        Metric("nll", "negative log-likelihood", "nll", "lower", ANY),
        Metric("sliced_wasserstein", "sliced Wasserstein-2", "samples", "lower", EITHER | BOX, exact=True),
        Metric("exact_nll", "exact NLL of the samples", "samples", "target", EITHER, exact=True),
        Metric("distance", "distance to the converged solution", "samples", "lower", EITHER, exact=True),
        Metric("tv1", "total variation of tokens", "samples", "lower", TOKENS),
        Metric("tv2", "total variation of pairs of tokens", "samples", "lower", TOKENS),
        Metric("tv3", "total variation of triples of tokens", "samples", "lower", TOKENS),
        Metric("mmd", "squared MMD along geodesics", "samples", "lower", CURVED),
        Metric("coverage", "share of modes visited", "samples", "higher", EITHER | CURVED | BOX, exact=True),
        Metric("nll_excess", "NLL above the exact one", "nll", "lower", ANY, exact=True),
    )
}

_COLUMN = re.compile(r"(?P<metric>\w+)(\[(?P<qualifier>[^\[\]]+)\])?")


def find(name: str) -> Metric:
    """The metric of that name; `click.ClickException` with the nearest names if there is none."""
    if name in METRICS:
        return METRICS[name]
    near = difflib.get_close_matches(name.lower(), METRICS, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(METRICS)}."
    raise click.ClickException(f'There is no metric "{name}"; {hint}')


def column(metric: str, qualifier: str | None = None) -> str:
    """`fid` and `digits` give `fid[digits]`; metrics that need no extractor go by their name alone."""
    return f"{metric}[{qualifier}]" if qualifier else metric


def parse(column: str) -> tuple[str, str | None]:
    """The metric of a column and what stands in its brackets (an extractor, or a kind of likelihood)."""
    match = _COLUMN.fullmatch(column)
    if match is None:
        raise click.ClickException(f'"{column}" is no column; write a metric such as fid or fid[digits].')
    return find(match["metric"]).name, match["qualifier"]
