"""Rows as a run would have left them, made by hand for the tests of figures and reports."""

import numpy as np

from bench import registry, store
from bench.cache import key_of
from bench.row import Row

PROTOCOL = "aaaaaaaaaaaa"
HOSTILE = '</script><script>document.title="owned"</script><img src=x onerror=alert(1)>'


def row(method: str, metric: str, budget: int, value: float | None, **facts) -> Row:
    spread = 0.01 * np.random.default_rng([budget, len(method)]).standard_normal(20)
    ask = "nll" if metric.startswith("nll") else "sample"
    known = registry.plugins()
    version = known[method].version if method in known else 1
    usual = {
        "key": key_of([method, budget, ask]), "method": method, "version": version, "parameters": {},
        "data": "mixture-digits", "base": "denoiser", "base_id": "exact:1", "train_seed": 0, "images": None,
        "ask": ask, "budget": budget, "seed": 0, "samples": 500, "protocol": PROTOCOL, "metric": metric,
        "value": value, "replicates": list((value or 0) * (1 + spread)), "nfe": float(budget),
        "nfe_max": budget, "seconds": 0.01 * budget, "memory": 100.0, "start": "normal, sigma 1",
        "device": "x86_64", "threads": 1, "time": "2026-01-02T03:04:05Z", "commit": "abc",
        "versions": {"torch": "2"},
    }  # fmt: skip
    return Row.of(**usual | facts)


def measured(folder, hostile: bool = False, data: str = "mixture-digits"):
    """A results folder with two solvers and a baseline, a failure and kept images; returns the folder."""
    rows = []
    for method, order, scale in (("ddim", 1, 1.0), ("unipc", 3, 4.0), ("ddpm", 0, 0.9)):
        for budget in (5, 10, 20):
            rows += [
                row(method, "fid[pixels]", budget, scale * 20 / budget, data=data),
                row(method, "distance", budget, scale * 5.0 * budget**-order, data=data),
            ]
            keep(
                folder,
                rows[-1].key,
                np.random.default_rng(budget).normal(size=(4, 1, 8, 8)).astype(np.float16),
            )
    rows += [
        row("ddpm", "nll[elbo]", b, 3 - b / 20, data=data, details={"unit": "bits/dim"}) for b in (5, 10, 20)
    ]
    bad = HOSTILE if hostile else "OverBudget: it took too many"
    rows.append(row("dpm_solver_2", "", 5, None, error=bad, replicates=[], data=data))
    if hostile:
        rows += [
            row(HOSTILE, "fid[pixels]", b, 1.0, start=HOSTILE, device=HOSTILE, data=data) for b in (5, 10)
        ]
        keep(folder, rows[-1].key, np.zeros((2, 1, 8, 8), np.uint8))
    store.append(folder, rows)
    store.record_protocol(folder, PROTOCOL, {"extractor": HOSTILE if hostile else "pixels", "samples": 500})
    return folder


def keep(folder, key: str, images) -> None:
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "samples" / f"{key}.npz", samples=images)
