"""Cell, Chunk and Row: the unit of a question, of work, of an answer."""

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import msgspec

from bench.cache import canonical, key_of

SCHEMA = 1
BLOCKS = 20  # of the jackknife; part of the protocol
Number = int | float


@dataclass(frozen=True)
class Cell:
    """One question: what does this method, at these parameters, on this base, score within `nfe` evaluations
    a sample?
    """

    method: str
    version: int
    parameters: str  # canonical JSON of the hyper-parameters
    data: str
    base: str  # the recipe or path of the shared network, "" where the method builds its own
    base_id: str  # sha256 of its weights
    train_seed: int
    images: int | None  # training budget of the method itself, None where it has no training
    ask: str  # "sample" | "nll" | "bound"
    nfe: int
    seed: int
    samples: int
    chunk: int
    protocol: str  # fingerprint of what measures
    source: str  # sha256 of the plugin's file

    @cached_property
    def key(self) -> str:
        """The cell's identity: all of its fields but the source."""
        facts = {name: getattr(self, name) for name in self.__dataclass_fields__}
        del facts["source"]  # a plugin says by its `version` when its numbers change
        return key_of(facts, 20)

    @property
    def chunks(self) -> range:
        return range(math.ceil(self.samples / self.chunk))

    def rows_of(self, chunk: int) -> range:
        """The sample indices of one chunk."""
        return range(chunk * self.chunk, min(self.samples, (chunk + 1) * self.chunk))


@dataclass(frozen=True)
class Readied:
    """What whoever draws a cell knows of it once its model stands: the cost of training, where sampling
    starts, what was searched, and on which device.
    """

    card: dict = field(default_factory=dict)  # images, seconds and rows of its training
    start: str = ""
    tolerance: float | None = None
    searched: int = 0  # rows spent on finding the tolerance
    device: str = ""


@dataclass(frozen=True)
class Chunk:
    """The cost of one drawn chunk; the samples themselves lie in a file."""

    number: int
    n: int
    rows: int
    jvps: int
    vjps: int
    extra: int
    seconds: float
    memory: float  # peak, MiB
    readied: Readied = Readied()


class Answer(msgspec.Struct, frozen=True, gc=False):
    """One measured number with its jackknife replicates and what it is a number of: as much of a row as
    tables need.

    What is read from a file is held to these types, and has a value or an error.
    """

    key: str
    method: str
    version: int
    parameters: dict
    data: str
    base: str
    base_id: str
    train_seed: int
    images: int | None
    ask: str
    budget: int
    seed: int
    samples: int
    protocol: str
    metric: str
    value: Number | None
    replicates: list[Number] = []
    nfe: Number | None = None
    nfe_max: Number | None = None
    seconds: Number | None = None  # of drawing; the median chunk counts, not the first one's warming up
    train_images: Number = 0
    train_seconds: Number = 0.0
    train_rows: Number = 0  # evaluations spent on search and estimation
    details: dict = {}
    error: str | None = None
    schema: Literal[SCHEMA] = SCHEMA

    def __post_init__(self) -> None:
        if self.value is None and self.error is None:
            raise ValueError("neither a value nor an error")


class Row(Answer, frozen=True, gc=False, forbid_unknown_fields=True):
    """An answer with all that is known of how it came about."""

    extra: Number = 0.0
    jvps: Number = 0.0
    vjps: Number = 0.0
    memory: Number | None = None
    start: str = ""
    source: str = ""
    versions: dict = {}
    device: str = ""
    threads: int = 0
    host: str = ""
    commit: str = ""
    time: str = ""

    def line(self) -> str:
        return canonical(msgspec.structs.asdict(self))
