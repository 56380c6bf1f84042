"""What samples are compared with: the moments of the data's features, computed once and cached by content.

A cache file is named by the sha256 of all it depends on, so nothing is ever invalidated, and written under
another name first, so that a reader never sees half of one.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench.cache import cache_dir, whole

if TYPE_CHECKING:
    from bench.data import Data
    from bench.metrics.features import Extractor

ROWS = 10_000  # the first so many features serve the metrics that compare pairs of points
CHUNK = 1000


@dataclass(frozen=True)
class Reference:
    """The features of the data: mean (F,) and covariance (F, F) in float64, and its first rows (R, F)."""

    split: str  # "train" | "test" | "population"
    count: int  # 0 for a population
    mean: Tensor
    cov: Tensor
    rows: Tensor


def cached(kind: str, parts: tuple[str, ...], compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors `compute` gives, from a cache file if they were computed before from the same `parts`."""
    from safetensors.torch import load_file, save_file

    key = hashlib.sha256("\n".join((kind, *parts)).encode()).hexdigest()[:32]
    path = cache_dir() / kind / f"{key}.safetensors"
    if path.exists():
        return load_file(path)
    tensors = {name: tensor.contiguous() for name, tensor in compute().items()}
    with whole(path) as part:
        save_file(tensors, part)
    return tensors


def reference(data: "Data", extractor: "Extractor", split: str = "train") -> Reference:
    """What `extractor` sees of the data's split "train" or "test".

    Where the distribution is known and the features are its coordinates (or a projection of them), mean and
    covariance are the population's, whatever the split; only the rows are a sample.
    """
    if split not in ("train", "test"):
        raise ValueError(f'The reference is "train" or "test", not "{split}".')
    stored = data.train if split == "train" else data.test
    if data.exact is not None and extractor.name == "pixels":
        directions = extractor.directions
        exact = (
            data.exact.project(directions)
            if directions is not None
            else (data.exact.mean(), data.exact.cov())
        )
        mean, cov = (moment.cpu().double() for moment in exact)
        return Reference("population", 0, mean, cov, extractor(stored[:ROWS])["features"].cpu())

    def compute() -> dict[str, Tensor]:
        rows = torch.cat([extractor(chunk)["features"].cpu() for chunk in stored[:ROWS].split(CHUNK)])
        near = rows.double().mean(0)  # moments are summed about a near mean, where they lose no digits
        total, outer = torch.zeros_like(near), near.new_zeros(len(near), len(near))
        for features in chain(rows.split(CHUNK), _rest(stored, extractor)):
            wide = features.double() - near
            total += wide.sum(0)
            outer += wide.T @ wide
        mean = total / len(stored)
        cov = (outer - len(stored) * torch.outer(mean, mean)) / (len(stored) - 1)
        return {"mean": mean + near, "cov": cov, "rows": rows}

    parts = (data.fingerprint, split, str(ROWS), extractor.name, extractor.sha256)
    return Reference(split, len(stored), **cached("reference", parts, compute))


def _rest(stored: Tensor, extractor: "Extractor") -> Iterator[Tensor]:
    return (extractor(chunk)["features"].cpu() for chunk in stored[ROWS:].split(CHUNK) if len(chunk))
