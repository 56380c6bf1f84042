"""The Fréchet distance of the harness against torch-fidelity's, on the same features, one thread each.

The features are Gaussian with 2,048 dimensions whose variances fall as i^-1.2, much as those of a trained
network's features of photographs do (EfficientNet-Lite0's of CIFAR-10 were looked at). Times are the
process's own. What the reference takes is outside torch-fidelity's time, which gets its moments; the
harness's Cholesky factor of it is inside the times from features.
"""

import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from benchmarks.record import Record, medians, ratio, timed, turns

if TYPE_CHECKING:
    from numpy import ndarray

DIMS, MANY, FEW, CHUNK = 2048, 5000, 500, 500


def drawn(n: int, dims: int, scale: float, seed: int) -> Tensor:
    """(n, dims) features in float64, mixed by one fixed rotation."""
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(dims, dims, generator=generator).double())[0]
    deviations = torch.arange(1, dims + 1).double() ** -0.6
    noise = torch.randn(n, dims, generator=torch.Generator().manual_seed(seed)).double()
    return (noise * deviations * scale + 0.01) @ rotation


def noise(product: "ndarray", rank: int) -> float:
    """Twice the sum of the roots of a product's eigenvalues beyond its rank, zero but for rounding."""
    import numpy as np

    roots = np.sqrt(np.linalg.eigvals(product).astype("complex128")).real
    return 2 * float(np.sort(roots)[: len(roots) - rank].sum())


def measure(small: bool = False) -> list[Record]:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    from bench.metrics.jackknife import BLOCKS
    from bench.metrics.moments import Moments
    from bench.metrics.references import Reference

    torch.set_num_threads(1)
    dims, many, few = (300, 700, 60) if small else (DIMS, MANY, FEW)
    rounds = 1 if small else 2
    other = drawn(many, dims, 1.1, 2)
    theirs = fid_features_to_statistics(other)
    target = Reference("other", many, other.mean(0), other.T.cov(), None)

    def gathered(features: Tensor) -> Moments:
        moments = Moments(target, BLOCKS)
        for start in range(0, len(features), CHUNK):
            moments.add(features[start : start + CHUNK], start)
        return moments

    def their_value(features: Tensor) -> float:
        found = fid_statistics_to_metric(fid_features_to_statistics(features), theirs, False)
        return found["frechet_inception_distance"]

    records = []
    for n in (many, few):
        features = drawn(n, dims, 1.0, 1)
        moments, statistics = gathered(features), fid_features_to_statistics(features)
        ours, reference = moments.value(), their_value(features)  # the last samples go into the sums here
        contenders = {
            "value from sums": moments.value,
            "theirs from moments": lambda s=statistics: fid_statistics_to_metric(s, theirs, False),
            "value": lambda f=features: gathered(f).value(),
            "theirs": lambda f=features: their_value(f),
            "value and replicates": lambda f=features: gathered(f).fid(),
        }
        took = turns({name: timed(act, time.process_time) for name, act in contenders.items()}, rounds, False)
        exact = reference if n > dims else reference + noise(statistics["sigma"] @ theirs["sigma"], n - 1)
        values = {"our value": ours, "their value": reference, "their value without noise": exact}
        facts = medians(took) | values
        spurious = (
            f"; without the roots that torch-fidelity takes of {dims - n + 1:,} eigenvalues that are zero "
            f"but for rounding (with them {abs(ours / reference - 1):.1e})"
        )
        title = f"Fréchet distance, {n:,} x {dims:,}"
        bound = 5.0 if n == many else 20.0
        records += [
            Record(
                f"{title}: difference from torch-fidelity's",
                abs(ours / exact - 1),
                "relative",
                1e-6,
                "the two values of the same features, in float64" + ("" if n > dims else spurious),
                facts,
            ),
            Record(
                f"{title}: from what each keeps of the samples",
                ratio(took, "theirs from moments", "value from sums"),
                "x",
                bound,
                "torch-fidelity from both sides' moments to the value, over the harness from its sums by "
                "block to the value",
                facts,
            ),
            Record(
                f"{title}: value and {BLOCKS} replicates from features",
                (BLOCKS + 1) * ratio(took, "theirs", "value and replicates"),
                "x",
                bound,
                f"{BLOCKS + 1} times torch-fidelity's one value from features, over the harness's "
                f"{BLOCKS + 1}, of all samples and without each block",
                facts,
            ),
            Record(
                f"{title}: one value from features",
                ratio(took, "theirs", "value"),
                "x",
                bound if n == few else None,
                "torch-fidelity from features to the value, over the harness from features to sums by block "
                "and to the value of all, which it never needs alone",
                facts,
            ),
        ]
    return records
