"""Denoisers of ours in folders: model.safetensors, and card.json, whose `architecture` says what to build."""

import re
from pathlib import Path

import click
import torch
from torch import Tensor

from bench.cache import write_json
from bench.data import Data
from bench.diffusion.adapters import Discrete
from bench.diffusion.denoiser import Denoiser, untrained
from bench.diffusion.networks import MLP, UNet, unet2d
from bench.diffusion.schedule import EDM, ddpm_table
from bench.models.kept import How, contents, fill_with, read_card, sha256_of, tensors_of

SHIPPED = Path(__file__).parents[1] / "shipped"  # NAME OF THE DATA/{model.safetensors, card.json}
MOST = 100_000  # classes


def architecture(model: Denoiser) -> dict:
    """What `rebuilt` needs to build a denoiser with these tensors' names and shapes; {} for networks that are
    not the project's.
    """
    net = model.net.net
    facts = {
        "shape": list(model.shape),
        "form": model.form,
        "sigma_data": model.sigma_data,
        "known": list(model.known),
    }
    if isinstance(net, MLP):
        return facts | {"network": "mlp", "width": net.width, "blocks": len(net.blocks)}
    if not isinstance(net, UNet | Discrete):
        return {}
    config = net.unet.config
    facts |= {
        "network": "unet" if isinstance(net, UNet) else "ddpm",
        "widths": list(config.block_out_channels),
        "layers": config.layers_per_block,
        "classes": net.classes,
        "channels": config.out_channels,
    }
    return facts


def rebuilt(facts: dict) -> Denoiser:
    """The untrained denoiser that an `architecture` states; KeyError or ValueError where it states none."""
    shape, schedule = tuple(facts["shape"]), EDM()
    if facts["network"] == "mlp":
        net = MLP(shape[0], facts["width"], facts["blocks"])
    elif facts["network"] in ("unet", "ddpm"):
        sizes = shape, tuple(facts["widths"]), facts["layers"], facts["classes"], facts["channels"]
        if facts["network"] == "unet":
            net = UNet(*sizes)
        else:
            schedule = ddpm_table()
            net = Discrete(unet2d(*sizes), schedule, facts["classes"])
    else:
        raise ValueError(f"no network is called {facts['network']!r}")
    return Denoiser(net, schedule, shape, facts["form"], facts["sigma_data"], tuple(facts["known"]))


def loaded(folder: Path, data: Data, how: How) -> tuple[Denoiser, dict]:
    """A denoiser of ours from its folder, and its card; ClickException where it is none of `data`."""
    card = read_card(folder)
    if not card and ((folder / "model_index.json").exists() or (folder / "unet").is_dir()):
        raise click.ClickException(
            f"{folder} holds no card.json but a pipeline of diffusers; give diffusers:{folder}."
        )
    if not card:
        raise click.ClickException(
            f"{folder} holds no card.json, which says what its network is; train it anew."
        )
    weights = folder / "model.safetensors"
    tensors = contents(weights)
    try:
        bare = card.get("recipe") == "denoiser" and "architecture" not in card  # an old card
        model = untrained(data) if bare else rebuilt(modest(card["architecture"], tensors))
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError, ArithmeticError) as error:
        what = card.get("recipe") or card.get("method") or "network"
        raise click.ClickException(
            f"{folder} holds a {what} whose card does not state a denoiser ({error}); give the folder of a "
            "denoiser, a conditional or a ddpm."
        ) from None
    suited(model.shape, data, str(folder))
    fill_with(tensors, model, weights, card["sha256"])
    return of_data(model, data, str(folder)).eval().to(how.device), card


def modest(facts: dict, tensors: dict[str, Tensor]) -> dict:
    """The architecture, if its sizes can be those of the weights; ValueError where they cannot: a card could
    ask for a network that fills the memory, long before its weights are held against it.
    """
    widest = max((size for tensor in tensors.values() for size in tensor.shape), default=0)
    wide = [facts.get(name, 0) for name in ("width", "classes", "channels")]
    deep = max(facts.get("layers", 0), facts.get("blocks", 0))
    if max(facts["shape"][0], *facts.get("widths", ()), *wide) > widest or deep > len(tensors):
        raise ValueError("its weights are not of such sizes")
    return facts


def of_data(model: Denoiser, data: Data, place: str) -> Denoiser:
    """The denoiser with what it must know of the data: its levels, and the shares of its classes."""
    model.levels = data.levels
    if classes := getattr(model.net.net, "classes", 0):
        model.shares = torch.full((classes,), 1 / classes) if data.labels is None else shares_of(data)
        if len(model.shares) != classes:
            raise click.ClickException(
                f"{place} knows {classes} classes, and {data.name} has {len(model.shares)}."
            )
    return model


def shares_of(data: Data) -> Tensor:
    """(K,): how much of the training rows is of each class; ClickException where the data has no labels."""
    if hasattr(data.exact, "weights"):
        return data.exact.weights.float()  # a mixture's classes are its components
    if data.labels is None:
        raise click.ClickException(f"{data.name} has no labels, which a base with classes needs.")
    lowest, highest = int(data.labels.min()), int(data.labels.max())
    if lowest < 0 or highest >= MOST:
        raise click.ClickException(
            f"{data.name} has labels from {lowest} to {highest}; a base with classes needs them from 0 to at "
            f"most {MOST - 1}."
        )
    counts = torch.bincount(data.labels)
    return counts / counts.sum()


def suited(shape: tuple[int, ...], data: Data, place: str) -> None:
    if tuple(shape) != tuple(data.shape):
        raise click.ClickException(
            f"{place} is a network for shape {tuple(shape)}, and {data.name} has {tuple(data.shape)}."
        )


def saved(model: Denoiser, card: dict, folder: Path) -> None:
    """Write a denoiser of ours as `loaded` reads it."""
    from safetensors.torch import save_file

    facts = architecture(model)
    if not facts:
        raise click.ClickException("only the project's own denoisers are written as its folders.")
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors_of(model), folder / "model.safetensors")
    write_json(folder / "card.json", card | {"sha256": sha256_of(model), "architecture": facts})


def shipped(data: Data, facts: dict) -> Path | None:
    """The folder that came with the package and holds what these facts of a training ask for, if there is."""
    return SHIPPED / data.name if facts.items() <= shipped_card(data).items() else None


def shipped_images(data: Data, facts: dict) -> int | None:
    """The budget of the model that came with the package and agrees with all other facts of a training."""
    card = shipped_card(data)
    return card["images"] if facts.items() <= card.items() else None


def shipped_card(data: Data) -> dict:
    """The card of the model that came with the package for these data, {} if none did; its `images` are those
    asked for, of which whole batches were seen.
    """
    card = read_card(SHIPPED / data.name) if re.fullmatch(r"[\w-]+", data.name) else {}
    return card | {"images": card.get("budget", card.get("images"))} if card else {}
