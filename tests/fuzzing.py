"""What the fuzz tests share: damaged files, a payload that would show if it ran, and the judgement."""

import io
import json
import resource
import signal
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bench import data, store

LIMIT = 60  # seconds; no input takes more than a few
ROOM = 4 << 30  # bytes of memory that an input may ask for besides what is in use
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from([2**80, -1, 0, 1e300, "\ud800", "../../x", "a/b", "", "fid", "fid[", "<b>", "x\0y"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@contextmanager
def within(seconds: int = LIMIT):
    """A test that hangs, or would fill the machine's memory, fails."""

    def late(*_) -> None:
        raise AssertionError(f"it did not end in {seconds} s")

    before, limits = signal.signal(signal.SIGALRM, late), resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + ROOM, limits[1]))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def forget() -> None:
    """Nothing is remembered of files that were read before."""
    store.protocol.cache_clear()
    data.load.cache_clear()


def assert_said(result) -> None:
    """It worked, or ended with a sentence and the exit code of a failure (1) or of bad usage (2)."""
    if not isinstance(result.exception, SystemExit | None):
        raise AssertionError(f"{type(result.exception).__name__}: {result.exception}") from result.exception
    assert result.exit_code in (0, 1, 2), result.exit_code
    assert "Traceback" not in result.output
    assert not result.exit_code or result.output.strip()


class Payload:
    """An object whose unpickling makes a file."""

    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self):
        return Path.touch, (self.place,)


@st.composite
def damaged(draw, sound: bytes) -> bytes:
    """A file's content with a few bytes changed, cut out, put in or repeated; or anything at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=400))
    content = bytearray(sound)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        piece = draw(
            st.binary(min_size=1, max_size=8) | st.sampled_from([b"\0" * 8, b"\xff" * 8, b"\n", b"[" * 2000])
        )
        length = draw(st.integers(1, 8) | st.just(len(content)))
        what = draw(st.sampled_from(("change", "cut", "put", "repeat", "end")))
        if what == "change":
            content[at : at + len(piece)] = piece
        elif what == "cut":
            del content[at : at + length]
        elif what == "put":
            content[at:at] = piece
        elif what == "repeat":
            content[at:at] = content[at : at + length]
        else:
            del content[at:]
    return bytes(content)


def changed(records: list[dict], values: st.SearchStrategy = JSON) -> st.SearchStrategy[list]:
    """Records of which some fields, at any depth, have another value, are gone, or are new."""

    def at_random(draw: Callable) -> list:
        found = json.loads(json.dumps(records))
        for _ in range(draw(st.integers(1, 4))):
            place: dict | list = found
            while True:
                keys = list(place) if isinstance(place, dict) else list(range(len(place)))
                if not keys:
                    break
                key = draw(st.sampled_from(keys))
                deeper = isinstance(place[key], dict | list) and place[key]
                if deeper and (place is found or draw(st.booleans())):
                    place = place[key]
                    continue
                what = draw(st.sampled_from(("value", "value", "value", "gone", "new")))
                if what == "value":
                    place[key] = draw(values)
                elif what == "gone":
                    del place[key]
                elif isinstance(place, dict):
                    place[draw(st.text(max_size=6))] = draw(values)
                else:
                    place.append(draw(values))
                break
        return found

    return st.composite(at_random)()


@st.composite
def npz_files(draw) -> bytes:
    """An .npz with arrays of any type, shape and content."""
    names = st.sampled_from(
        ("samples", "arr_0", "x_train", "x_test", "y_train", "y_test", "mu", "sigma", "x")
    )
    shapes = st.sampled_from(
        ((60, 2), (60, 8, 8), (60, 1, 8, 8), (60, 8, 8, 3), (2, 2), (2,), (0, 2), (60, 0), ())
    )
    kinds = (
        arrays.scalar_dtypes()
        | arrays.unicode_string_dtypes()
        | st.sampled_from([np.dtype("u1"), np.dtype("f4")])
    )
    array = arrays.arrays(kinds, shapes | arrays.array_shapes(max_dims=5, max_side=6))
    file = io.BytesIO()
    np.savez(file, **draw(st.dictionaries(names, array, min_size=0, max_size=3)))
    return file.getvalue()
