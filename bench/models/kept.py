"""Trained models, kept by content: what a model's facts determine is trained once, resumed where it was cut
off, and loaded after.

A model is its tensors: a safetensors file, whole or in pieces, loaded into what the code builds, and a JSON
card. Nothing is unpickled.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from filelock import FileLock
from safetensors.torch import save_file
from torch import Tensor, nn

from bench.cache import borrow, cache_dir, hand_back, key_of, whole, write_json
from bench.diffusion import pieces, training
from bench.diffusion.execution import arithmetic, keep_memory, placed
from bench.diffusion.team import ALONE, Team

DAY = 86_400.0  # seconds after its last use that a model cut short is kept for the run it was cut short in


@dataclass(frozen=True)
class How:
    """How models are trained and where they run; numbers depend on it only through `device` and `threads`."""

    device: str = "cpu"
    report: training.Report | None = None
    minutes: float | None = None
    threads: int | None = None  # of training on a CPU; None is all cores
    precision: str = "fp32"  # of training; one of `execution.PRECISIONS`
    shard_size: int | None = None  # bytes; what training leaves is cut into pieces of at most so many
    team: Team = ALONE  # who trains along
    run: str = ""  # whose trainings are cut short at `minutes`, and used as they are until it ends


def prepared(
    name: str,
    facts: dict,
    build: Callable[[], nn.Module],
    train: Callable[[nn.Module], None],
    *,
    seed: int,
    how: How,
    label: str,
    finish: Callable[[nn.Module], dict] = lambda model: {},
) -> tuple[nn.Module, dict]:
    """The model that `facts` determine: loaded where it was trained before, else trained, resuming what was
    begun. Its card says in which `folder` it lies.
    """
    folder = home(name, facts)
    folder.mkdir(parents=True, exist_ok=True)
    place = {"folder": str(folder)}
    short = folder / f"run-{how.run}" if how.run else None  # what is trained in no more than `minutes`
    with held(folder / ".lock", how.team):
        for there in (folder, short):
            if there and (found := loaded_from(there, build)):
                if there == short:
                    os.utime(short)
                cut(folder, how)
                return placed(found[0].eval(), how.device), found[1] | place
        keep_memory()
        model = placed(build(), how.device)
        settings = {"folder": folder, "seed": seed, "device": how.device, "label": label}
        settings |= {"report": how.report, "minutes": how.minutes, "precision": how.precision}
        with (
            training.session(**settings, team=how.team) as session,
            threads(how.threads or cores()),
            arithmetic(how.precision, how.device),
        ):
            began = time.monotonic()
            try:
                train(model)
            except pieces.Damaged as damage:
                raise click.ClickException(str(damage)) from None
            # Searches and estimates take time outside the loops, whose own seconds outlive a restart.
            seconds = max(session.seconds, time.monotonic() - began)
        model.eval()
        card = facts | {
            "sha256": sha256_of(model),
            "budget": facts.get("images"),
            "images": session.images,
            "seconds": round(seconds, 3),
            "rows": session.rows,
            "capped": session.capped,
            "curve": thinned(session.curve),
            "threads": how.threads or cores(),
            "precision": how.precision,
            "processes": how.team.size,
            "torch": torch.__version__,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **finish(model),
        }
        # A capped training is used in its run, and goes on from its checkpoint in the next.
        if how.team.leads:
            if not session.capped:
                keep(model, card, folder)
                for loop in range(1, session.loops + 1):
                    pieces.remove(training.checkpoint_of(folder, loop))
            elif short:
                keep(model, card, short)
            for other in folder.glob("run-*"):  # whose run may still need it
                if time.time() - other.stat().st_mtime > DAY:
                    shutil.rmtree(other, ignore_errors=True)
        cut(folder, how)
    return model, card | place


def loaded_from(folder: Path, build: Callable[[], nn.Module]) -> tuple[nn.Module, dict] | None:
    """The model that lies in a folder or can be borrowed into it, and its card; None where there is none, or
    a damaged one.
    """
    weights = folder / "model.safetensors"
    if not pieces.there(weights):
        borrow(weights, pieces.index_of(weights), folder / "card.json")
        if pieces.there(weights) and not weights.exists():
            borrow(*(folder / name for name in pieces.read_index(weights)["sha256"]))
    card = read_card(folder)
    if not (card and pieces.there(weights)):
        return None
    model = build()
    try:
        fill(model, weights, card["sha256"])
    except click.ClickException as damage:
        if not weights.exists():  # in pieces, which can still be brought
            raise
        click.echo(f"{damage.message} It is trained again.", err=True)
        return None
    return model, card


def keep(model: nn.Module, card: dict, folder: Path) -> None:
    """Write a model and its card, the card last, and hand both to whoever lends."""
    weights = folder / "model.safetensors"
    with whole(weights) as part:
        save_file(tensors_of(model), part)
    write_json(folder / "card.json", card)
    hand_back(weights, folder / "card.json")


def home(name: str, facts: dict) -> Path:
    """Where in the cache the model that `facts` determine lies."""
    return cache_dir() / "models" / f"{name}-{key_of(facts)}"


def lies(folder: Path) -> bool:
    """Whether a model that was trained to its end lies in a folder, as far as the files' names tell."""
    return bool(read_card(folder)) and pieces.there(folder / "model.safetensors")


