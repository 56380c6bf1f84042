"""Row: the unit of an answer, as it is written and as it is read."""

from typing import Literal

import msgspec

from bench.cache import canonical

SCHEMA = 1
FLOOR = "real data"  # as the method of a row: what held-out data score
Number = int | float
UNMEASURED = {  # what stands in a row for what nobody measured or noted
    **dict.fromkeys(("nfe", "nfe_max", "seconds", "memory", "error")),
    **dict.fromkeys(("extra", "jvps", "vjps", "train_seconds"), 0.0),
    **dict.fromkeys(("train_images", "train_rows", "threads"), 0),
    **dict.fromkeys(("start", "source", "device", "host", "commit", "time"), ""),
    **{"replicates": [], "details": {}, "versions": {}, "schema": SCHEMA},
}


class Answer(msgspec.Struct, frozen=True, gc=False, kw_only=True):
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
    replicates: list[Number]
    nfe: Number | None
    nfe_max: Number | None
    extra: Number  # evaluations of other networks, such as decoders and classifiers
    jvps: Number
    vjps: Number
    seconds: Number | None  # of drawing; the median chunk counts, not the first one's warming up
    train_images: Number
    train_seconds: Number
    train_rows: Number  # evaluations spent on search and estimation
    details: dict
    error: str | None
    schema: Literal[SCHEMA]

    def __post_init__(self) -> None:
        if self.value is None and self.error is None:
            raise ValueError("neither a value nor an error")

    @property
    def hyper_parameters(self) -> dict:
        """The parameters but the tolerance, which the harness finds for each budget."""
        if "tolerance" not in self.parameters:
            return self.parameters
        return {name: value for name, value in self.parameters.items() if name != "tolerance"}


class Row(Answer, frozen=True, gc=False, kw_only=True, forbid_unknown_fields=True):
    """An answer with all that is known of how it came about."""

    memory: Number | None
    start: str
    source: str
    versions: dict
    device: str
    threads: int
    host: str
    commit: str
    time: str

    @classmethod
    def of(cls, **facts) -> "Row":
        """A row of these facts, UNMEASURED in the others; a line in a file has them all."""
        return cls(**UNMEASURED | facts)

    def line(self) -> str:
        return canonical(msgspec.structs.asdict(self))
