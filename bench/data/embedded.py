"""Real images that come with an installed package: nothing to download."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from bench.data import Data

if TYPE_CHECKING:
    import numpy


def load(name: str) -> Data:
    """`digits`: scikit-learn's 1,797 handwritten digits, 8 x 8 with 17 levels; 360 of them are held out."""
    import numpy
    import torch

    rows = digits()[numpy.random.default_rng(0).permutation(1797)]
    images = torch.from_numpy(rows[:, :64].astype(numpy.uint8).reshape(-1, 1, 8, 8))
    labels = torch.from_numpy(rows[:, 64].astype(numpy.int64))
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


def digits() -> "numpy.ndarray":
    """(1797, 65): the pixels of each digit and its class. From the package's own file where it lies as ever,
    since to import scikit-learn takes as long as torch.
    """
    import numpy

    package = find_spec("sklearn")
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if path.is_file():
        return numpy.loadtxt(path, delimiter=",")
    from sklearn.datasets import load_digits

    found = load_digits()
    return numpy.column_stack((found.data, found.target))
