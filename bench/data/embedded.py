"""Real images that come with an installed package: nothing to download."""

from __future__ import annotations

from bench.data import Data


def load(name: str) -> Data:
    """`digits`: scikit-learn's 1,797 handwritten digits, 8 x 8 with 17 levels; 360 of them are held out."""
    import numpy
    import torch
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = numpy.random.default_rng(0).permutation(1797)
    images = torch.from_numpy(digits.images[order].astype(numpy.uint8)[:, None])
    labels = torch.from_numpy(digits.target[order].astype(numpy.int64))
    return Data(
        name,
        "image",
        (1, 8, 8),
        train=images[:1437],
        test=images[1437:],
        levels=17,
        labels=labels[:1437],
        test_labels=labels[1437:],
    )
