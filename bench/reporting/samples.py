"""The few sample images kept beside the rows, as pictures: strips, and PNG files made of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from bench import store
from bench.data.folder import read_npz
from bench.reporting.series import Column


def stored(folder: Path, key: str) -> np.ndarray | None:
    """The images kept for a cell, (N, C, H, W) as they were stored; None where there are none to be read."""
    path = folder / "samples" / f"{key}.npz"
    if not store.PLAIN.fullmatch(key) or not path.is_file():
        return None
    try:
        images = read_npz(path, ("samples",))["samples"]
    except click.ClickException:
        return None
    sound = images.ndim == 4 and images.size and images.shape[1] in (1, 3) and images.dtype.kind in "uf"
    return images if sound else None


def top_level(images: list[np.ndarray]) -> int:
    """The highest level of a data set, told by its images: 1, 16 (digits) or 255; rows do not say."""
    highest = max((int(a.max()) for a in images if a.dtype == np.uint8), default=255)
    return next(top for top in (1, 16, 255) if highest <= top)


def pictures(images: np.ndarray, top: int) -> np.ndarray:
    """Stored images as (N, H, W, C) uint8 of 0..255; floats are on the scale [-1, 1]."""
    share = (
        images.astype(np.float32) / top if images.dtype == np.uint8 else (images.astype(np.float32) + 1) / 2
    )
    share = np.nan_to_num(share, nan=0.0)
    return (share.clip(0, 1) * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)


def strip(images: np.ndarray, top: int, count: int) -> np.ndarray:
    """The first `count` images side by side with a pixel of white between, (H, W, C) uint8."""
    shown = pictures(images[:count], top)
    gap = np.full((shown.shape[1], 1, shown.shape[3]), 255, np.uint8)
    parts = [part for image in shown for part in (image, gap)][:-1]
    return np.concatenate(parts, axis=1)


def png(image: np.ndarray) -> bytes:
    """An (H, W, 1 or 3) uint8 picture as a PNG file."""
    from io import BytesIO

    from PIL import Image

    file = BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(file, "PNG", optimize=True)
    return file.getvalue()


@dataclass(frozen=True)
class Kept:
    """The images kept of one method at one budget."""

    label: str
    method: str
    start: str  # the noise they came from; equal columns start equally only where this is equal
    images: np.ndarray


@dataclass(frozen=True)
class Shelf:
    """What was kept of one data set at one budget under one protocol."""

    data: str
    budget: int
    mark: str  # the protocol where there are several, else ""
    top: int
    kept: tuple[Kept, ...]


def shelves(columns: Sequence[Column], folder: Path) -> list[Shelf]:
    """The kept images of the columns' cells, those of one start together, baselines first."""
    found: dict[tuple, dict[str, Kept]] = {}
    protocols: dict[str, set[str]] = {}
    for column in columns:
        for line in column.lines:
            for point in line.points:
                row = point.entry.rows[0]
                place = (column.data, column.protocol, point.budget)
                if row.ask != "sample" or line.label in found.get(place, {}):
                    continue
                images = stored(folder, row.key)
                if images is not None:
                    kept = Kept(line.label, line.method, row.start, images)
                    found.setdefault(place, {})[line.label] = kept
                    protocols.setdefault(column.data, set()).add(column.protocol)
    tops = {
        data: top_level([k.images for (d, *_), kept in found.items() if d == data for k in kept.values()])
        for data in protocols
    }
    return [
        Shelf(
            data,
            budget,
            protocol if len(protocols[data]) > 1 else "",
            tops[data],
            by_start(list(kept.values())),
        )
        for (data, protocol, budget), kept in sorted(found.items(), key=lambda item: item[0])
    ]


def by_start(kept: Sequence[Kept]) -> tuple[Kept, ...]:
    """In the order given, but those of one start together."""
    starts = list(dict.fromkeys(one.start for one in kept))
    return tuple(sorted(kept, key=lambda one: starts.index(one.start)))
