"""Anyone's data: `folder:PATH@SIZE`, a folder of images, and `npz:FILE`, arrays."""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.cache import whole
from bench.data import Data, data_dir, mapped_images, refuse_strange

if TYPE_CHECKING:
    from numpy import ndarray

IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
WIDEST = 4096  # pixels; the side at which images are wanted
HELD_OUT = 0.1  # the share that becomes the test split where none is given


def load(name: str) -> Data:
    """Either kind by its prefix; click.ClickException, in one sentence, for what cannot be read."""
    prefix, _, rest = name.partition(":")
    return _load_npz(name, Path(rest).expanduser()) if prefix == "npz" else _load_folder(name, rest)


def read_npz(path: Path, wanted: Iterable[str] | None = None) -> dict[str, ndarray]:
    """The arrays of an .npz file (all, or those `wanted`), nothing unpickled; ClickException if broken."""
    import numpy

    refuse_strange(path)
    try:
        with numpy.load(path, allow_pickle=False) as file:
            if not isinstance(file, numpy.lib.npyio.NpzFile):
                raise ValueError("it is a single array")
            if not all(key in file for key in wanted or ()):
                raise click.ClickException(f"{path} should hold the arrays {', '.join(wanted)}: replace it")
            arrays = {key: file[key] for key in (file.files if wanted is None else wanted)}
            if strange := [key for key, array in arrays.items() if not isinstance(array, numpy.ndarray)]:
                raise ValueError(f"it holds {strange[0]}, which is no array")
            return arrays
    except FileNotFoundError:
        raise click.ClickException(f"there is no file {path}") from None
    except (
        OSError,
        ValueError,
        EOFError,
        AttributeError,
        TypeError,
        LookupError,
        MemoryError,  # a header that promises more than there is
        OverflowError,
        RuntimeError,  # encrypted, or compressed in a way that Python does not know
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise click.ClickException(f"{path} cannot be read as .npz ({reason}): replace it") from None


def channels_first(images: ndarray, path: Path) -> ndarray:
    """(N, H, W), (N, H, W, C) or (N, C, H, W) as (N, C, H, W), C being 1 or 3."""
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4 and images.shape[1] in (1, 3):
        return images
    if images.ndim == 4 and images.shape[3] in (1, 3):
        return images.transpose(0, 3, 1, 2)
    raise click.ClickException(
        f"{path} holds an array of shape {images.shape}: save images as (N, H, W), (N, H, W, C) or "
        "(N, C, H, W), C being 1 or 3"
    )


def _load_npz(name: str, path: Path) -> Data:
    import numpy
    import torch

    arrays = read_npz(path)
    key = next((key for key in ("x_train", "arr_0", "samples") if key in arrays), None)
    if key is None:
        held = ", ".join(arrays) or "nothing"
        raise click.ClickException(f"{path} holds {held}: it needs x_train (and x_test), arr_0 or samples")
    train = _stored(arrays[key], path)
    labels = labels_of(arrays, "y_train", len(train), path)
    if key == "x_train" and "x_test" in arrays:
        test = _stored(arrays["x_test"], path)
        test_labels = labels_of(arrays, "y_test", len(test), path)
    else:
        order = numpy.random.default_rng(0).permutation(len(train))
        here, out = numpy.split(order, [len(train) - _held_out(len(train), path)])
        test, test_labels = train[out], None if labels is None else labels[out]
        train, labels = train[here], None if labels is None else labels[here]
    if train.shape[1:] != test.shape[1:] or train.dtype != test.dtype:
        raise click.ClickException(f"x_train and x_test in {path} differ in shape or type: make them alike")
    return Data(
        name,
        "image" if train.ndim == 4 else "vector",
        tuple(train.shape[1:]),
        train=torch.from_numpy(train),
        test=torch.from_numpy(test),
        levels=256 if train.dtype == numpy.uint8 else None,
        labels=None if labels is None else torch.from_numpy(labels),
        test_labels=None if test_labels is None else torch.from_numpy(test_labels),
    )


def labels_of(arrays: dict[str, ndarray], key: str, count: int, path: Path) -> ndarray | None:
    """The int64 labels of so many rows; None where there are none."""
    import numpy

    if key not in arrays:
        return None
    labels = arrays[key].reshape(-1)
    if labels.dtype.kind not in "uib" or len(labels) != count:
        raise click.ClickException(
            f"{key} in {path} holds {len(labels)} of type {labels.dtype}: give a whole number to each row"
        )
    return labels.astype(numpy.int64)


def _stored(array: ndarray, path: Path) -> ndarray:
    """The array in stored form: uint8 images, channels first, or finite float32 (images within [-1, 1])."""
    import numpy

    if array.dtype != numpy.uint8 and array.dtype.kind != "f":
        raise click.ClickException(
            f"{path} holds {array.dtype} values: save uint8 images, or floats on [-1, 1]"
        )
    if not array.size:
        raise click.ClickException(f"{path} holds an empty array: it needs at least one row")
    if array.ndim != 2:
        array = channels_first(array, path)
    elif array.dtype == numpy.uint8:
        raise click.ClickException(f"{path} holds rows of uint8: images are (N, H, W, C), vectors are floats")
    if array.dtype != numpy.uint8:
        array = array.astype(numpy.float32)
        if not numpy.isfinite(array).all():
            raise click.ClickException(f"{path} holds values that are not finite: remove them")
        if array.ndim == 4 and abs(array).max() > 1:
            low, high = array.min(), array.max()
            raise click.ClickException(f"{path} holds images from {low:g} to {high:g}: scale them to [-1, 1]")
    return numpy.ascontiguousarray(array)


def _held_out(n: int, path: Path) -> int:
    if n < 2:
        raise click.ClickException(f"{path} holds {n} images: it needs 2 or more, to hold some out")
    return max(1, round(HELD_OUT * n))


def _load_folder(name: str, rest: str) -> Data:
    place, _, size = rest.rpartition("@")
    if not place or not size.isdecimal() or len(size) > 4 or not 1 <= int(size) <= WIDEST:
        raise click.ClickException(
            f"say at which size the images are wanted, up to {WIDEST} pixels: folder:{place or rest}@64"
        )
    root = Path(place).expanduser()
    if not root.is_dir():
        raise click.ClickException(f"there is no folder {root}")
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in IMAGES and path.is_file())
    _held_out(len(paths), root)
    size = int(size)
    listing = [(str(p.relative_to(root)), p.stat().st_size, p.stat().st_mtime_ns) for p in paths]
    key = hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:16]
    sources = tuple(data_dir() / f"folder-{key}-{size}.{part}.npy" for part in ("train", "test"))
    if not all(path.exists() for path in sources):
        _convert(root, paths, size, sources)
    files = dict(zip(("train", "test"), sources, strict=True))
    arrays = mapped_images(files, "delete it, and it is made again from the images", (3, size, size))
    return Data(name, "image", (3, size, size), levels=256, sources=sources, **arrays)


