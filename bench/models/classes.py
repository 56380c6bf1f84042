"""The shared models that know classes: a denoiser that is told one, a classifier of noisy data, and both
without error where the data is a mixture, whose classes are its components.
"""

import copy

import click
import torch

from bench.data import Data
from bench.diffusion import guidance, training
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.exact import GaussianMixture
from bench.diffusion.networks import image_net
from bench.diffusion.schedule import EDM
from bench.models.checkpoints import shares_of
from bench.models.kept import How


def new_conditional(data: Data, seed: int = 0) -> Denoiser:
    """The untrained denoiser of a data set, as the recipe `denoiser`, that is told the class or none."""
    shares = shares_of(data)
    if data.kind != "image":
        raise click.ClickException(
            f"conditional is for images and mixtures; {data.name} is {data.kind} data."
        )
    model = Denoiser(image_net(data.shape, classes=len(shares)), EDM(), data.shape, "F", data.sigma_data)
    model.levels, model.shares = data.levels, shares
    return model


def train_conditional(model: Denoiser, data: Data, images: int) -> None:
    loss = lambda x0, generator, labels: guidance.labelled_loss(model, x0, generator, labels)
    training.fit(loss, model, data, images, batch=training.batch_of(images), lr=2e-3, labels=data.labels)


def new_classifier(data: Data, seed: int = 0) -> guidance.Classifier:
    """The untrained classifier of a data set's classes, at every noise level."""
    return guidance.untrained_classifier(data, shares_of(data))


def train_classifier(model: guidance.Classifier, data: Data, images: int) -> None:
    loss = lambda x0, generator, labels: guidance.classifying_loss(model, x0, generator, labels)
    training.fit(loss, model, data, images, batch=128, lr=2e-3, labels=data.labels)


def accuracy(model: guidance.Classifier, data: Data) -> dict[str, float]:
    """The share of held-out rows that a classifier has right without noise."""
    if data.test_labels is None:
        return {}
    weight = next(model.parameters())
    x0, labels = data.scale(data.test[:1000]).to(weight), data.test_labels[:1000].to(weight.device)
    lam = torch.full((len(x0),), guidance.KNOWN[1]).to(weight)
    x_in = x0 / (model.sigma_data**2 + torch.exp(-2 * lam[0])).sqrt()
    with torch.no_grad():
        return {"held_out_accuracy": float((model.log_prob(x_in, lam).argmax(1) == labels).float().mean())}


def exact_conditional(data: Data, how: How = How()) -> Denoiser:
    """The denoiser of a mixture that is told the component, or none."""
    net = guidance.Components(mixture_of(data), data.shape, data.sigma_data)
    model = Denoiser(net, EDM(), data.shape, "x0", data.sigma_data)
    model.shares = shares_of(data)
    return model.to(how.device)


def exact_classifier(data: Data, how: How = How()) -> guidance.Classifier:
    """The classifier of a mixture's components."""
    net = guidance.ComponentClassifier(mixture_of(data), data.shape, data.sigma_data)
    return guidance.Classifier(net, data.sigma_data, shares_of(data)).to(how.device)


def mixture_of(data: Data) -> GaussianMixture:
    """A mixture's own copy in float32; ClickException where the data is none."""
    if not isinstance(data.exact, GaussianMixture):
        raise click.ClickException(f"{data.name} is not a mixture, and has no classes.")
    return copy.deepcopy(data.exact).float()
