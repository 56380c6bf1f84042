"""Data sets by name: `load("digits")`, `load("cifar10")`, `load("mixture2d")`, `load("folder:PATH@64")`.

Light to import: torch, scikit-learn, PIL and torchvision come in when a data set is loaded.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import math
import os
import tokenize
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.cache import cache_dir, whole

if TYPE_CHECKING:
    from torch import Tensor

    from bench.diffusion.exact import GaussianMixture

# which module of this package loads what: a name, or a prefix that a path follows
NAMES = {
    "digits": "embedded",
    "mnist": "vision",
    "fashion-mnist": "vision",
    "cifar10": "vision",
    "celeba64": "prepared",
    "imagenet64": "prepared",
    "mixture2d": "exact",
    "mixture-digits": "exact",
    "mixture-fashion": "exact",
    "mixture-cifar10": "exact",
    "markov": "chains",
    "vmf": "manifolds",
    "wrapped": "manifolds",
    "cities": "manifolds",
    "box2d": "boxes",
}
# A kind of data, and the kinds it can be seen as, itself first. Tokens are whole numbers from 0 to
# levels - 1; a sphere is of unit vectors, a torus of angles in [-pi, pi), a box [-1, 1] in every dimension.
KINDS = {
    "image": ("image",),
    "vector": ("vector",),
    "tokens": ("tokens",),
    "sphere": ("sphere",),
    "torus": ("torus",),
    "box": ("box", "vector"),
}
# what methods for a kind are measured on where no data set was asked for
HOME = {
    "image": ("digits",),
    "vector": ("mixture2d",),
    "tokens": ("digits", "markov"),
    "sphere": ("vmf", "cities"),
    "torus": ("wrapped",),
    "box": ("digits", "box2d"),
}
PREFIXES = {"folder": "folder", "npz": "folder", "mixture": "exact", "text": "chains"}


@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """One data set: what methods are trained on (`train`) and measured against (`test`).

    `kind` is one of KINDS. Both are (N, *shape) in stored form: uint8 levels 0..levels-1 where `levels` is
    set, else float32.
    `labels` and `test_labels` are (N,) int64. `exact` is the distribution itself, in float64, where it is
    known. `sources` are the .npy files that train and test are mapped from, if they are.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    train: Tensor
    test: Tensor
    levels: int | None = None
    labels: Tensor | None = None
    test_labels: Tensor | None = None
    exact: GaussianMixture | None = None
    sources: tuple[Path, Path] | None = None

    def __repr__(self) -> str:
        return f"Data({self.name!r}, {self.kind!r}, {self.shape}, levels={self.levels})"

    @property
    def dim(self) -> int:
        return math.prod(self.shape)

    @cached_property
    def sigma_data(self) -> float:
        """The standard deviation over all coordinates and samples, on the [-1, 1] scale, as in EDM."""
        import torch

        if self.levels is None and hasattr(self.exact, "mean"):
            mean = self.exact.mean()
            return float((self.exact.variance() / self.dim + mean.var(correction=0)).sqrt())
        if self.levels is None:
            return float(self.train.double().std(correction=0))
        counts = sum(torch.bincount(part.flatten(), minlength=self.levels) for part in self.train.split(4096))
        share, value = counts.double() / counts.sum(), torch.linspace(-1, 1, self.levels).double()
        return float((share @ value**2 - (share @ value) ** 2).sqrt())

    def scale(self, stored: Tensor) -> Tensor:
        """Stored form to what methods see: level k of L becomes 2 k / (L - 1) - 1, float32; values without
        levels stay; tokens become int64.
        """
        if self.kind == "tokens":
            return stored.long()
        return stored.float() if self.levels is None else stored.float() * (2 / (self.levels - 1)) - 1

    def quantise(self, x: Tensor) -> Tensor:
        """What methods give to stored form: clipped, then the nearest level."""
        import torch

        if self.kind == "tokens":
            return x.to(torch.uint8)
        if self.levels is None:
            return x.float()
        top = self.levels - 1
        return ((x.float() + 1) * (top / 2)).round().clamp(0, top).to(torch.uint8)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of name, shape, levels and content: equal on two machines exactly if their data are.

        Of a name such as npz:FILE only the part before the colon counts. An exact distribution counts by its
        parameters, rounded above what the machines' linear algebra may differ by.
        """
        if self.exact is not None:
            state = self.exact.state_dict()
            content = [_digest(state[k].half() if k == "basis" else state[k].float()) for k in sorted(state)]
        elif self.sources:
            content = [_remembered_digest(path) for path in self.sources]
        else:
            content = [_digest(self.train), _digest(self.test)]
        record = [self.name.partition(":")[0], list(self.shape), self.levels, *content]
        return hashlib.sha256(json.dumps(record).encode()).hexdigest()

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds it can be seen as, itself first: what lies on levels is a box, and tokens as well."""
        return KINDS[self.kind] + (("tokens", "box") if self.kind == "image" and self.levels else ())

    def view(self, kind: str) -> Data:
        """The same data seen as another kind; ValueError where it has no such view."""
        if kind == self.kind:
            return self
        if kind not in self.kinds:
            raise ValueError(f"{self.name} is of kind {self.kind!r} and has no view as {kind!r}")
        seen = copy.copy(self)
        vars(seen).update(kind=kind)
        return seen

    def seen_by(self, kinds: set[str]) -> Data:
        """The view that a method for these kinds has: of its own kind where it is for that."""
        return self.view(next((kind for kind in self.kinds if kind in kinds), min(kinds)))

    def back(self, x: Tensor, kind: str) -> Tensor:
        """Samples of `view(kind)` as samples of this data set."""
        if kind == "tokens" != self.kind:
            return self.scale(x)
        return x


