"""Extractor: what every feature extractor is, ours or one that others trained."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Extractor:
    """Maps stored samples (N, *shape) to float32 `features` (N, dims) and, of a classifier, `logits` (N,
    classes).
    """

    name: str
    sha256: str
    dims: int
    compute: Callable[[Tensor], dict[str, Tensor]]  # one batch, on the extractor's device
    classes: int | None = None
    directions: Tensor | None = None  # (D, dims): features are coordinates times these
    batch: int = 500

    @torch.no_grad()
    def __call__(self, stored: Tensor) -> dict[str, Tensor]:
        parts = [self.compute(piece) for piece in stored.split(self.batch)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
