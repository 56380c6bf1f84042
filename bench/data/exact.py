"""Data whose truth is known: Gaussian mixtures, with score, density and samples at every noise level.

`mixture2d` is written out below. `mixture-digits`, `mixture-fashion` and `mixture-cifar10` were fitted to the
real training images and are shipped; fit another with

    python -m bench.data.exact cifar10 --components 200 --rank 64 --out FILE        and use it as mixture:FILE
"""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.data import Data, refuse_strange
from bench.data import load as load_data

if TYPE_CHECKING:
    from torch import Tensor

    from bench.diffusion.exact import GaussianMixture

SHIPPED = Path(__file__).parent / "mixtures"
TRAIN, TEST = 10_000, 2_000


class ExactData(Data):
    """A known distribution as a data set: always the same samples, drawn when first asked for."""

    def __init__(self, name: str, kind: str, shape: tuple[int, ...], exact: GaussianMixture):
        vars(self).update(name=name, kind=kind, shape=shape, exact=exact)

    @cached_property
    def train(self) -> Tensor:
        return self._draw(TRAIN, seed=1)

    @cached_property
    def test(self) -> Tensor:
        return self._draw(TEST, seed=2)

    def _draw(self, n: int, seed: int) -> Tensor:
        import torch

        return self.exact.sample(n, torch.Generator().manual_seed(seed)).float().reshape(n, *self.shape)


def load(name: str) -> Data:
    """`mixture2d`, a shipped mixture, or `mixture:FILE`; click.ClickException where FILE cannot be read."""
    if name == "mixture2d":
        return ExactData(name, "vector", (2,), ring())
    _, colon, path = name.partition(":")
    mixture, shape = read(Path(path).expanduser() if colon else SHIPPED / f"{name}.safetensors")
    return ExactData(name, "image" if len(shape) == 3 else "vector", shape, mixture)


def ring() -> GaussianMixture:
    """Eight anisotropic Gaussians on the unit circle, of unequal weights, none along an axis."""
    import torch

    from bench.diffusion.exact import GaussianMixture

    long = torch.tensor([0.20, 0.14, 0.18, 0.16, 0.19, 0.13, 0.17, 0.15], dtype=torch.float64)
    short = torch.tensor([0.08, 0.10, 0.07, 0.09, 0.11, 0.07, 0.10, 0.08], dtype=torch.float64)
    weights = torch.tensor([6, 3, 5, 2, 4, 7, 2, 3], dtype=torch.float64) / 32
    place = 2 * math.pi * torch.arange(8, dtype=torch.float64) / 8
    tilt = place + torch.tensor([0.5, 1.3, 2.2, 0.3, 1.0, 2.7, 0.7, 1.9], dtype=torch.float64)
    means = torch.stack([place.cos(), place.sin()], 1)
    basis = torch.stack([tilt.cos(), tilt.sin()], 1)[..., None]
    return GaussianMixture(weights, means, basis, (long**2 - short**2)[:, None], short**2)


def read(path: Path) -> tuple[GaussianMixture, tuple[int, ...]]:
    """A mixture in float64 and the shape of its samples, from a file that `write` made."""
    import torch
    from safetensors import SafetensorError, safe_open

    from bench.diffusion.exact import GaussianMixture

    refuse_strange(path)
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key).double() for key in file.keys()}  # noqa: SIM118
            shape = tuple(int(n) for n in (file.metadata() or {})["shape"].split(","))
        # rounding to float16 has tilted the columns by some 1e-4: make them orthonormal again, signs kept
        basis, triangle = torch.linalg.qr(tensors["basis"])
        tensors["basis"] = basis * triangle.diagonal(dim1=-2, dim2=-1).sign()[:, None]
        mixture = GaussianMixture(**tensors)
        if mixture.dim != math.prod(shape) or min(shape) < 1:
            raise ValueError(f"{mixture.dim} dimensions do not make {shape}")
        positive = mixture.weights.min() > 0 and min(mixture.excess.min(), mixture.floor.min()) >= 0
        if not positive or not all(tensor.isfinite().all() for tensor in mixture.state_dict().values()):
            raise ValueError("these are no weights and variances")
        return mixture, shape
    except FileNotFoundError:
        raise click.ClickException(f"there is no file {path}") from None
    except (OSError, LookupError, TypeError, ValueError, RuntimeError, SafetensorError):
        raise click.ClickException(
            f"{path} is not a mixture: make one with `python -m bench.data.exact NAME --out FILE`"
        ) from None


def write(mixture: GaussianMixture, shape: tuple[int, ...], path: Path) -> None:
    """Store a mixture as float16 safetensors, the shape of its samples in the header."""
    from safetensors.torch import save_file

    tensors = {key: value.half().contiguous() for key, value in mixture.state_dict().items()}
    save_file(tensors, path, {"shape": ",".join(map(str, shape))})


@click.command()
@click.argument("name")
@click.option(
    "--components", type=click.IntRange(1), default=50, show_default=True, help="Number of Gaussians."
)
@click.option(
    "--rank", type=click.IntRange(1), default=15, show_default=True, help="Directions kept in each."
)
@click.option("--floor", type=click.FloatRange(0, min_open=True), default=0.05, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="A .safetensors file."
)
def main(name: str, components: int, rank: int, floor: float, seed: int, out: Path) -> None:
    """Fit a mixture to the training split of the data set NAME."""
    from bench.diffusion.exact import fit_mixture

    data = load_data(name)
    try:
        mixture = fit_mixture(data.scale(data.train).flatten(1), components, rank, seed, floor)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    write(mixture, data.shape, out)
    click.echo(f"{out}: {len(mixture.weights)} components of rank {rank}, {out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