def names() -> list[str]:
    """The names that `load` knows, besides folder:PATH@SIZE, npz:FILE, text:FILE and mixture:FILE."""
    return list(NAMES)


@lru_cache(maxsize=16)
def load(name: str) -> Data:
    """The data set called `name`; click.ClickException where there is none or it cannot be read."""
    return _module(name).load(name)


def fetch(name: str) -> Path | None:
    """Download `name` and return its file; None for what needs no download. click.ClickException where it
    cannot be had.
    """
    module = _module(name)
    return module.fetch(name) if hasattr(module, "fetch") else None


def bring(name: str, path: Path) -> dict[str, Path]:
    """Make the data set `name` of the originals at `path` and return its files, by what they hold;
    click.ClickException where they are not what they should be, or none are needed.
    """
    module = _module(name)
    if not hasattr(module, "bring"):
        raise click.ClickException(f"{name} is not made of originals: `bench data fetch {name}` brings it")
    return module.bring(name, path)


def data_dir() -> Path:
    """`cache_dir() / "data"`, made if need be."""
    folder = cache_dir() / "data"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.ClickException(
            f"cannot make {folder} ({error}): set TAXOBENCH_CACHE to a folder you can write"
        ) from None
    return folder


def refuse_strange(path: Path) -> None:
    """click.ClickException where what is there is no file but something that may never end: a pipe, say."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise click.ClickException(f"{path} is not a regular file: give one that can be read to its end")


def mapped(path: Path, mend: str = "delete it, and it is made again") -> Tensor:
    """The array of a .npy file, read from disk as it is used; writing to the tensor leaves the file alone.
    click.ClickException, which says how to `mend` it, where it is damaged.
    """
    import torch
    from numpy.lib.format import open_memmap

    refuse_strange(path)
    try:
        return torch.from_numpy(open_memmap(path, "c"))
    except (
        OSError,
        ValueError,  # a header that is none, or promises more than there is
        TypeError,
        LookupError,
        MemoryError,
        OverflowError,
        RecursionError,
        SyntaxError,
        tokenize.TokenError,
    ) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise click.ClickException(f"{path} is damaged or cannot be read ({reason}): {mend}") from None


def mapped_images(files: dict[str, Path], mend: str, shape: tuple[int, ...] = ()) -> dict[str, Tensor]:
    """The arrays of a data set's own .npy files, by part: uint8 images, of this shape if one is given, and
    int64 labels; click.ClickException, which says how to `mend` it, for a file that holds anything else.
    """
    import torch

    arrays = {part: mapped(path, mend) for part, path in files.items()}
    shape = shape or tuple(arrays["train"].shape[1:])
    for part, array in arrays.items():
        if part in ("train", "test"):
            sound = array.dtype == torch.uint8 and len(shape) == 3 and array.numel()
            sound = sound and tuple(array.shape[1:]) == shape
        else:
            rows = len(arrays["train" if part == "labels" else "test"])
            sound = array.dtype == torch.int64 and tuple(array.shape) == (rows,)
        if not sound:
            found = f"{str(array.dtype).removeprefix('torch.')} of shape {tuple(array.shape)}"
            raise click.ClickException(f"{files[part]} holds {found}, not what was prepared: {mend}")
    return arrays


def _module(name: str):
    prefix, colon, _ = name.partition(":")
    if colon and prefix in PREFIXES:
        return import_module(f"bench.data.{PREFIXES[prefix]}")
    if name in NAMES:
        return import_module(f"bench.data.{NAMES[name]}")
    near = difflib.get_close_matches(name, NAMES, 1, 0.5)
    hint = (
        f"did you mean {near[0]}?"
        if near
        else f"there are {', '.join(NAMES)}, folder:PATH@SIZE, npz:FILE, text:FILE and mixture:FILE"
    )
    raise click.ClickException(f"no data set is called {name!r}: {hint}")


def _digest(array: Tensor) -> str:
    return hashlib.sha256(array.cpu().contiguous().numpy()).hexdigest()


def _remembered_digest(path: Path) -> str:
    """`_digest` of the array in a .npy file, kept beside it as long as its size and its time stay."""
    stat, note = path.stat(), path.with_suffix(".sha256")
    stamp = f"{stat.st_size} {stat.st_mtime_ns}"
    noted = note.read_text(errors="replace") if note.is_file() else ""
    if noted.startswith(stamp + " "):
        return noted.split()[-1]
    digest = _digest(mapped(path))
    with whole(note) as draft:
        draft.write_text(f"{stamp} {digest}")
    return digest
