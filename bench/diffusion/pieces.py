"""Checkpoints cut into pieces of a bounded size, and read as if they were whole.

`model.safetensors` becomes `model-00001-of-00003.safetensors` and so on, and `model.safetensors.index.json`,
whose `weight_map` says which tensor lies in which piece, as the Hugging Face hub has it; the index carries
the sha256 of each piece besides. The index is written after the pieces and the whole file goes last, so that
whatever interrupts the cutting, one of the two can be read.
"""

import hashlib
import json
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bench.cache import whole, write_json

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
PIECE = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")
SEAL = "checksum"  # of all tensors, in a file's metadata
HEAD = 100  # bytes that a tensor's name, type and place take in a file's header, about


class Damaged(ValueError):
    """A checkpoint is there and cannot be read; the message is one sentence for a person."""


def bytes_of(size: str) -> int:
    """`4MB` in bytes; ValueError for what is no size."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(KB|MB|GB)?", size.strip().upper())
    if not found or not 0 < float(found[1]) < 2**63:
        raise ValueError(f"{size!r} is no size: give a number with KB, MB or GB, such as 4MB.")
    return int(float(found[1]) * UNITS[found[2] or ""])


def index_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.index.json")


def there(path: Path) -> bool:
    """Whether a checkpoint lies at `path`, whole or in pieces."""
    return path.exists() or index_of(path).exists()


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a checkpoint, whole or in pieces. OSError where there is none, Damaged
    where it is torn or a piece is missing.
    """
    if path.exists() or not index_of(path).exists():
        return read_file(path)
    facts = read_index(path)
    tensors = {}
    for name, sha256 in facts["sha256"].items():
        piece = path.with_name(name)
        if not piece.exists():
            raise Damaged(f"{piece} is missing, a piece of {path.name}: put it back beside its index.")
        if digest(piece) != sha256:
            raise Damaged(f"{piece} is damaged: its sha256 is not what its index says; bring it again.")
        tensors |= read_file(piece)[0]
    return tensors, facts["metadata"]


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """As `read`, of one file; where it was `sealed`, Damaged too if its tensors are not those of the seal."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise Damaged(f"{path} is not a whole safetensors file ({error}).") from None
    if SEAL in metadata and metadata != sealed(tensors, metadata):
        raise Damaged(f"{path} is damaged: its tensors are not what its checksum says.")
    return tensors, metadata


def sealed(tensors: dict[str, Tensor], metadata: dict[str, str]) -> dict[str, str]:
    """The metadata with a checksum of the tensors, by which a reader tells whether they are as written."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(f"{name}:{tensors[name].dtype}:{tuple(tensors[name].shape)};".encode())
        found.update(tensors[name].contiguous().flatten().view(torch.uint8).numpy())
    return metadata | {SEAL: found.hexdigest()}


def read_index(path: Path) -> dict:
    try:
        facts = json.loads(index_of(path).read_text())
        names = [name for name in facts["sha256"] if PIECE.search(name) and Path(name).name == name]
        sums = {name: facts["sha256"][name] for name in names}
        return {"sha256": sums, "metadata": dict(facts["metadata"])}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Damaged(f"{index_of(path)} is not the index of a checkpoint; bring it again.") from None


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, whole or in pieces, by the names they have when whole."""
    found = {path.name.removesuffix(".index.json") for path in folder.glob("*.safetensors.index.json")}
    found |= {path.name for path in folder.glob("*.safetensors") if not PIECE.search(path.name)}
    return [folder / name for name in sorted(found)]


def cut(path: Path, limit: int) -> list[Path]:
    """Cut the checkpoint at `path` into pieces of at most `limit` bytes and remove the whole file; returns
    its files. One that is small enough stays whole, one in pieces that are stays as it is. ValueError where
    one tensor is larger than a piece may be.
    """
    files = [path] if path.exists() else [path.with_name(name) for name in read_index(path)["sha256"]]
    if all(file.stat().st_size <= limit for file in files if file.exists()):
        return files
    tensors, metadata = read(path)
    groups = grouped(tensors, limit)
    names = [f"{path.stem}-{i:05}-of-{len(groups):05}{path.suffix}" for i in range(1, len(groups) + 1)]
    if not path.exists():  # new pieces may take the names of the old ones, so these are put together first
        with whole(path) as part:
            save_file(tensors, part, metadata)
    pieces = [path.with_name(name) for name in names]
    for piece, group in zip(pieces, groups, strict=True):
        with whole(piece) as part:
            save_file({name: tensors[name] for name in group}, part, {"format": "pt"})
    facts = {
        "metadata": metadata,
        "weight_map": {name: piece for piece, group in zip(names, groups) for name in group},
        "sha256": {piece.name: digest(piece) for piece in pieces},
    }
    write_json(index_of(path), facts)
    for old in set(path.parent.glob(f"{path.stem}-*-of-*{path.suffix}")) - set(pieces):
        old.unlink()
    path.unlink()
    return pieces


def grouped(tensors: dict[str, Tensor], limit: int) -> list[list[str]]:
    """The names in order, in as few runs as fit into files of `limit` bytes."""
    groups, room = [], 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size() + HEAD + len(name)
        if size + HEAD > limit:
            raise ValueError(f"the tensor {name} alone takes {size + HEAD:,} bytes: ask for larger pieces.")
        if size > room:
            groups.append([])
            room = limit - HEAD
        groups[-1].append(name)
        room -= size
    return groups


def remove(path: Path) -> None:
    """Remove a checkpoint, whole or in pieces."""
    for one in (path, index_of(path), *path.parent.glob(f"{path.stem}-*-of-*{path.suffix}")):
        one.unlink(missing_ok=True)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