def sound(folder: Path) -> str | None:
    """The sha256 on a model's card, if the tensors beside it are of that sha256."""
    card, weights = read_card(folder), folder / "model.safetensors"
    if not card or not pieces.there(weights):
        return None
    with suppress(click.ClickException):
        if sha256_of_tensors(contents(weights)) == card["sha256"]:
            return card["sha256"]
    return None


@contextmanager
def held(lock: Path, team: Team) -> Iterator[None]:
    """The lock is held inside the block, by the first process for all of its team."""
    if not team.leads:
        team.wait()
        yield
        team.wait()
        return
    with FileLock(lock):
        team.wait()
        yield
        team.wait()


def cut(folder: Path, how: How) -> None:
    """Cut every checkpoint of a folder into pieces, if that was asked for."""
    if not how.shard_size or not how.team.leads:
        return
    for path in pieces.checkpoints(folder):
        try:
            pieces.cut(path, how.shard_size)
        except ValueError as error:
            raise click.ClickException(f"{path.name} cannot be cut: {error}") from None


def cores() -> int:
    """The cores this process may use: what OMP_NUM_THREADS says, or those it is allowed to run on."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(told) if told.isdigit() and int(told) > 0 else allowed


@contextmanager
def threads(count: int):
    """So many threads inside the block, as many as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def thinned(curve: list, points: int = 200) -> list:
    return curve[:: max(1, len(curve) // points)]


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name, on the CPU; tensors that stand under two names are copied."""
    return {name: t.detach().cpu().contiguous().clone() for name, t in model.state_dict().items()}


def sha256_of(model: nn.Module) -> str:
    """The identity of a model: the sha256 over its tensors' names, types and bytes."""
    return sha256_of_tensors(tensors_of(model))


def sha256_of_tensors(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


def read_card(folder: Path) -> dict:
    try:
        card = json.loads((folder / "card.json").read_text())
        return card if isinstance(card, dict) and "sha256" in card else {}
    except (OSError, ValueError, RecursionError):
        return {}


def fill(model: nn.Module, path: Path, sha256: str | None = None) -> None:
    """Load tensors into a model; one sentence if the file is torn, of another network, or not what its card
    says.
    """
    fill_with(contents(path), model, path, sha256)


def fill_with(tensors: dict[str, Tensor], model: nn.Module, path: Path, sha256: str | None = None) -> None:
    """As `fill`, with tensors that were read from `path` before."""
    own = model.state_dict()
    wrong = sorted(
        name for name in own.keys() | tensors.keys() if not same_shape(own.get(name), tensors.get(name))
    )
    if wrong:
        raise click.ClickException(
            f"{path} holds another network: {len(wrong)} tensors differ, {wrong[0]} first."
        )
    model.load_state_dict(tensors)
    if sha256 and sha256_of(model) != sha256:
        raise click.ClickException(f"{path} is not what its card says: its sha256 differs.")


def contents(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint; one sentence where it cannot be read."""
    try:
        return pieces.read(path)[0]
    except pieces.Damaged as damage:
        raise click.ClickException(str(damage)) from None
    except OSError as error:
        raise click.ClickException(f"{path} cannot be read: {error.strerror or error}.") from None


def same_shape(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and a.shape == b.shape
