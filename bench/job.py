"""Cell and Chunk: the unit of a question and of work; that of an answer is `row.Row`."""

import math
from dataclasses import dataclass, field
from functools import cached_property

from bench.cache import key_of

BLOCKS = 20  # of the jackknife; part of the protocol


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
    source: str = ""  # sha256 of the plugin's file that drew it
