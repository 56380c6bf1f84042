"""The files of the pretrained networks behind the extractors: where they lie, how they come here, and whether
they are what they should be.

Nothing in them is unpickled but tensors (`torch.load` with weights_only, or TorchScript of a known sha256).
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import click

from bench.cache import cache_dir, sha256_of, whole

CLIP = "https://openaipublic.azureedge.net/clip/models"
DINOV2 = "https://dl.fbaipublicfiles.com/dinov2"
SECONDS, PIECE = 60, 1 << 20  # without an answer; bytes read at once


@dataclass(frozen=True)
class Weights:
    """A file that somebody publishes, and its sha256."""

    url: str
    sha256: str

    @property
    def file(self) -> str:
        return self.url.rpartition("/")[2]


# OpenAI's addresses hold the sums of CLIP. pytorch-fid says how Inception's begins and Meta nothing of
# DINOv2's: the rest is what others who use the same files (refiners, GenForce, Git LFS) say of them alike.
WEIGHTS = {
    "inception": Weights(
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
        "pt_inception-2015-12-05-6726825d.pth",
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    ),
    **{
        f"dinov2-vit-{size}-14": Weights(
            f"{DINOV2}/dinov2_vit{size}14/dinov2_vit{size}14_pretrain.pth", sha256
        )
        for size, sha256 in (
            ("s", "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9"),
            ("b", "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73"),
            ("l", "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428"),
        )
    },
    **{
        f"clip-vit-{size.lower()}": Weights(f"{CLIP}/{sha256}/ViT-{size}.pt", sha256)
        for size, sha256 in (
            ("B-32", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"),
            ("B-16", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"),
            ("L-14", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"),
        )
    },
}


def variable(name: str) -> str:
    """The environment variable that names a file of one's own: TAXOBENCH_CLIP for clip-vit-b-32."""
    return f"TAXOBENCH_{name.partition('-')[0].upper()}"


def path_of(name: str) -> Path:
    """Where the weights lie; `click.ClickException` saying how to bring them, where they do not."""
    import torch

    file = WEIGHTS[name].file
    own = os.environ.get(variable(name))
    usual = [cache_dir() / "weights" / file, Path(torch.hub.get_dir()) / "checkpoints" / file]
    for path in [Path(own)] if own else usual:
        if path.is_file():
            return path
    raise click.ClickException(
        f"The extractor {name} needs {file}, which is not at {own or usual[0]}: run "
        f"`bench data fetch {name}`, or set {variable(name)} to your copy, or ask for the extractor pixels."
    )


def read(name: str) -> tuple[bytes, str]:
    """The content of the weights and its sha256; `click.ClickException` if it is not the official one."""
    path, known = path_of(name), WEIGHTS[name].sha256
    content = path.read_bytes()
    sha256 = sha256_of(content)
    if sha256 != known:
        raise click.ClickException(
            f"{path} is not the official file of {name}, whose sha256 begins with {known[:8]} and not "
            f"{sha256[:8]}; download {WEIGHTS[name].file} again."
        )
    return content, sha256


def fetch(name: str) -> Path:
    """Download the weights into the cache, unless they are there and whole, and check them."""
    weights, path = WEIGHTS[name], cache_dir() / "weights" / WEIGHTS[name].file
    if path.is_file() and sha256_of(path.read_bytes()) == weights.sha256:
        return path
    digest = hashlib.sha256()
    try:
        with whole(path) as part:
            with urlopen(weights.url, timeout=SECONDS) as answer, part.open("wb") as file:
                while piece := answer.read(PIECE):
                    digest.update(piece)
                    file.write(piece)
            if digest.hexdigest() != weights.sha256:
                raise click.ClickException(
                    f"{weights.url} gave a file whose sha256 begins with {digest.hexdigest()[:8]} and not "
                    f"{weights.sha256[:8]}: nothing was kept."
                )
    except OSError as error:
        raise click.ClickException(
            f"cannot download {weights.file} ({str(error) or type(error).__name__}): bring it here from "
            f"{weights.url} and set {variable(name)} to it"
        ) from None
    return path
