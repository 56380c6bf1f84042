"""Tensors that take long to compute and are computed once: the moments of a data set's features, directions,
neighbours.

A cache file is named by the sha256 of all it depends on, so nothing is ever invalidated, and written under
another name first, so that a reader never sees half of one.
"""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from bench.cache import cache_dir, whole
from bench.diffusion import pieces

ROWS = 10_000  # the first so many of a data set serve what compares pairs of points


def place(kind: str, parts: tuple[str, ...]) -> Path:
    """Where what is computed from these `parts` lies, or will lie."""
    key = hashlib.sha256("\n".join((kind, *parts)).encode()).hexdigest()[:32]
    return cache_dir() / kind / f"{key}.safetensors"


def kept(path: Path) -> dict[str, Tensor]:
    """The tensors of a cache file; {} where there are none, or damaged ones."""
    with suppress(FileNotFoundError, pieces.Damaged):
        return pieces.read_file(path)[0]
    return {}


def keep(path: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with whole(path) as part:
        save_file(tensors, part, pieces.sealed(tensors, {}))


def cached(kind: str, parts: tuple[str, ...], compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors `compute` gives, from a cache file if they were computed before from the same `parts`; what
    lies there damaged is computed again.
    """
    path = place(kind, parts)
    if found := kept(path):
        return found
    tensors = compute()
    keep(path, tensors)
    return tensors
