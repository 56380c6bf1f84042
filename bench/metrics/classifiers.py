"""The small classifiers whose features measure small grey images; `python -m bench.metrics.classifiers NAME`
trains one.

Digits and garments are too far from photographs for ImageNet's networks. These have smooth activations (so
that features respond to every small change of an image), 64 features and 10 logits. Each is trained on its
data's training images alone, with small random movements; its weights are an average over the last epochs.
"""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import torch
from torch import Tensor, nn
from torch.nn import functional as F

WEIGHTS = Path(__file__).parent / "weights"
COMMAND = "python -m bench.metrics.classifiers"
FEATURES = 64

Split = tuple[Tensor, Tensor, Tensor, Tensor]  # images in [-1, 1] and labels, of training and held out


@dataclass(frozen=True)
class Recipe:
    """What a classifier is of, its convolutions at each scale, and how it is trained."""

    side: int
    levels: int
    scales: tuple[tuple[int, ...], ...]
    split: Callable[[], Split]
    epochs: int
    batch: int = 64
    movement: float = 1.0  # of the random movements, in units of those of `jitter`
    flip: bool = False  # whether a mirrored image is as good
    average: float = 0.3  # share of the epochs over which the weights are averaged


class Classifier(nn.Module):
    """(N, 1, side, side) images in [-1, 1] to (N, FEATURES) features and (N, 10) logits."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 1
        for widths in recipe.scales:
            layers += [nn.AvgPool2d(2)] if layers else []
            for wider in widths:
                layers += [nn.Conv2d(width, wider, 3, padding=1), nn.SiLU()]
                width = wider
        side = recipe.side // 2 ** (len(recipe.scales) - 1)
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * side**2, FEATURES), nn.SiLU())
        self.head = nn.Linear(FEATURES, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x)
        return features, self.head(features)


def load(name: str) -> tuple[Classifier, str]:
    """The shipped classifier and its weights' sha256; ValueError if they are not those of their card."""
    from safetensors.torch import load as from_bytes

    path = WEIGHTS / f"{name}.safetensors"
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != json.loads(path.with_suffix(".json").read_text())["sha256"]:
        raise ValueError(
            f"{path} is not the file its card describes; reinstall it or run `{COMMAND} {name}`."
        )
    net = Classifier(RECIPES[name])
    net.load_state_dict({key: tensor.float() for key, tensor in from_bytes(content).items()})
    return net.eval().requires_grad_(False), sha256


def halves(name: str) -> Split:
    """A data set of bench.data, by its own halves."""
    from bench.data import load as load_data

    data = load_data(name)
    return data.scale(data.train), data.labels, data.scale(data.test), data.test_labels


RECIPES = {
    "digits": Recipe(8, 17, ((32, 32), (48,)), partial(halves, "digits"), 100),
    "mnist": Recipe(28, 256, ((16,), (32, 32), (48,)), partial(halves, "mnist"), 6, 128),
    "fashion-mnist": Recipe(
        28, 256, ((24,), (48, 48), (64,)), partial(halves, "fashion-mnist"), 14, 128, 0.4, flip=True
    ),
}


def jitter(images: Tensor, generator: torch.Generator, movement: float = 1.0, flip: bool = False) -> Tensor:
    """Each image rotated by up to 0.2 rad, scaled by up to 10 % and shifted by up to a tenth of its side,
    all times `movement`; half of them mirrored where `flip` says so.
    """
    angle, stretch, right, down = movement * (torch.rand(4, len(images), generator=generator) * 2 - 1)
    angle, stretch = 0.2 * angle, 1 + 0.1 * stretch
    cos, sin = stretch * angle.cos(), stretch * angle.sin()
    rows = torch.stack(
        [torch.stack([cos, -sin, 0.2 * right], -1), torch.stack([sin, cos, 0.2 * down], -1)], 1
    )
    if flip:
        rows[:, :, 0] *= torch.randint(2, (len(images), 1), generator=generator) * 2 - 1
    grid = F.affine_grid(rows, list(images.shape), align_corners=False)
    return F.grid_sample(images + 1, grid, align_corners=False) - 1  # outside lies paper, which is -1


def train(recipe: Recipe, seed: int = 0) -> tuple[Classifier, float]:
    """The trained classifier and its held-out accuracy; the same on every run with one thread."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    images, labels, held_out, held_out_labels = recipe.split()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Classifier(recipe)
    average = torch.optim.swa_utils.AveragedModel(net)
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
    for epoch in range(recipe.epochs):
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * 0.5 * (1 + math.cos(math.pi * epoch / recipe.epochs)) + 5e-5
        for index in torch.randperm(len(images), generator=generator).split(recipe.batch):
            _, logits = net(jitter(images[index], generator, recipe.movement, recipe.flip))
            loss = F.cross_entropy(logits, labels[index], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        if epoch >= (1 - recipe.average) * recipe.epochs:
            average.update_parameters(net)
    net = average.module.eval().requires_grad_(False)
    with torch.no_grad():
        right = [net(x)[1].argmax(1) == y for x, y in zip(held_out.split(1000), held_out_labels.split(1000))]
    return net, torch.cat(right).double().mean().item()


@click.command()
@click.argument("name", type=click.Choice(list(RECIPES)))
def main(name: str) -> None:
    """Train the classifier NAME, write weights and card, and say what it can do."""
    from safetensors.torch import save

    net, accuracy = train(RECIPES[name])
    content = save(net.state_dict())
    card = {
        "what": f"features ({FEATURES}) and logits (10) of the extractor `{name}`",
        "data": f"the training images of {name}",
        "held_out_accuracy": round(accuracy, 4),
        "parameters": sum(p.numel() for p in net.parameters()),
        "command": f"{COMMAND} {name}",
        "torch": torch.__version__,
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    WEIGHTS.mkdir(exist_ok=True)
    (WEIGHTS / f"{name}.safetensors").write_bytes(content)
    (WEIGHTS / f"{name}.json").write_text(json.dumps(card, indent=2) + "\n")
    click.echo(f"{100 * accuracy:.2f} % of the held-out images of {name} are right")


if __name__ == "__main__":
    main()
