"""Feature extractors: what FID, IS, KID, precision and recall see of a sample.

A metric's column carries its extractor's name, and its protocol the extractor's sha256. To add one, write a
builder `(data, device) -> Extractor` and name it in `BUILDERS`.
"""

import hashlib
import math
from collections.abc import Callable
from functools import partial

import click
import torch
from torch import Tensor

from bench.data import Data
from bench.metrics import weights
from bench.metrics.computed import ROWS, cached
from bench.metrics.extractor import Extractor
from bench.metrics.pretrained import PRETRAINED

CLASSIFIERS = ("digits", "mnist", "fashion-mnist")
WIDEST = 256  # dimensions up to which `pixels` are the coordinates themselves
DIRECTIONS = 64
WIDE = 4096  # dimensions from which on principal directions are found by iteration


def extractor(name: str, data: Data, device: str = "cpu") -> Extractor:
    """The extractor of that name for these data; `click.ClickException` if none is, or it does not fit."""
    if name not in BUILDERS:
        raise click.ClickException(f'There is no extractor "{name}"; choose from {", ".join(BUILDERS)}.')
    return BUILDERS[name](data, torch.device(device))


def default_extractor(data: Data) -> str:
    """The name of the extractor that measures these data unless another is asked for."""
    if data.exact is not None or data.kind == "vector":
        return "pixels"
    if classifier := _classifier_of(data):
        return classifier
    if _are_colour(data):
        weights.path_of("inception")  # says what is missing
        return "inception"
    raise click.ClickException(
        f"No extractor was made for images such as those of {data.name}; ask for the extractor pixels, which "
        f"compares their {DIRECTIONS} leading principal directions."
    )


def register() -> None:
    """Make `digits` known to torch-fidelity as `taxobench-digits`, for (N, 1, 8, 8) uint8 levels 0..16."""
    from torch_fidelity import register_feature_extractor
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    from bench.metrics.classifiers import RECIPES, load

    class DigitsFeatures(FeatureExtractorBase):
        """The digits classifier behind torch-fidelity's interface."""

        def __init__(self, name: str, features_list: list[str], **_: object) -> None:
            super().__init__(name, features_list)
            self.net, _ = load("digits")

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return "features", "logits"

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "logits" if metric == "isc" else "features"

        @staticmethod
        def can_be_compiled() -> bool:
            return True

        @staticmethod
        def get_dummy_input_for_compile() -> Tensor:
            return torch.zeros(4, 1, 8, 8, dtype=torch.uint8)

        def forward(self, stored: Tensor) -> tuple[Tensor, ...]:
            features, logits = self.net(stored.float() * (2 / (RECIPES["digits"].levels - 1)) - 1)
            found = {"features": features, "logits": logits}
            return tuple(found[name] for name in self.features_list)

    if "taxobench-digits" not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor("taxobench-digits", DigitsFeatures)


def _classifier(name: str, data: Data, device: torch.device) -> Extractor:
    """A shipped classifier of small grey images: 64 features, 10 logits."""
    from bench.metrics.classifiers import FEATURES, RECIPES, load

    side, levels = RECIPES[name].side, RECIPES[name].levels
    if (tuple(data.shape), data.levels) != ((1, side, side), levels):
        raise click.ClickException(
            f"The extractor {name} sees {side} x {side} images of {levels} levels, which {data.name} is not."
        )
    net, sha256 = load(name)
    net = net.to(device)

    def compute(stored: Tensor) -> dict[str, Tensor]:
        features, logits = net(data.scale(stored).to(device))
        return {"features": features, "logits": logits}

    return Extractor(name, sha256, FEATURES, compute, classes=10)


def _pixels(data: Data, device: torch.device) -> Extractor:
    """The coordinates themselves, or their projection on the leading principal directions of the training
    set.
    """
    dims = math.prod(data.shape)
    if dims <= WIDEST:
        sha256 = hashlib.sha256(f"pixels {dims}".encode()).hexdigest()
        return Extractor("pixels", sha256, dims, lambda x: {"features": data.scale(x).flatten(1).to(device)})
    parts = (data.fingerprint, str(ROWS), str(DIRECTIONS))
    directions = cached("directions", parts, lambda: {"directions": _principal(data)})["directions"].to(
        device
    )

    def compute(stored: Tensor) -> dict[str, Tensor]:
        return {"features": data.scale(stored).flatten(1).to(device) @ directions}

    sha256 = hashlib.sha256("\n".join(("pixels", *parts)).encode()).hexdigest()
    return Extractor("pixels", sha256, DIRECTIONS, compute, directions=directions)


def _principal(data: Data) -> Tensor:
    """(D, DIRECTIONS) leading eigenvectors of the covariance of the first ROWS training samples."""
    rows = data.scale(data.train[:ROWS]).flatten(1)
    if rows.shape[1] > WIDE:  # where the covariance itself would take gigabytes, and minutes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return torch.pca_lowrank(rows, 2 * DIRECTIONS, niter=8)[2][:, :DIRECTIONS].contiguous()
    rows = rows.double()
    return torch.linalg.eigh(rows.T.cov()).eigenvectors[:, -DIRECTIONS:].flip(1).float()


def _classifier_of(data: Data) -> str | None:
    """The shipped classifier that was made for these data: by its name, and digits by their form."""
    if tuple(data.shape) == (1, 8, 8) and data.levels == 17:
        return "digits"
    return data.name if data.name in CLASSIFIERS else None


def _are_colour(data: Data) -> bool:
    return len(data.shape) == 3 and data.shape[0] == 3 and data.levels == 256


BUILDERS: dict[str, Callable[[Data, torch.device], Extractor]] = {
    **{name: partial(_classifier, name) for name in CLASSIFIERS},
    "pixels": _pixels,
    **{name: partial(build, name) for name, build in PRETRAINED.items()},
}
