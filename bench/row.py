"""Row: the unit of an answer, as it is written and as it is read."""

from typing import Literal

import msgspec

from bench.cache import canonical

SCHEMA = 1
Number = int | float


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
