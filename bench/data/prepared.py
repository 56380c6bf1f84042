"""`celeba64` and `imagenet64`: 64 x 64 colour images, prepared as the literature does from the originals,
which everybody has to get from their owners: `bench data import NAME PATH`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import click

from bench.cache import borrow, whole
from bench.data import Data, data_dir, mapped_images
from bench.data.pictures import contents, decoded, names

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 64
CELEBA_SIZE, CELEBA_CROP = (178, 218), 140  # of the aligned images; width and height
CELEBA_TRAIN, CELEBA_TEST = range(1, 162_771), range(182_638, 202_600)  # by number; between lies validation
HELD_OUT = 10  # one class image in so many, where no split comes along


@dataclass(frozen=True)
class Place:
    """Where an image goes: the split, and its class, if there are classes."""

    split: str  # "train" | "test"
    label: int | None = None


@dataclass(frozen=True)
class Preparation:
    """What the originals are, which split each belongs to, and what is made of one."""

    originals: str
    whole: tuple[int, int]  # how many images there are, for training and held out
    places: Callable[[list[str], Path], dict[str, Place]]
    image: Callable[[Image, str], Image]


def load(name: str) -> Data:
    """The prepared data set; click.ClickException saying how to bring it, where it is not there."""
    files = files_of(name)
    borrow(*files.values())
    if not all(files[part].exists() for part in ("train", "test")):
        raise click.ClickException(
            f"{name} is not on this machine: run `bench data import {name} PATH`, where PATH is "
            f"{PREPARATIONS[name].originals}"
        )
    there = {part: path for part, path in files.items() if path.exists()}
    shape, mend = (3, SIDE, SIDE), f"delete it, and run `bench data import {name} PATH`"
    arrays = mapped_images(there, mend, shape)
    return Data(name, "image", shape, levels=256, sources=(files["train"], files["test"]), **arrays)


def bring(name: str, path: Path) -> dict[str, Path]:
    """Prepare the originals at `path`, a folder or an archive, and return the files written, by part."""
    import numpy
    from numpy.lib.format import open_memmap

    preparation, files = PREPARATIONS[name], files_of(name)
    places = preparation.places(names(path), path)
    order = {
        part: sorted(n for n, place in places.items() if place.split == part) for part in ("train", "test")
    }
    if empty := [part for part, found in order.items() if not found]:
        raise click.ClickException(
            f"{path} holds no images of the {empty[0]} split of {name}: it should be {preparation.originals}"
        )
    row = {name: i for found in order.values() for i, name in enumerate(found)}
    with ExitStack() as stack:  # both splits appear together, when all has been read
        shape = lambda part: (len(order[part]), 3, SIDE, SIDE)
        arrays = {
            part: open_memmap(stack.enter_context(whole(files[part])), "w+", numpy.uint8, shape(part))
            for part in order
        }
        for file, content in contents(path, places):
            image = preparation.image(decoded(content, f"{file} in {path}"), f"{file} in {path}")
            arrays[places[file].split][row[file]] = numpy.asarray(image).transpose(2, 0, 1)
        for array in arrays.values():
            array.flush()
        if any(place.label is not None for place in places.values()):
            for part, labels in (("train", "labels"), ("test", "test_labels")):
                with stack.enter_context(whole(files[labels])).open("wb") as draft:
                    numpy.save(draft, numpy.array([places[n].label for n in order[part]], numpy.int64))
    return {part: path for part, path in files.items() if path.exists()}


def short_of(name: str, data: Data) -> str:
    """What a person should know of a set of which not all images are there; nothing where they are."""
    there, whole = (len(data.train), len(data.test)), PREPARATIONS[name].whole
    if there == whole:
        return ""
    return (
        f"{name} is of {whole[0]:,} and {whole[1]:,} images when it is whole: what is measured on these does "
        "not compare with published numbers"
    )


def fetch(name: str) -> Path:
    """The first of its files, if it was imported; nobody may hand out the originals but their owners."""
    return load(name).sources[0]


def files_of(name: str) -> dict[str, Path]:
    """The .npy files of a data set, by part; one without classes has no labels."""
    parts = ("train", "test", *(("labels", "test_labels") if name == "imagenet64" else ()))
    return {part: data_dir() / f"{name}.{part}.npy" for part in parts}


def celeba_places(found: list[str], path: Path) -> dict[str, Place]:
    """CelebA's own partition, which goes by the images' numbers; its validation part is left out."""
    places = {}
    for name in found:
        stem = PurePosixPath(name).stem
        if not stem.isdecimal():
            raise click.ClickException(
                f"{name} in {path} has no number, by which CelebA is split: give img_align_celeba as it is"
            )
        if int(stem) in CELEBA_TRAIN:
            places[name] = Place("train")
        elif int(stem) in CELEBA_TEST:
            places[name] = Place("test")
    return places


def celeba_image(image: Image, where: str) -> Image:
    """The centred 140 x 140 square of an aligned image, resized with an antialiased linear filter, as in
    NCSN and Score-SDE.
    """
    from PIL import Image

    if image.size != CELEBA_SIZE:
        width, height = image.size
        raise click.ClickException(
            f"{where} is {width} x {height}, and CelebA's aligned images are 178 x 218"
        )
    left, top = ((size - CELEBA_CROP) // 2 for size in CELEBA_SIZE)
    square = image.crop((left, top, left + CELEBA_CROP, top + CELEBA_CROP))
    return square.resize((SIDE, SIDE), Image.Resampling.BILINEAR)  # which Pillow widens when it shrinks


def imagenet_places(found: list[str], path: Path) -> dict[str, Place]:
    """Split and class by folders, .../train/CLASS/FILE and .../val/CLASS/FILE; classes are counted in the
    order of their names. Without those two folders a tenth is held out, by the hash of the file's name.
    """
    parts = {name: PurePosixPath(name).parts for name in found}
    splits = {"train": "train", "val": "test", "validation": "test", "test": "test"}
    if alone := [name for name, part in parts.items() if len(part) < 2 or part[-2] in splits]:
        raise click.ClickException(f"{alone[0]} in {path} lies in no folder of a class: sort images by class")
    labels = {label: i for i, label in enumerate(sorted({part[-2] for part in parts.values()}))}
    own = {splits.get(part[-3]) if len(part) > 2 else None for part in parts.values()}
    if own == {"train", "test"}:
        return {name: Place(splits[part[-3]], labels[part[-2]]) for name, part in parts.items()}
    held_out = sorted(parts, key=lambda name: hashlib.sha256("/".join(parts[name][-2:]).encode()).digest())
    held_out = set(held_out[: max(1, len(held_out) // HELD_OUT)])
    return {n: Place("test" if n in held_out else "train", labels[part[-2]]) for n, part in parts.items()}


def imagenet_image(image: Image, where: str) -> Image:
    """Halved by box averages while both sides are 128 or more, brought to 64 along the shorter side by a
    bicubic filter, and cropped to the centre, as by ADM's `center_crop_arr`, which EDM2 follows.
    """
    from PIL import Image

    while min(image.size) >= 2 * SIDE:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = SIDE / min(image.size)
    size = tuple(max(SIDE, round(side * scale)) for side in image.size)
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = ((side - SIDE) // 2 for side in image.size)
    return image.crop((left, top, left + SIDE, top + SIDE))


PREPARATIONS = {
    "celeba64": Preparation(
        "CelebA's aligned images, img_align_celeba (a folder, .zip or .tar)",
        (len(CELEBA_TRAIN), len(CELEBA_TEST)),
        celeba_places,
        celeba_image,
    ),
    "imagenet64": Preparation(
        "a folder (or .zip or .tar) of train/CLASS/*.JPEG and val/CLASS/*.JPEG",
        (1_281_167, 50_000),
        imagenet_places,
        imagenet_image,
    ),
}
