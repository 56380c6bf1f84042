"""Peak memory of measuring FID and the Inception score, beyond that of everything loaded before.

    python benchmarks/memory.py                   # 5,000 and 50,000 samples of 2,048 features
    python benchmarks/memory.py --features 512

Each count has a process of its own. The features are a random projection of noise, so that no network's
memory counts; all 20 replicates are computed.
"""

import resource
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import click
import torch
from torch import Tensor

from bench.metrics.extractor import Extractor
from bench.metrics.fidelity import measure
from bench.metrics.references import Reference

CHUNK, SHAPE, CLASSES = 500, (3, 8, 8), 1000


def extractor(features: int) -> Extractor:
    """A rectified random projection."""
    weight = torch.randn(192, features, generator=torch.Generator().manual_seed(0)) / 14

    def compute(stored: Tensor) -> dict[str, Tensor]:
        found = torch.relu((stored.flatten(1) / 128 - 1) @ weight)
        return {"features": found, "logits": found[:, :CLASSES]}

    return Extractor("projection", "", features, compute, classes=CLASSES)


def noise(samples: int) -> Iterator[Tensor]:
    for start in range(0, samples, CHUNK):
        yield torch.randint(0, 256, (min(CHUNK, samples - start), *SHAPE), dtype=torch.uint8)


def mebibytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def peak(samples: int, features: int) -> float:
    """The growth of this process's peak, in MiB."""
    torch.set_num_threads(1)
    data = SimpleNamespace(name="noise", kind="image", shape=SHAPE, levels=256)
    target = Reference("unit", 0, torch.zeros(features).double(), torch.eye(features).double(), None)
    before = mebibytes()
    measure(["fid", "is"], noise(samples), data, extractor(features), reference=target, count=samples)
    return mebibytes() - before


@click.command()
@click.option("--samples", type=int, multiple=True, default=(5000, 50_000), show_default=True)
@click.option("--features", type=int, default=2048, show_default=True)
@click.option("--here", is_flag=True, help="In this process, and print the number alone.")
def main(samples: tuple[int, ...], features: int, here: bool) -> None:
    """Print the peak for each number of samples."""
    for count in samples:
        if here:
            click.echo(f"{peak(count, features):.0f}")
            continue
        command = [sys.executable, __file__, "--here", "--features", str(features), "--samples", str(count)]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        click.echo(f"{count:,} samples of {features:,} features: {ran.stdout.strip()} MiB")


if __name__ == "__main__":
    main()
