"""The recipes of shared models: how each is built from data and a seed, and trained; and those that a known
distribution gives exactly.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import click
import torch
from torch import nn

from bench.data import Data
from bench.diffusion import training
from bench.diffusion.adapters import simple_loss, untrained_ddpm
from bench.diffusion.adversarial import fit_sampler
from bench.diffusion.cld import AugmentedDenoiser, hybrid_loss
from bench.diffusion.denoiser import Denoiser, untrained
from bench.diffusion.generators import VAE, Sampler
from bench.diffusion.latents import Autoencoder
from bench.diffusion.networks import MLP, image_net
from bench.diffusion.schedule import EDM
from bench.diffusion.training import batch_of, denoising_loss
from bench.models import classes
from bench.models.checkpoints import architecture
from bench.models.kept import How


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
    loss = lambda x0, generator: denoising_loss(model, x0, generator)
    training.fit(loss, model, data, images, batch=batch_of(images), lr=2e-3)


def new_ddpm(data: Data, seed: int = 0) -> Denoiser:
    """The untrained model of DDPM itself: eps at whole steps, in diffusers' terms."""
    if data.kind != "image":
        raise click.ClickException(f"ddpm is for images, and {data.name} is {data.kind} data; give denoiser.")
    return untrained_ddpm(data.shape, levels=data.levels)


def train_ddpm(model: Denoiser, data: Data, images: int) -> None:
    loss = lambda x0, generator: simple_loss(model, x0, generator)
    training.fit(loss, model, data, images, batch=batch_of(images), lr=2e-3)


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
        training.fit(loss, model, data, images, batch=batch_of(images), lr=2e-3)


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
