"""The models that methods share or need, trained on first use or loaded, and cached by content.

A base is named by a recipe ("denoiser"), a checkpoint folder of ours, a pipeline of diffusers, or
`module.py:make` for a stranger's own network: see `specs`. What a method itself trains is kept the same way.
A model is its tensors: a safetensors file, loaded into what the code builds, and a JSON card.
"""

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import click
import torch
from torch import nn

from bench.cache import key_of
from bench.data import Data
from bench.diffusion import guidance, training
from bench.diffusion.adapters import simple_loss, untrained_ddpm
from bench.diffusion.adversarial import fit_sampler
from bench.diffusion.cld import AugmentedDenoiser, hybrid_loss
from bench.diffusion.denoiser import Denoiser, untrained
from bench.diffusion.generators import VAE, Sampler
from bench.diffusion.latents import Autoencoder
from bench.diffusion.networks import MLP, image_net
from bench.diffusion.schedule import EDM
from bench.diffusion.training import denoising_loss
from bench.models import classes, specs
from bench.models.checkpoints import architecture, loaded, shipped
from bench.models.kept import How, fill, home, lies, prepared, read_card, sha256_of, sound

IMAGES = {8: 400_000, 28: 600_000, 32: 10_000_000}  # training budget by resolution, in images seen


@dataclass(frozen=True)
class Recipe:
    """How a shared model is made: built from data and a seed, trained within a share of the data's training
    budget.
    """

    build: Callable[[Data, int], nn.Module]
    train: Callable[[nn.Module, Data, int], None]
    finish: Callable[[nn.Module, Data], dict] = lambda model, data: {}  # what its card says besides
    share: float = 1.0
    version: int = 1  # raised when what it trains changes


def default_images(data: Data) -> int:
    """The training budget of a data set's shared networks, in images seen."""
    resolution = max(data.shape[1:]) if data.kind == "image" else 0
    return next((images for size, images in IMAGES.items() if resolution <= size), max(IMAGES.values()))


def base_of(
    spec: str, data: Data, seed: int = 0, images: int | None = None, how: How = How()
) -> tuple[nn.Module, dict]:
    """The shared model that `spec` names, as `specs` has it, and its card: at least `sha256`, `images`,
    `seconds`. Under guidance both are those of the guided model.
    """
    asked = specs.parsed(spec, RECIPES)
    if asked.classifier:
        return classifier_guided(asked, data, seed, images, how)
    model, card = unguided(asked, data, seed, images, how)
    if asked.guidance is None:
        return model, card
    net = model.net.net if isinstance(model, Denoiser) else None
    if getattr(model, "shares", None) is None or not getattr(net, "unlabelled", False):
        raise click.BadParameter(
            f"{asked.place} has no labels or knows nothing without them, and cannot be guided; "
            "give conditional:guidance=..., or guided:scale=..., which asks a classifier."
        )
    model = model.under(model.schedule)
    model.guidance = asked.guidance
    return model, derived(card, {"guidance": asked.guidance})


def unguided(
    asked: specs.Spec, data: Data, seed: int, images: int | None, how: How
) -> tuple[nn.Module, dict]:
    """The model that stands at a spec's place, or that its recipe trains."""
    if asked.kind == "diffusers":
        from bench.models.pipelines import opened

        return opened(asked.place, data, how)
    if asked.kind == "python":
        return strangers(asked.place, data, how)
    if asked.kind == "folder":
        return loaded(Path(asked.place), data, how)
    name = asked.place
    if known_exactly(name, data):
        identity = data.fingerprint[:16] if name == "denoiser" else key_of([data.fingerprint, name])
        return EXACT[name](data, how), {"sha256": f"exact:{identity}", "images": 0, "seconds": 0.0}
    recipe, facts = RECIPES[name], facts_of(asked, data, seed, images)
    if folder := shipped(data, facts):
        model = seeded_build(recipe, data, seed)
        card = read_card(folder)
        fill(model, folder / "model.safetensors", card["sha256"])
        return model.eval().to(how.device), card
    return prepared(
        kept_name(name, data),
        facts,
        lambda: seeded_build(recipe, data, seed),
        lambda model: recipe.train(model, data, facts["images"]),
        seed=seed,
        how=how,
        label=f"training the {name} of {data.name}",
        finish=lambda model: {"data_name": data.name, **recipe.finish(model, data)},
    )


def identity(spec: str, data: Data, seed: int = 0, how: How = How()) -> str:
    """The sha256 of the model that `base_of` gives. One that a recipe trained before is held against its card
    and not built, which takes longer.
    """
    asked = specs.parsed(spec, RECIPES)
    trained = asked.kind == "recipe" and not asked.steered and not known_exactly(asked.place, data)
    if trained and (found := sound(folder_of(asked, data, seed))):
        return found
    return base_of(spec, data, seed, None, how)[1]["sha256"]


def untrained_images(spec: str, data: Data, seed: int = 0) -> int:
    """The images on which must still be trained before `base_of` can give the model, 0 if none."""
    asked = specs.parsed(spec, RECIPES)
    models = [asked.of("denoiser"), asked.of("classifier")] if asked.classifier else [asked]
    recipes = [one for one in models if one.kind == "recipe" and not known_exactly(one.place, data)]
    missing = [one for one in recipes if not lies(folder_of(one, data, seed))]
    return sum(facts_of(one, data, seed, None)["images"] for one in missing)


def folder_of(asked: specs.Spec, data: Data, seed: int) -> Path:
    """Where the model that a recipe trains lies, or will lie."""
    facts = facts_of(asked, data, seed, None)
    return shipped(data, facts) or home(kept_name(asked.place, data), facts)


def known_exactly(name: str, data: Data) -> bool:
    return name in EXACT and data.exact is not None


