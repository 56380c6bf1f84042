"""The models that methods share or need, trained on first use or loaded, and cached by content.

A base is named by a recipe ("denoiser"), a checkpoint folder of ours, or `module.py:make` for a stranger's
own network. What a method itself trains is kept the same way. A model is its tensors: a safetensors file,
loaded into what the code builds, and a JSON card.
"""

import hashlib
import importlib.util
import json
import os
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import click
import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bench.cache import cache_dir, key_of, whole, write_json
from bench.data import Data
from bench.diffusion import training
from bench.diffusion.denoiser import FORMS, KNOWN, Denoiser, rowwise
from bench.diffusion.networks import MLP, image_net
from bench.diffusion.schedule import EDM

RECIPE_VERSION = 1
IMAGES = {8: 400_000, 28: 2_000_000, 32: 10_000_000}  # training budget by resolution


@dataclass(frozen=True)
class How:
    """How models are trained and where they run; numbers depend on it only through `device` and `threads`."""

    device: str = "cpu"
    report: training.Report | None = None
    minutes: float | None = None
    threads: int | None = None  # of training on a CPU; None is all cores


def default_images(data: Data) -> int:
    """The training budget of a data set's shared networks, in images seen."""
    resolution = max(data.shape[1:]) if data.kind == "image" else 0
    return next((images for size, images in IMAGES.items() if resolution <= size), max(IMAGES.values()))


def denoiser_of(
    spec: str, data: Data, seed: int = 0, images: int | None = None, how: How = How()
) -> tuple[Denoiser, dict]:
    """The shared denoiser that `spec` names, and its card: at least `sha256`, `images`, `seconds`."""
    if ":" in spec and spec.split(":")[0].endswith(".py"):
        return strangers(spec, data, how)
    if Path(spec).is_dir():
        return checkpoint(Path(spec), data, how)
    recipe, at, budget = spec.partition("@")
    if recipe != "denoiser" or (at and not budget.isdigit()):
        raise click.BadParameter(
            f"there is no base {spec!r}: give denoiser[@IMAGES], a checkpoint folder or module.py:make."
        )
    if data.exact is not None:
        return exact_denoiser(data, how), {
            "sha256": f"exact:{data.fingerprint[:16]}",
            "images": 0,
            "seconds": 0.0,
        }
    images = int(budget or 0) or images or default_images(data)
    facts = {
        "recipe": "denoiser",
        "version": RECIPE_VERSION,
        "data": data.fingerprint,
        "images": images,
        "seed": seed,
    }
    return prepared(
        f"denoiser-{data.name}",
        facts,
        lambda: new_denoiser(data, seed),
        lambda model: train_denoiser(model, data, images),
        seed=seed,
        how=how,
        label=f"training the denoiser of {data.name}",
        finish=lambda model: {"data_name": data.name, **overfitting(model, data)},
    )


