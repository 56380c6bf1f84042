"""What somebody wants to know, and what must be run to tell: the words of `planning`, the runner and the
report.
"""

import secrets
from dataclasses import dataclass, field
from pathlib import Path

from bench.data import Data
from bench.job import Cell
from bench.metrics.extractor import Extractor
from bench.metrics.names import COMPARED
from bench.metrics.references import Reference
from bench.running.worker import Site
from bench.selection import Selection


@dataclass(frozen=True)
class Request:
    """What somebody wants to know, and where the answer goes."""

    selection: Selection
    data: str = "digits"
    base: str = "denoiser"
    nfe: tuple[int, ...] = (5, 10, 20, 50)
    seeds: tuple[int, ...] = (0,)
    train_seed: int = 0
    images: int | None = None
    samples: int | None = None
    held_out: int | None = None  # rows of the test split whose likelihood is asked, the first; None is all
    metrics: tuple[str, ...] = ()
    extractor: str | None = None
    statistics: Path | None = None  # moments to compare with, instead of those of the training images
    results: Path = Path("runs")
    device: str = "cpu"
    threads: int | None = None
    workers: int | None = None  # None: one, or one a core where the work repays starting them
    executor: str = "local"  # or "ray": over the cluster at `address`
    address: str | None = None
    gpus: float = 1.0  # of a task under Ray, where it runs on GPUs
    time_limit: float | None = None  # seconds of drawing that a cell may take
    micro_batch: int | None = None
    precision: str = "fp32"
    compile: bool | None = None  # None: where the work repays it
    minutes: float | None = None
    keep: int = 16
    trials: int = 0  # how many settings were tried before these, where they were tuned
    again: bool = False
    name: str = field(default_factory=lambda: secrets.token_hex(4))  # of the run, unlike any other's


@dataclass
class Plan:
    """The cells of a request, and what measuring them needs."""

    request: Request
    data: Data
    site: Site
    cells: list[Cell]
    metrics: dict[str, tuple[str, ...]]  # ask -> metric names
    extractor: Extractor | None
    reference: Reference | None  # None: the training images, or the distribution itself
    skipped: list[str]
    baselines: frozenset[str]
    todo: list[Cell] = field(default_factory=list)
    protocols: dict[str, dict] = field(default_factory=dict)  # what the cells' fingerprints stand for

    @property
    def compares(self) -> bool:
        """Whether samples are held against the training images."""
        return not self.reference and bool(COMPARED & set(self.metrics.get("sample", ())))
