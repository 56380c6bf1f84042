"""MNIST, Fashion-MNIST and CIFAR-10: one NAME.npz in the cache, unpacked once into mapped arrays."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import click

from bench.cache import borrow, whole
from bench.data import Data, data_dir, mapped_images
from bench.data.folder import channels_first, labels_of, read_npz

TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10"}
PARTS = {"x_train": "train", "x_test": "test", "y_train": "labels", "y_test": "test_labels"}


def load(name: str) -> Data:
    """The data set from the cache; click.ClickException saying how to bring it, where it is not there."""
    npz = data_dir() / f"{name}.npz"
    files = {part: npz.with_name(f"{name}.{part}.npy") for part in PARTS.values()}
    if not _current(npz, files):
        borrow(npz)
        if not npz.exists():
            raise click.ClickException(
                f"{name} is not on this machine: run `bench data fetch {name}`, or put {name}.npz "
                f"as Keras ships it (x_train, y_train, x_test, y_test) at {npz}"
            )
        _unpack(npz, files)
    again = f"{npz.name} beside it" if npz.exists() else f"what `bench data fetch {name}` brings"
    arrays = mapped_images(files, f"delete it, and it is made again from {again}")
    sources = (files["train"], files["test"])
    return Data(name, "image", tuple(arrays["train"].shape[1:]), levels=256, sources=sources, **arrays)


def fetch(name: str) -> Path:
    """Download `name` with torchvision and keep it as one .npz; where that is there, nothing is done."""
    import numpy

    npz = data_dir() / f"{name}.npz"
    if npz.exists():
        return npz
    raw = data_dir() / f"{name}.download"
    try:
        import torchvision

        dataset = getattr(torchvision.datasets, TORCHVISION[name])
        halves = {half: dataset(raw, train=half == "train", download=True) for half in ("train", "test")}
    except (OSError, RuntimeError, ImportError) as error:  # no network, a bad checksum, no torchvision
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise click.ClickException(
            f"cannot download {name} ({reason}): put {name}.npz as Keras ships it "
            f"(x_train, y_train, x_test, y_test) at {npz}"
        ) from None
    arrays = {f"x_{half}": numpy.asarray(data.data) for half, data in halves.items()}
    arrays |= {f"y_{half}": numpy.asarray(data.targets, numpy.uint8) for half, data in halves.items()}
    with whole(npz) as part, part.open("wb") as file:
        numpy.savez_compressed(file, **arrays)
    shutil.rmtree(raw)
    return npz


def _current(npz: Path, files: dict[str, Path]) -> bool:
    """Whether the arrays are there and, if the .npz still is, were made from it: they carry its time."""
    if not all(path.exists() for path in files.values()):
        return False
    return not npz.exists() or all(p.stat().st_mtime_ns == npz.stat().st_mtime_ns for p in files.values())


def _unpack(npz: Path, files: dict[str, Path]) -> None:
    """Write images as uint8 NCHW and labels as int64, each file in one move: no reader sees half of one."""
    import filelock
    import numpy

    with filelock.FileLock(npz.with_suffix(".lock")):
        if _current(npz, files):  # another process did it meanwhile
            return
        arrays = read_npz(npz, PARTS)
        stat = npz.stat()
        for key, part in PARTS.items():
            if part in ("train", "test"):
                array = channels_first(arrays[key], npz)
                if array.dtype != numpy.uint8:
                    raise click.ClickException(
                        f"{key} in {npz} should be uint8 and is {array.dtype}: replace the file"
                    )
                if not array.size or arrays[key].shape[1:] != arrays["x_train"].shape[1:]:
                    raise click.ClickException(
                        f"{key} in {npz} is empty, or of another shape than x_train: replace the file"
                    )
            else:
                array = labels_of(arrays, key, len(arrays[f"x{key[1:]}"]), npz)
            with whole(files[part]) as draft:
                with draft.open("wb") as file:
                    numpy.save(file, numpy.ascontiguousarray(array))
                os.utime(draft, ns=(stat.st_atime_ns, stat.st_mtime_ns))
