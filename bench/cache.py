"""Where files that can be made again are kept, and how a file is written whole or not at all."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_dir() -> Path:
    """The cache folder: $TAXOBENCH_CACHE, or the platform's own place for caches."""
    import platformdirs

    return Path(os.environ.get("TAXOBENCH_CACHE") or platformdirs.user_cache_dir("taxobench"))


def key_of(facts: object, length: int = 16) -> str:
    """A short content key: the sha256 of the facts as canonical JSON."""
    return hashlib.sha256(canonical(facts).encode()).hexdigest()[:length]


def canonical(facts: object) -> str:
    return json.dumps(facts, sort_keys=True, separators=(",", ":"), default=str)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; on success it is flushed to disk and takes the place of
    `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, facts: object) -> None:
    with whole(path) as part:
        part.write_text(json.dumps(facts, indent=1, sort_keys=True, default=str) + "\n")
