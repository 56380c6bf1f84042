"""Where files that can be made again are kept, how a file is written whole or not at all, and how a cache
that lacks a file borrows it from another.
"""

import errno
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Protocol

# What a full, failing or read-only disk says: no fault of a method, and a reason to stop.
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
DENIED = {errno.EACCES, errno.EPERM}  # likewise, of what is ours to write


def cache_dir() -> Path:
    """The cache folder: $TAXOBENCH_CACHE, or the platform's own place for caches."""
    import platformdirs

    return Path(os.environ.get("TAXOBENCH_CACHE") or platformdirs.user_cache_dir("taxobench"))


def key_of(facts: object, length: int = 16) -> str:
    """A short content key: the sha256 of the facts as canonical JSON."""
    return hashlib.sha256(canonical(facts).encode()).hexdigest()[:length]


CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=str)


def canonical(facts: object) -> str:
    return CANONICAL.encode(facts)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; on success it is flushed to disk and takes the place of
    `path`, for good once the folder is flushed too.

    Raises OSError for whatever the disk refuses, also where safetensors has wrapped it.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a file that could be replaced", str(path))  # such as /dev/null
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(3)}.part")  # hosts may share a pid
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
        flush_folder(path.parent)
    except Exception as error:
        code = re.search(r"(?:code:|os error) (\d+)", str(error))
        if type(error).__name__ != "SafetensorError" or not code:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error
    finally:
        part.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Bring a folder's names to disk, where the system lets one open a folder."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno in DISK:
            raise
    finally:
        os.close(handle)


def write_json(path: Path, facts: object) -> None:
    with whole(path) as part:
        part.write_text(json.dumps(facts, indent=1, sort_keys=True, default=str) + "\n")


class Lender(Protocol):
    """Whoever has files that this cache may lack, and takes those that are made here. Names are paths within
    the cache folder; content travels with its sha256.
    """

    def fetch(self, name: str) -> tuple[bytes, str] | None: ...

    def keep(self, name: str, content: bytes, sha256: str) -> None: ...


LENDER: ContextVar[Lender | None] = ContextVar("who lends what the cache lacks", default=None)


@contextmanager
def borrowing(lender: Lender) -> Iterator[None]:
    """Inside the block files that the cache lacks are asked of `lender`, and those made here handed to it."""
    token = LENDER.set(lender)
    try:
        yield
    finally:
        LENDER.reset(token)


def borrow(*paths: Path) -> None:
    """Fetch those of these files of the cache that are missing, if somebody lends them; in this order."""
    lender = LENDER.get()
    for path in paths:
        if lender is not None and not path.exists() and (found := lender.fetch(name_of(path))):
            put(path, *found)


def hand_back(*paths: Path) -> None:
    """Give these files of the cache, in this order, to whoever lends."""
    lender = LENDER.get()
    for path in paths:
        if lender is not None:
            content = path.read_bytes()
            lender.keep(name_of(path), content, sha256_of(content))


class Shelf:
    """A `Lender` of the models and data sets of one cache folder."""

    def __init__(self, folder: str):
        self.folder = Path(folder).absolute()

    def at(self, name: str) -> Path:
        """Where a file of this name lies; ValueError outside models and data."""
        path = Path(os.path.normpath(self.folder / name))
        if not any(path.is_relative_to(self.folder / part) for part in ("models", "data")):
            raise ValueError(f"{name} is no file of the cache that could be lent")
        return path

    def fetch(self, name: str) -> tuple[bytes, str] | None:
        """A file's content; None where it is not here."""
        path = self.at(name)
        if not path.is_file():
            return None
        content = path.read_bytes()
        return content, sha256_of(content)

    def keep(self, name: str, content: bytes, sha256: str) -> None:
        """Keep a file that was made elsewhere, unless the same lies here: the caches may be one folder."""
        path = self.at(name)
        if not path.is_file() or sha256_of(path.read_bytes()) != sha256:
            put(path, content, sha256)


def put(path: Path, content: bytes, sha256: str) -> None:
    """Write what has travelled; OSError where it is not what was sent."""
    if sha256_of(content) != sha256:
        raise OSError(errno.EIO, "damaged on its way", str(path))
    with whole(path) as part:
        part.write_bytes(content)


def name_of(path: Path) -> str:
    return path.relative_to(cache_dir()).as_posix()


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