def _convert(root: Path, paths: list[Path], size: int, sources: tuple[Path, Path]) -> None:
    """Write both splits; ordered by the files' hashes, so that equal images fall on the same side."""
    import filelock
    import numpy

    with filelock.FileLock(sources[0].with_suffix(".lock")):
        if all(path.exists() for path in sources):  # another process did it meanwhile
            return
        paths = sorted(paths, key=lambda path: hashlib.sha256(path.read_bytes()).digest())
        edge = len(paths) - _held_out(len(paths), root)
        for part, target in zip((paths[:edge], paths[edge:]), sources, strict=True):
            with whole(target) as draft:
                array = numpy.lib.format.open_memmap(draft, "w+", numpy.uint8, (len(part), 3, size, size))
                for i, path in enumerate(part):
                    array[i] = _read_image(path, size)
                array.flush()


def _read_image(path: Path, size: int) -> ndarray:
    """(3, size, size) uint8: upright, RGB, the largest centred square, resized with antialiasing."""
    import numpy
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise click.ClickException(
            f"{path} cannot be read as an image ({error}): remove or replace it"
        ) from None
    side, (width, height) = min(image.size), image.size
    left, top = (width - side) // 2, (height - side) // 2
    image = image.crop(
        (left, top, left + side, top + side)
    )  # before, or the filter would reach beyond the square
    image = image.resize((size, size), Image.Resampling.LANCZOS)
    return numpy.asarray(image).transpose(2, 0, 1)
