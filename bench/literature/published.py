"""The literature's numbers: FID, IS and NLL as papers print them, to stand beside ours.

results/published.csv has one printed result a row. `method` is an id of taxonomy.yaml; `network_group`
marks rows that were measured on one trained network, where a comparison at matched NFE compares samplers
only; `kind` says who measured (primary: a paper on its own method, baseline: on others' in the same set-up,
reproduction, secondary: quoted, survey_table: printed in Cao et al., appendix C). NLL is in bits/dim, of
the sort that `nll_type` names. Where a survey misprints a value, `survey_error` is true, `note` says what
is meant, and `fid_as_printed` or `nll_as_printed` keeps what was printed.
"""

import re
from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.taxonomy import Taxonomy, locate
from bench.taxonomy import load as load_taxonomy

if TYPE_CHECKING:
    from pandas import DataFrame

TEXTS = ("method", "variant", "dataset", "base_model", "network_group", "nll_type", "kind", "note", "source")
REQUIRED = ("method", "dataset", "resolution", "kind", "verified", "survey_error", "source")
BOOLEANS = ("conditional", "verified", "survey_error")
RANGES = {  # the values that make sense; IS starts at 1 by definition
    "resolution": (8, 1024),
    "nfe": (1, 10_000),
    "fid": (0, 1000),
    "is": (1, 1000),
    "nll": (0, 200),
    "fid_as_printed": (0, 1000),
    "nll_as_printed": (0, 200),
}
WHOLE = ("resolution", "nfe")
KINDS = ("primary", "baseline", "reproduction", "secondary", "survey_table")
IDENTITY = (  # two rows that agree here are one result entered twice
    *("method", "variant", "dataset", "resolution", "conditional", "base_model", "network_group"),
    *("nfe", "nll_type", "kind", "source"),
)


def load(path: Path | None = None, taxonomy: Taxonomy | None = None) -> "DataFrame":
    """Every published row, checked: the columns of the file, and two more.

    `data` is the data set's name as we write it (`cifar10`), `mark` what a table prints behind a value: "?"
    for a row that nobody has verified, "!" for one that a survey misprints, as its note explains. `nfe` and
    `resolution` are nullable integers, `conditional` is a nullable boolean. Raises click.ClickException
    naming the row that is wrong.
    """
    import pandas as pd

    path = path or locate("results/published.csv", "literature/published.csv")
    taxonomy = taxonomy or load_taxonomy()
    try:
        raw = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise click.ClickException(f"{path} cannot be read as a table of UTF-8 text ({reason}).") from None
    if lacking := [name for name in (*TEXTS, *BOOLEANS, *RANGES) if name not in raw.columns]:
        raise click.ClickException(f"{path} lacks the columns {', '.join(lacking)}.")
    frame = raw.copy()
    for name in REQUIRED:
        _refuse(path, raw[name].isna(), f"needs a value for {name}")
    for name in BOOLEANS:
        frame[name] = raw[name].map({"True": True, "False": False}).astype("boolean")
        _refuse(path, frame[name].isna() & raw[name].notna(), f"has a {name} that is not True or False")
    for name, (low, high) in RANGES.items():
        frame[name] = pd.to_numeric(raw[name], errors="coerce")
        sensible = frame[name].between(low, high) & (frame[name].mod(1).eq(0) | (name not in WHOLE))
        what = "whole number" if name in WHOLE else "number"
        _refuse(path, ~sensible & raw[name].notna(), f"needs a {what} from {low} to {high} as its {name}")
    frame = frame.astype(dict.fromkeys(WHOLE, "Int64") | {"verified": bool, "survey_error": bool})
    foreign = ~frame["method"].isin(list(taxonomy.entries))
    _refuse(path, foreign, "names a method that is no entry of taxonomy.yaml")
    _refuse(path, ~frame["kind"].isin(KINDS), f"needs a kind among {', '.join(KINDS)}")
    _refuse(path, frame[["fid", "is", "nll"]].isna().all(axis=1), "has neither FID nor IS nor NLL")
    unexplained = frame["survey_error"] & frame["note"].isna()
    _refuse(path, unexplained, "is a survey's error and needs a note on what is meant")
    _refuse(path, frame.duplicated(list(IDENTITY)), "repeats an earlier row")
    frame["data"] = frame["dataset"].map(data_name)
    unverified = frame["verified"].map({True: "", False: "?"})
    frame["mark"] = unverified + frame["survey_error"].map({True: "!", False: ""})
    return frame


def select(
    frame: "DataFrame",
    data: str | None = None,
    nfe: Collection[int] | None = None,
    methods: Collection[str] | None = None,
    group: str | None = None,
) -> "DataFrame":
    """The rows that meet every condition given.

    `data` is a data set's name however it is written; one that nobody published on gives no rows. `nfe`
    keeps rows at exactly those evaluations and drops those that state none. `methods` are plugins' names or
    entries' ids; a plugin stands for all rows of its entry, whose `variant` tells them apart. `group` is a
    `network_group`. An unknown method or group raises click.BadParameter.
    """
    groups = sorted(frame["network_group"].dropna().unique())
    if group is not None and group not in groups:
        raise click.BadParameter(f"unknown network group {group!r}; {_hint(group, groups)}")
    if data is not None:
        frame = frame[frame["data"] == data_name(data)]
    if nfe is not None:
        frame = frame[frame["nfe"].isin(list(nfe))]
    if methods is not None:
        frame = frame[frame["method"].isin([_entry_id(method) for method in methods])]
    if group is not None:
        frame = frame[frame["network_group"] == group]
    return frame


def data_name(text: str) -> str:
    """A data set's name without case, spaces and punctuation: CIFAR-10 and cifar_10 are both cifar10."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _entry_id(method: str) -> str:
    taxonomy = load_taxonomy()
    entry = taxonomy.entry_of(method)
    if entry is None:
        names = [*taxonomy.entries, *(plugin for e in taxonomy.entries.values() for plugin in e.plugins)]
        raise click.BadParameter(f"unknown method {method!r}; {_hint(method, names)}")
    return entry.id


def _hint(text: str, choices: list[str]) -> str:
    near = get_close_matches(text, choices, n=1)
    return f"did you mean {near[0]!r}?" if near else "`bench published` lists what there is."


def _refuse(path: Path, wrong, complaint: str) -> None:
    """Raise a click.ClickException about the first row where the boolean series `wrong` holds."""
    if wrong.any():
        row = wrong.to_numpy().argmax()
        raise click.ClickException(f"{path.name}, row {row + 1} below the header, {complaint}.")