def new_denoiser(data: Data, seed: int = 0, **network) -> Denoiser:
    """The untrained denoiser of a data set: EDM's F form, the training set's sigma_data, all half log-SNRs
    in KNOWN.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = image_net(data.shape, **network) if data.kind == "image" else MLP(data.dim)
    model = Denoiser(net, EDM(), data.shape, "F", data.sigma_data)
    model.levels = data.levels
    return model


def exact_denoiser(data: Data, how: How = How()) -> Denoiser:
    """The denoiser of a distribution that is known: no network, no error of its own."""
    from bench.diffusion.exact import ExactNetwork

    net = ExactNetwork(data.exact, data.shape, data.sigma_data).float()
    return Denoiser(net, EDM(), data.shape, "x0", data.sigma_data).to(how.device)


def denoising_loss(model: Denoiser, x0: Tensor, generator: torch.Generator) -> Tensor:
    """EDM's loss (Karras et al. 2022, table 1): ln sigma is normal, F is fitted with unit weight. One number
    a row.
    """
    mean, spread = 1.2, 1.4
    lam = mean + spread * torch.randn(len(x0), generator=generator, device=generator.device).double()
    r = torch.exp(-lam.clamp(*KNOWN)).to(x0.device)
    noise = torch.randn(x0.shape, generator=generator, device=generator.device).to(x0)
    ones = torch.ones_like(r)
    a, b = FORMS[model.form](ones, r, model.sigma_data)
    out = model.at(x0 + rowwise(r, x0) * noise, ones, r).out
    return ((out - rowwise(a, x0) * x0 - rowwise(b, x0) * noise) ** 2).flatten(1).mean(1)


def train_denoiser(model: Denoiser, data: Data, images: int) -> None:
    training.fit(
        lambda x0, generator: denoising_loss(model, x0, generator), model, data, images, batch=128, lr=2e-3
    )


def overfitting(model: Denoiser, data: Data) -> dict[str, float]:
    """The denoising loss on training and on held-out images, with the same noise: how much better it knows
    what it has seen.
    """
    n = min(len(data.train), len(data.test), 1000)
    losses = {}
    device = next(model.parameters()).device
    with torch.no_grad():
        for split, stored in (("train", data.train), ("held_out", data.test)):
            x0 = data.scale(stored[:n]).to(device)
            values = [denoising_loss(model, x0, training.seeded(7, i)).mean() for i in range(4)]
            losses[f"loss_{split}"] = float(torch.stack(values).mean())
    return losses


def strangers(spec: str, data: Data, how: How) -> tuple[Denoiser, dict]:
    """`module.py:make`: make(data) returns a Denoiser, or a net(x_in, lam) in EDM's F form. Runs that file's
    code.
    """
    file, _, name = spec.partition(":")
    path = Path(file)
    if not path.is_file():
        raise click.BadParameter(f"there is no file {file} to take the network from.")
    module_spec = importlib.util.spec_from_file_location(f"taxobench_base_{path.stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise click.ClickException(f"{file} cannot be imported: {type(error).__name__}: {error}.") from error
    make = getattr(module, name or "make", None)
    if make is None:
        raise click.BadParameter(f"{file} has no function {name or 'make'}(data).")
    model = make(data)
    if not isinstance(model, Denoiser):
        model = Denoiser(model, EDM(), data.shape, "F", data.sigma_data)
    model.levels = data.levels
    model.eval().to(how.device)
    return model, {"sha256": sha256_of(model), "images": 0, "seconds": 0.0}


def checkpoint(folder: Path, data: Data, how: How) -> tuple[Denoiser, dict]:
    """A folder that holds model.safetensors and card.json, as training leaves it."""
    model = new_denoiser(data)
    card = read_card(folder)
    fill(model, folder / "model.safetensors", card.get("sha256"))
    return model.eval().to(how.device), card


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
    begun.
    """
    folder = cache_dir() / "models" / f"{name}-{key_of(facts)}"
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "model.safetensors"
    with FileLock(folder / ".lock"):
        card = read_card(folder)
        if weights.exists() and card:
            model = build()
            try:
                fill(model, weights, card["sha256"])
                return model.eval().to(how.device), card
            except click.ClickException as damage:
                click.echo(f"{damage.message} It is trained again.", err=True)
        model = build().to(how.device)
        settings = {"folder": folder, "seed": seed, "device": how.device, "label": label}
        with (
            training.session(**settings, report=how.report, minutes=how.minutes) as session,
            threads(how.threads or os.cpu_count() or 1),
        ):
            train(model)
        model.eval()
        card = facts | {
            "sha256": sha256_of(model),
            "images": session.images,
            "seconds": round(session.seconds, 3),
            "rows": session.rows,
            "capped": session.capped,
            "curve": thinned(session.curve),
            "threads": how.threads or os.cpu_count(),
            "torch": torch.__version__,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **finish(model),
        }
        if not session.capped:  # a capped training is used, and goes on from its checkpoint the next time
            with whole(weights) as part:
                save_file(tensors_of(model), part)
            write_json(folder / "card.json", card)
            for path in folder.glob("loop-*.safetensors"):
                path.unlink()
    return model, card


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
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors_of(model).items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


def read_card(folder: Path) -> dict:
    try:
        card = json.loads((folder / "card.json").read_text())
        return card if isinstance(card, dict) and "sha256" in card else {}
    except (OSError, ValueError):
        return {}


def fill(model: nn.Module, path: Path, sha256: str | None = None) -> None:
    """Load tensors into a model; one sentence if the file is torn, of another network, or not what its card
    says.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise click.ClickException(f"{path} is not a whole safetensors file ({error}).") from None
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


def same_shape(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and a.shape == b.shape


@lru_cache(maxsize=4)
def shared(spec: str, data_name: str, seed: int, images: int | None, device: str) -> tuple[Denoiser, dict]:
    """`denoiser_of` for a worker that asks again and again; trains nothing that is not trained yet without
    telling anybody.
    """
    from bench.data import load

    return denoiser_of(spec, load(data_name), seed, images, How(device))
