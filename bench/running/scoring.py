"""Scores of samples that somebody else drew: the same metrics and error bars, without a method or a measured
NFE.
"""

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

import click
import torch
from torch import Tensor

from bench import protocol, store
from bench.cache import key_of
from bench.data import Data, load
from bench.data.folder import channels_first, read_npz
from bench.job import BLOCKS
from bench.metrics import features
from bench.metrics.fidelity import measure
from bench.metrics.jackknife import Measured
from bench.metrics.names import METRICS, PAIRS, find
from bench.metrics.references import Reference, imported
from bench.row import Row
from bench.statistics import bias_corrected, stderr

CHUNK = 500
DEFAULT = ("fid", "is", "kid")


def score_file(
    path: Path,
    data_name: str,
    metrics: Sequence[str] = (),
    extractor_name: str | None = None,
    adopt: tuple[Path, str, int | None] | None = None,
    statistics: Path | None = None,
) -> list[dict]:
    """A record for each metric of the samples in an .npz or a folder, held against the training images, or
    against the moments in the file `statistics`.

    `adopt`: a results folder, a name and the NFE that is claimed; the numbers are appended there as rows.
    """
    data = load(data_name)
    extractor = features.extractor(extractor_name or features.default_extractor(data), data)
    left_out = (PAIRS if statistics else set()) | (set() if extractor.classes else {"is"})
    names = [find(name).name for name in metrics] or [
        name for name in DEFAULT if data.kind in METRICS[name].kinds and name not in left_out
    ]
    reference = imported(statistics, extractor, names)
    stored = samples_of(path, data)
    if len(stored) < 2 * BLOCKS:
        raise click.ClickException(
            f"{path} holds {len(stored)} samples; {2 * BLOCKS} are the least that give an error bar."
        )
    try:
        found = measure(names, stored.split(CHUNK), data, extractor, reference=reference or "train")
    except ValueError as error:
        raise click.ClickException(f"{path}: {error}") from None
    if adopt:
        adopted(*adopt, path, data, extractor, found, reference)
    return [
        {
            "metric": column,
            "value": measured.value,
            "stderr": stderr(measured.replicates),
            "bias_corrected": bias_corrected(measured.value, measured.replicates)
            if column.startswith("fid")
            else None,
            "samples": measured.samples,
            "data": data_name,
        }
        for column, measured in found.items()
    ]


def adopted(
    folder: Path,
    name: str,
    nfe: int | None,
    path: Path,
    data: Data,
    extractor,
    found: dict[str, Measured],
    reference: Reference | None = None,
) -> None:
    """Append the numbers as rows; their NFE is a claim and stands as the budget, with no measured one beside
    it.
    """
    count = next(iter(found.values())).samples
    facts = protocol.of_samples(data, extractor, count, min(CHUNK, count), reference)
    fingerprint = protocol.fingerprint(facts)
    store.record_protocol(folder, fingerprint, facts)
    key = key_of([name, nfe, data.name, fingerprint, sha256(path)], 20)
    store.append(
        folder,
        [
            Row.of(
                key=key,
                method=name,
                version=1,
                parameters={},
                data=data.name,
                base="given samples",
                base_id="",
                train_seed=0,
                images=None,
                ask="sample",
                budget=nfe or 0,
                seed=0,
                samples=m.samples,
                protocol=fingerprint,
                metric=column,
                value=m.value,
                replicates=list(m.replicates),
                details=dict(m.extra) | {"claimed_nfe": nfe, "file": path.name},
                time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            )
            for column, m in found.items()
        ],
    )


def sha256(path: Path) -> str:
    """Of a file's bytes, or of a folder's file names and sizes."""
    if path.is_dir():
        return key_of([(p.name, p.stat().st_size) for p in sorted(path.rglob("*")) if p.is_file()], 64)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def samples_of(path: Path, data: Data) -> Tensor:
    """The samples of a file or folder in the data's stored form."""
    if path.is_dir():
        shape = data.shape
        if data.kind != "image" or shape[1] != shape[2]:
            raise click.ClickException(f"{data.name} is not square images; give its samples as an .npz file.")
        found = load(f"folder:{path}@{shape[1]}")
        grey = lambda pixels: pixels.mean(1, keepdim=True) if shape[0] == 1 else pixels
        pieces = (piece.float() for half in (found.train, found.test) for piece in half.split(CHUNK))
        return torch.cat([data.quantise(grey(pixels) * (2 / 255) - 1) for pixels in pieces])
    if not path.is_file():
        raise click.ClickException(f"there is no file or folder {path}.")
    arrays = read_npz(path)
    name = next((n for n in ("samples", "arr_0", "x", "images") if n in arrays), next(iter(arrays), None))
    if name is None:
        raise click.ClickException(f"{path} holds no array.")
    array = arrays[name]
    if data.kind == "image":
        array = channels_first(array, path)
    if tuple(array.shape[1:]) != tuple(data.shape):
        raise click.ClickException(
            f"{path} holds samples of shape {tuple(array.shape[1:])}; {data.name}'s are {data.shape}."
        )
    if array.dtype.kind not in "uif" or not array.size:
        raise click.ClickException(f"{path} holds {array.size} values of type {array.dtype}: give numbers.")
    low, high = array.min(), array.max()
    if data.levels and array.dtype.kind != "f":
        if low < 0 or high >= data.levels:
            raise click.ClickException(
                f"{path} holds levels from {low} to {high}; {data.name} has {data.levels}, from 0."
            )
        return torch.from_numpy(array.astype("uint8", copy=False))
    tensor = torch.from_numpy(array.astype("float32", copy=False))
    if not torch.tensor([float(low), float(high)]).isfinite().all():  # NaN is both the least and the greatest
        raise click.ClickException(f"{path} holds values that are not finite: remove those samples.")
    if data.levels is None:
        return tensor
    if low < -1.5 or high > 1.5:
        raise click.ClickException(
            f"{path} holds values from {low:.3g} to {high:.3g}; floats are read on the scale [-1, 1]."
        )
    return torch.cat([data.quantise(piece) for piece in tensor.split(CHUNK)])
