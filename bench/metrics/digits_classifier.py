"""The classifier whose features measure scikit-learn's digits; `python -m bench.metrics.digits_classifier`
trains it.

8 x 8 digits are too small for ImageNet's networks. This one has 73 thousand weights, 64 features with smooth
activations (so that they respond to every small change of an image) and 10 logits. It is trained on the
training images alone, with small random rotations, scalings and shifts; its weights are an average over the
last epochs.
"""

import hashlib
import json
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WEIGHTS = Path(__file__).parent / "weights" / "digits.safetensors"
COMMAND = "python -m bench.metrics.digits_classifier"
LEVELS = 17
TRAIN = 1437  # of 1,797 images; the others are held out


class DigitsClassifier(nn.Module):
    """(N, 1, 8, 8) images in [-1, 1] to (N, 64) features and (N, 10) logits."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.SiLU(),
            nn.AvgPool2d(2),
            nn.Conv2d(32, 48, 3, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(48 * 4 * 4, 64),
            nn.SiLU(),
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x)
        return features, self.head(features)


def load() -> tuple[DigitsClassifier, str]:
    """The shipped classifier and its weights' sha256; ValueError if they are not those of their card."""
    from safetensors.torch import load as from_bytes

    content = WEIGHTS.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != json.loads(WEIGHTS.with_suffix(".json").read_text())["sha256"]:
        raise ValueError(f"{WEIGHTS} is not the file its card describes; reinstall it or run `{COMMAND}`.")
    net = DigitsClassifier()
    net.load_state_dict(from_bytes(content))
    return net.eval().requires_grad_(False), sha256


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images (1437, 1, 8, 8) in [-1, 1] and their labels, then the 360 held-out ones and theirs."""
    import numpy as np
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.images))
    images = torch.from_numpy(bunch.images[order]).float()[:, None] * (2 / (LEVELS - 1)) - 1
    labels = torch.from_numpy(bunch.target[order])
    return images[:TRAIN], labels[:TRAIN], images[TRAIN:], labels[TRAIN:]


def jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image rotated by up to 0.2 rad, scaled by up to 10 % and shifted by up to 0.8 pixels."""
    angle, stretch, right, down = torch.rand(4, len(images), generator=generator) * 2 - 1
    angle, stretch = 0.2 * angle, 1 + 0.1 * stretch
    cos, sin = stretch * angle.cos(), stretch * angle.sin()
    rows = torch.stack(
        [torch.stack([cos, -sin, 0.2 * right], -1), torch.stack([sin, cos, 0.2 * down], -1)], 1
    )
    grid = F.affine_grid(rows, list(images.shape), align_corners=False)
    return F.grid_sample(images + 1, grid, align_corners=False) - 1  # outside lies paper, which is -1


def train(epochs: int = 100, batch: int = 64, seed: int = 0) -> tuple[DigitsClassifier, float]:
    """The trained classifier and its held-out accuracy; the same on every run with one thread."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    images, labels, held_out, held_out_labels = digits()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = DigitsClassifier()
    average = torch.optim.swa_utils.AveragedModel(net)
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
    for epoch in range(epochs):
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * 0.5 * (1 + math.cos(math.pi * epoch / epochs)) + 5e-5
        for index in torch.randperm(len(images), generator=generator).split(batch):
            _, logits = net(jitter(images[index], generator))
            loss = F.cross_entropy(logits, labels[index], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        if epoch >= 0.7 * epochs:
            average.update_parameters(net)
    net = average.module.eval().requires_grad_(False)
    return net, (net(held_out)[1].argmax(1) == held_out_labels).double().mean().item()


def main() -> None:
    """Train, write weights and card, and say what the classifier can do."""
    from safetensors.torch import save

    net, accuracy = train()
    content = save(net.state_dict())
    card = {
        "what": "features (64) and logits (10) for 8 x 8 digits, the extractor `digits`",
        "data": "scikit-learn's digits, the first 1,437 of numpy.random.default_rng(0).permutation(1797)",
        "held_out_accuracy": round(accuracy, 4),
        "parameters": sum(p.numel() for p in net.parameters()),
        "command": COMMAND,
        "torch": torch.__version__,
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    WEIGHTS.parent.mkdir(exist_ok=True)
    WEIGHTS.write_bytes(content)
    WEIGHTS.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")
    print(f"{100 * accuracy:.2f} % of the held-out digits are right; wrote {WEIGHTS}")


if __name__ == "__main__":
    main()