def facts_of(asked: specs.Spec, data: Data, seed: int, images: int | None) -> dict:
    """What determines the model that a recipe trains."""
    recipe = RECIPES[asked.place]
    return {
        "recipe": asked.place,
        "version": recipe.version,
        "data": data.fingerprint,
        "images": asked.images or images or round(recipe.share * default_images(data)),
        "seed": seed,
    }


def kept_name(recipe: str, data: Data) -> str:
    return f"{recipe}-{key_of(data.name, 4) if ':' in data.name else data.name}"


def classifier_guided(
    asked: specs.Spec, data: Data, seed: int, images: int | None, how: How
) -> tuple[Denoiser, dict]:
    """The denoiser under the guidance of the classifier, both trained in their own budgets."""
    denoiser, card = unguided(asked.of("denoiser"), data, seed, images, how)
    classifier, other = unguided(asked.of("classifier"), data, seed, images, how)
    facts = {"classifier": other["sha256"], "scale": asked.scale}
    return guidance.guided(denoiser, classifier, asked.scale), derived(card, facts)


def derived(card: dict, facts: dict) -> dict:
    """The card of a model that differs from the card's by these facts: another identity, the same cost."""
    kept, colon, _ = card["sha256"].partition(":")
    identity = key_of([card["sha256"], facts], 16 if colon else 64)
    return card | facts | {"sha256": f"{kept}:{identity}" if colon else identity}


def seeded_build(recipe: Recipe, data: Data, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return recipe.build(data, seed)


def new_denoiser(data: Data, seed: int = 0, widths=None) -> Denoiser:
    """The untrained denoiser of a data set: EDM's F form, the training set's sigma_data, all half log-SNRs
    in KNOWN.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return untrained(data, widths=widths)


def exact_denoiser(data: Data, how: How = How()) -> Denoiser:
    """The denoiser of a distribution that is known: no network, no error of its own."""
    from bench.diffusion.exact import ExactNetwork

    mixture = copy.deepcopy(data.exact)  # the data's own stays in float64
    net = ExactNetwork(mixture, data.shape, data.sigma_data).float()
    return Denoiser(net, EDM(), data.shape, "x0", data.sigma_data).to(how.device)


def train_denoiser(model: Denoiser, data: Data, images: int) -> None:
    training.fit(
        lambda x0, generator: denoising_loss(model, x0, generator), model, data, images, batch=128, lr=2e-3
    )


def new_ddpm(data: Data, seed: int = 0) -> Denoiser:
    """The untrained model of DDPM itself: eps at whole steps, in diffusers' terms."""
    if data.kind != "image":
        raise click.ClickException(f"ddpm is for images, and {data.name} is {data.kind} data; give denoiser.")
    return untrained_ddpm(data.shape, levels=data.levels)


def train_ddpm(model: Denoiser, data: Data, images: int) -> None:
    loss = lambda x0, generator: simple_loss(model, x0, generator)
    training.fit(loss, model, data, images, batch=128, lr=2e-3)


def new_cld(data: Data, seed: int = 0) -> AugmentedDenoiser:
    """The untrained velocity-augmented denoiser of a data set; of a known distribution the exact one."""
    if data.exact is not None:
        return AugmentedDenoiser(exact_denoiser(data).net, data.shape, "x0", data.sigma_data)
    doubled = (2 * data.shape[0], *data.shape[1:])
    net = (
        image_net(doubled, channels=data.shape[0])
        if data.kind == "image"
        else MLP(2 * data.dim, out=data.dim)
    )
    return AugmentedDenoiser(net, data.shape, "eps_v", data.sigma_data)


def train_cld(model: AugmentedDenoiser, data: Data, images: int) -> None:
    if data.exact is None:
        loss = lambda x0, generator: hybrid_loss(model, x0, generator)
        training.fit(loss, model, data, images, batch=128, lr=2e-3)


def train_vae(model: VAE, data: Data, images: int) -> None:
    training.fit(model.loss, model, data, images, batch=64)


def train_autoencoder(model: Autoencoder, data: Data, images: int) -> None:
    training.fit(model.loss, model, data, images, batch=64, clip=10.0)
    model.standardise(data)


def new_gan(data: Data, seed: int) -> Sampler:
    """The untrained generator of a data set; data with levels lie between -1 and 1, and so do its samples."""
    return Sampler(data.shape, bounded=data.levels is not None)


def train_gan(model: Sampler, data: Data, images: int) -> None:
    fit_sampler(model, data, images)


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


def described(model: Denoiser, data: Data) -> dict:
    """For the card of a denoiser: what its network is, and how much better it knows what it has seen."""
    return {"architecture": architecture(model), **overfitting(model, data)}


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


RECIPES = {
    "denoiser": Recipe(new_denoiser, train_denoiser, described),
    "ddpm": Recipe(new_ddpm, train_ddpm, described),
    "conditional": Recipe(classes.new_conditional, classes.train_conditional, described),
    "classifier": Recipe(classes.new_classifier, classes.train_classifier, classes.accuracy, share=0.25),
    "cld": Recipe(new_cld, train_cld),
    "autoencoder": Recipe(lambda data, seed: Autoencoder(data.shape), train_autoencoder, share=0.5),
    "vae": Recipe(lambda data, seed: VAE(data.shape), train_vae, share=0.25),
    "gan": Recipe(new_gan, train_gan, share=0.5, version=2),
}
EXACT = {
    "denoiser": exact_denoiser,
    "conditional": classes.exact_conditional,
    "classifier": classes.exact_classifier,
}


@lru_cache(maxsize=8)
def shared(spec: str, data_name: str, seed: int, how: How) -> tuple[nn.Module, dict]:
    """`base_of` for a worker that asks again and again."""
    from bench.data import load

    return base_of(spec, load(data_name), seed, None, how)
