"""Negative log-likelihood in the units of the field: bits/dim for data with levels, nats for data without."""

import math
from typing import TYPE_CHECKING

from torch import Tensor

from bench.metrics.jackknife import BLOCKS, Measured, of_mean

if TYPE_CHECKING:
    from bench.data import Data


def unit(data: "Data") -> str:
    """What likelihoods on these data are reported in."""
    return "bits/token" if data.kind == "tokens" else "bits/dim" if data.levels else "nats"


def bits_per_dim(nats: Tensor, data: "Data") -> Tensor:
    """Nats a row, of a density on [-1, 1]^D, as bits/dim on the data's levels; of tokens, bits a token;
    left as nats without levels.

    Level k of L lies at 2k/(L - 1) - 1, so its bin is 2/(L - 1) wide, which is log2((L - 1)/2) bits a
    dimension.
    """
    return _scaled(nats, data) + _bins(data)


def measure_nll(
    nats: Tensor,
    data: "Data",
    blocks: int = BLOCKS,
    terms: dict[str, Tensor] | None = None,
    stderr: Tensor | None = None,
) -> Measured:
    """The mean of `nats` (N,), one a test row, in the data's unit.

    `terms` that sum to `nats` are reported in the same unit (`extra["terms"]`), where the width of the bins
    is a term of its own. Where rows are estimated, `stderr` is each row's own standard error; what they
    make of the mean's is `extra["estimate_stderr"]`, which the jackknife's error has in it. Raises
    ValueError if a row is NaN; +inf is a value: a row the model holds impossible.
    """
    _refuse_nan(nats)
    extra: dict = {"unit": unit(data)}
    if terms:
        extra["terms"] = {name: _scaled(term.double(), data).mean().item() for name, term in terms.items()}
        if bins := extra["terms"].pop("bins", 0.0) + _bins(data):
            extra["terms"]["bins"] = bins
    if stderr is not None:
        extra["estimate_stderr"] = (_scaled(stderr, data).square().sum().sqrt() / len(stderr)).item()
    return of_mean(bits_per_dim(nats.double(), data), blocks, **extra)


def measure_excess(nats: Tensor, exact: Tensor, data: "Data", blocks: int = BLOCKS) -> Measured:
    """How far `nats` (N,) lie above the `exact` ones of the same rows: the gap of a bound, or a model's
    error.
    """
    excess = nats.double() - exact.double()
    _refuse_nan(excess)
    return of_mean(_scaled(excess, data), blocks, unit=unit(data))


def _bins(data: "Data") -> float:
    """What a bin's width adds, in bits a dimension."""
    return math.log2((data.levels - 1) / 2) if data.levels and data.kind != "tokens" else 0.0


def _scaled(nats: Tensor, data: "Data") -> Tensor:
    return nats / (math.prod(data.shape) * math.log(2)) if data.levels else nats


def _refuse_nan(nats: Tensor) -> None:
    bad = int(nats.isnan().sum())
    if bad:
        raise ValueError(f"{bad:,} of {len(nats):,} likelihoods are not a number.")
