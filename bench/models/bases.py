"""The models that methods share or need, trained on first use or loaded, and cached by content.

A base is named by a recipe ("denoiser"), a checkpoint folder of ours, a pipeline of diffusers, or
`module.py:make` for a stranger's own network: see `specs`. What a method itself trains is kept the same way.
A model is its tensors: a safetensors file, loaded into what the code builds, and a JSON card.
"""

import importlib.util
from functools import lru_cache
from pathlib import Path

import click
from torch import nn

from bench.cache import key_of
from bench.data import Data
from bench.diffusion import guidance
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.schedule import EDM
from bench.models import specs
from bench.models.checkpoints import loaded, shares_of, shipped, shipped_images, suited
from bench.models.kept import How, fill, home, lies, prepared, read_card, sha256_of, sound
from bench.models.recipes import EXACT, RECIPES, seeded_build

IMAGES = {8: 400_000, 28: 600_000, 32: 10_000_000}  # training budget by resolution, in images seen


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
        raise specs.unguidable(asked.place)
    model = model.under(model.schedule)
    model.guidance = asked.guidance
    return model, derived(card, {"guidance": asked.guidance})


def unguided(
    asked: specs.Spec, data: Data, seed: int, images: int | None, how: How
) -> tuple[nn.Module, dict]:
    """The model that stands at a spec's place, or that its recipe trains."""
    if asked.kind == "diffusers":
        from bench.models.pipelines import opened

        return opened(asked.place, data, how, bool(asked.clip))
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
    """What determines the model that a recipe trains. Where none is asked for, the budget is that of the
    model which came with the package, if one did.
    """
    recipe = RECIPES[asked.place]
    facts = {"recipe": asked.place, "version": recipe.version, "data": data.fingerprint, "seed": seed}
    budget = asked.images or images or shipped_images(data, facts)
    return facts | {"images": budget or round(recipe.share * default_images(data))}


def kept_name(recipe: str, data: Data) -> str:
    return f"{recipe}-{key_of(data.name, 4) if ':' in data.name else data.name}"


def classifier_guided(
    asked: specs.Spec, data: Data, seed: int, images: int | None, how: How
) -> tuple[Denoiser, dict]:
    """The denoiser under the guidance of the classifier, both trained in their own budgets."""
    shares_of(data)  # or training would come before the refusal
    denoiser, card = unguided(asked.of("denoiser"), data, seed, images, how)
    classifier, other = unguided(asked.of("classifier"), data, seed, images, how)
    facts = {"classifier": other["sha256"], "scale": asked.scale}
    return guidance.guided(denoiser, classifier, asked.scale), derived(card, facts)


def derived(card: dict, facts: dict) -> dict:
    """The card of a model that differs from the card's by these facts: another identity, the same cost."""
    kept, colon, _ = card["sha256"].partition(":")
    identity = key_of([card["sha256"], facts], 16 if colon else 64)
    return card | facts | {"sha256": f"{kept}:{identity}" if colon else identity}


def strangers(spec: str, data: Data, how: How) -> tuple[Denoiser, dict]:
    """`module.py:make`: make(data) returns a Denoiser, or a net(x_in, lam) in EDM's F form. Runs that file's
    code.
    """
    file, _, name = spec.partition(":")
    name = name or "make"
    path = Path(file)
    if not path.is_file():
        raise click.BadParameter(f"there is no file {file} to take the network from.")
    module_spec = importlib.util.spec_from_file_location(f"taxobench_base_{path.stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise click.ClickException(f"{file} cannot be imported: {in_words(error)}.") from error
    make = getattr(module, name, None)
    if not callable(make):
        raise click.BadParameter(f"{file} has no function {name}(data).")
    try:
        model = make(data)
    except Exception as error:
        raise click.ClickException(f"{name}(data) in {file} failed: {in_words(error)}.") from error
    if not isinstance(model, nn.Module):
        raise click.ClickException(
            f"{name}(data) in {file} returned {type(model).__name__}; it returns a Denoiser or a network, "
            "which is a torch.nn.Module."
        )
    if not isinstance(model, Denoiser):
        model = Denoiser(model, EDM(), data.shape, "F", data.sigma_data)
    suited(model.shape, data, spec)
    model.levels = data.levels
    model.eval().to(how.device)
    return model, {"sha256": sha256_of(model), "images": 0, "seconds": 0.0}


def in_words(error: Exception) -> str:
    """An error's kind and text on one line, without a full stop."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(".: ")


@lru_cache(maxsize=8)
def shared(spec: str, data_name: str, seed: int, how: How) -> tuple[nn.Module, dict]:
    """`base_of` for a worker that asks again and again."""
    from bench.data import load

    return base_of(spec, load(data_name), seed, None, how)
