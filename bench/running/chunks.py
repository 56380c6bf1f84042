"""Chunk files: what was drawn, what it cost, and a checksum that tells a whole file from a damaged one."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from bench.cache import whole
from bench.job import Chunk, Readied


def packed(tensors: dict[str, Tensor], chunk: Chunk) -> bytes:
    """A chunk as the bytes of its file, in which it may travel."""
    facts = json.dumps(asdict(chunk))
    return save(tensors, {"chunk": facts, "sha256": checksum(tensors, facts)})


def write_chunk(path: Path, content: bytes) -> None:
    """Put a packed chunk where it belongs."""
    with whole(path) as part:
        part.write_bytes(content)


def read_chunk(path: Path, source: str | None = None) -> tuple[Chunk, dict[str, Tensor]] | None:
    """A chunk's cost and tensors; None where the file is missing, torn, not what its checksum says, or drawn
    by a plugin whose text was another than that of this sha256.
    """
    try:
        with safe_open(path, "pt") as file:
            meta = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        facts = json.loads(meta["chunk"])
        chunk = Chunk(**facts | {"readied": Readied(**facts["readied"])})
        whole_file = meta["sha256"] == checksum(tensors, meta["chunk"])
        return (chunk, tensors) if whole_file and source in (None, chunk.source) else None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def checksum(tensors: dict[str, Tensor], facts: str) -> str:
    digest = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
