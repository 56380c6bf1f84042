"""The one training loop: Adam, EMA, checkpoints from which training goes on exactly, and the cost of it all.

The budget is counted in images seen. The randomness of a step depends on the seed, the loop and the step
alone, so a training that was killed and resumed equals one that was not. A `session`, opened by whoever
trains, says where checkpoints go, which seed, device and precision are used, who trains along and who is
told of progress; inside it plugins call `fit`.
"""

import math
import time
from collections.abc import Callable
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bench.cache import whole
from bench.diffusion import pieces
from bench.diffusion.denoiser import FORMS, KNOWN, Denoiser, noise_like, rowwise
from bench.diffusion.execution import mixed
from bench.diffusion.team import ALONE, Team

LONG = 2_000_000  # images seen, in a training that a CPU would take hours for
Report = Callable[[str, int, int, float], None]  # label, images seen, images in all, loss


@dataclass
class Session:
    """Where and how trainings of one model run, and what they have cost so far."""

    folder: Path | None = None
    seed: int = 0
    device: str = "cpu"
    label: str = "training"
    report: Report | None = None
    minutes: float | None = None
    precision: str = "fp32"
    team: Team = ALONE
    save_every: float = 15.0  # seconds
    every: int = 50  # steps between two points of the curve
    loops: int = 0
    images: int = 0
    rows: int = 0  # evaluations spent on search and estimation, added by whoever counts them
    seconds: float = 0.0
    curve: list[tuple[int, float]] = field(default_factory=list)
    capped: bool = False


CURRENT: ContextVar[Session | None] = ContextVar("training session", default=None)


@contextmanager
def session(**settings):
    """Open a training session; yields it, so that its cost can be read afterwards."""
    opened = Session(**settings)
    token = CURRENT.set(opened)
    try:
        yield opened
    finally:
        CURRENT.reset(token)


def seeded(*parts: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator for whoever these numbers name; neighbouring numbers give unrelated streams."""
    mixed = 0x9E3779B97F4A7C15
    for part in parts:
        mixed = ((mixed ^ (part & 0xFFFFFFFFFFFFFFFF)) * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**64
        mixed ^= mixed >> 31
    return torch.Generator(device).manual_seed(mixed % 2**63)


def fit(
    loss: Callable[[Tensor, torch.Generator], Tensor],
    model: nn.Module,
    data,
    images: int,
    *,
    batch: int = 128,
    lr: float = 1e-3,
    ema: float = 0.05,
    warmup: float = 0.02,
    decay: float = 0.3,
    clip: float = 1.0,
    labels: Tensor | None = None,
    at_once: int | None = None,
) -> nn.Module:
    """Fit the model's trainable parameters in place, ending on their exponential moving average.

    loss: (x0 (batch, *shape) in [-1, 1], generator) -> one loss a row. images: the budget, in images seen.
    ema: half-life of the average as a share of the images seen so far (EDM2's power-function idea: early
    weights are forgotten). warmup, decay: shares of the budget over which the learning rate rises and, at
    the end, falls to zero. labels: one a training row; the loss is given its rows' as a third argument.
    at_once: rows that a CPU gives the loss at once, whose gradients add up to the batch's: for losses that
    make tables too great for its caches.
    """
    run = CURRENT.get() or Session()
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimiser = torch.optim.Adam(weights.values(), lr=lr, betas=(0.9, 0.99), fused=True)

    def update(x0: Tensor, generator: torch.Generator, step: int, total: int, *told: Tensor) -> Tensor:
        optimiser.zero_grad(set_to_none=True)
        size = at_once if at_once and run.device == "cpu" else len(x0)
        value = torch.zeros((), device=x0.device)
        for part, *of_part in zip(*(rows.split(size) for rows in (x0, *told))):
            with mixed(run.precision, run.device):
                mean = loss(part, generator, *of_part).mean() * (len(part) / len(x0))
            mean.backward()
            value += mean.detach()
        run.team.average(weights.values())
        for group in optimiser.param_groups:
            group["lr"] = lr * ramp(step / total, warmup, decay)
        nn.utils.clip_grad_norm_(weights.values(), clip)
        optimiser.step()
        return value

    return repeated(update, model, weights, optimiser, data, images, batch=batch, ema=ema, labels=labels)


def repeated(
    update: Callable[[Tensor, torch.Generator, int, int], Tensor],
    model: nn.Module,
    weights: dict[str, nn.Parameter],
    optimiser: torch.optim.Adam,
    data,
    images: int,
    *,
    batch: int,
    ema: float,
    labels: Tensor | None = None,
) -> nn.Module:
    """The loop round one update of the weights: batches, seeds, averaging, checkpoints and the cost, as in
    `fit`.

    update: (x0, generator, step, steps in all, the rows' labels if any) -> the loss. Within it the optimiser
    steps once for each of the weights. In a team the rows are this process's share of the batch, and update
    averages the gradients.
    """
    run = CURRENT.get() or Session()
    run.loops += 1
    loop = run.loops
    batch = min(batch, max(1, images))
    total = max(1, math.ceil(images / batch))
    share = run.team.share(batch)
    who = () if run.team.size == 1 else (run.team.rank,)
    average = {name: p.detach().clone() for name, p in weights.items()}
    rest = {name: t for name, t in model.state_dict().items() if name not in weights}
    path = checkpoint_of(run.folder, loop) if run.folder else None
    step, seconds, curve = restore(path, weights, average, rest, optimiser) if path else (0, 0.0, [])
    model.train()
    started = saved = time.monotonic()
    seen_loss = 0.0
    stored = data.train
    while step < total:
        generator = seeded(run.seed, loop, step, *who, device=run.device)
        torch.manual_seed(generator.initial_seed())  # what has no generator of its own: the batch, dropout
        index = torch.randint(len(stored), (share,))
        x0 = data.scale(sent(stored[index], run.device))
        told = () if labels is None else (sent(labels[index], run.device),)
        value = update(x0, generator, step, total, *told)
        step += 1
        keep = 0.5 ** (batch / max(batch, ema * step * batch))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.values()), [p.detach() for p in weights.values()], 1 - keep)
        if step % run.every == 0 or step == total:
            seen_loss = float(value.detach())
            curve.append((step * batch, seen_loss))
            if not math.isfinite(seen_loss):
                raise FloatingPointError(
                    f"{run.label}: the loss is no longer finite after {step * batch:,} images"
                )
            if run.report and run.team.leads:
                run.report(run.label, step * batch, total * batch, seen_loss)
        now = time.monotonic()
        if path and run.team.leads and now - saved > run.save_every:
            save(path, weights, average, rest, optimiser, step, seconds + now - started, curve)
            saved = now
        if run.minutes is not None and (run.team.size == 1 or step % 10 == 0):
            run.capped = run.team.agreed(run.seconds + now - started > 60 * run.minutes)
            if run.capped:
                break
    seconds += time.monotonic() - started
    if path and run.team.leads:
        save(path, weights, average, rest, optimiser, step, seconds, curve)
    with torch.no_grad():
        for name, p in weights.items():
            p.copy_(average[name])
    model.eval()
    run.images += step * batch
    run.seconds += seconds
    run.curve += curve
    return model


def sent(batch: Tensor, device: str) -> Tensor:
    """A batch on its device; a GPU fetches it from pinned memory while it still computes."""
    return batch.pin_memory().to(device, non_blocking=True) if device.startswith("cuda") else batch.to(device)


def batch_of(images: int) -> int:
    """Rows a step of a shared network: long trainings, which are a GPU's, take 512, as EDM's do."""
    return 512 if images >= LONG else 128


def denoising_loss(
    model: Denoiser,
    x0: Tensor,
    generator: torch.Generator,
    aim: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """EDM's loss (Karras et al. 2022, table 1): ln sigma is normal, F is fitted with unit weight. One number
    a row. aim: (z = x0 + r eps, r a row) -> what x0(z) is to be, in the stead of the x0 that was noised.
    """
    mean, spread = 1.2, 1.4
    lam = mean + spread * torch.randn(len(x0), generator=generator, device=generator.device).double()
    r = torch.exp(-lam.clamp(*KNOWN)).to(x0.device)
    noise = noise_like(x0, generator)
    ones = torch.ones_like(r)
    a, b = FORMS[model.form](ones, r, model.sigma_data)
    z = x0 + rowwise(r, x0) * noise
    out = model.at(z, ones, r).out
    if aim is not None:
        x0 = aim(z, r)
        noise = (z - x0) / rowwise(r, x0)
    return ((out - rowwise(a, x0) * x0 - rowwise(b, x0) * noise) ** 2).flatten(1).mean(1)


def stratified(x: Tensor) -> Tensor:
    """(N,) uniform numbers in [0, 1), one in each of N equal parts."""
    return (torch.arange(len(x), device=x.device) + torch.rand(len(x), device=x.device)).to(x.dtype) / len(x)


def ramp(share: float, warmup: float, decay: float) -> float:
    """The learning rate's factor at this share of the budget: linear up, flat, cosine down to zero."""
    up = min(1.0, (share + 1e-3) / warmup) if warmup else 1.0
    down = max(0.0, (share - (1 - decay)) / decay) if decay else 0.0
    return up * (1 + math.cos(math.pi * down)) / 2


def checkpoint_of(folder: Path, loop: int) -> Path:
    """Where the state of a session's loop lies, counted from 1."""
    return folder / f"loop-{loop}.safetensors"


def save(path: Path, weights, average, rest, optimiser, step: int, seconds: float, curve) -> None:
    """Write everything a step depends on, whole or not at all."""
    tensors = {f"weight/{name}": p.detach() for name, p in weights.items()}
    tensors |= {f"average/{name}": p for name, p in average.items()}
    tensors |= {f"rest/{name}": p for name, p in rest.items()}  # buffers and frozen weights may change too
    for name, p in weights.items():
        for moment in ("exp_avg", "exp_avg_sq"):
            tensors[f"{moment}/{name}"] = optimiser.state[p][moment]
    tensors["curve"] = torch.tensor(curve, dtype=torch.float64).reshape(-1, 2)
    tensors = {name: p.contiguous().cpu() for name, p in tensors.items()}
    with whole(path) as part:
        save_file(tensors, part, pieces.sealed(tensors, {"step": str(step), "seconds": repr(seconds)}))


def restore(path: Path, weights, average, rest, optimiser) -> tuple[int, float, list]:
    """Go on from a checkpoint; a missing, torn or foreign one counts as none. pieces.Damaged where it was cut
    into pieces and not all of them are here: they can still be brought.
    """
    try:
        stored, facts = pieces.read(path)
        step, seconds = int(facts["step"]), float(facts["seconds"])
        fits = all(
            stored[f"{part}/{name}"].shape == p.shape
            for part, group in (("weight", weights), ("rest", rest))
            for name, p in group.items()
        )
    except pieces.Damaged:
        if path.exists():
            return 0, 0.0, []
        raise
    except (OSError, KeyError, TypeError, ValueError):
        return 0, 0.0, []
    if not fits:
        return 0, 0.0, []
    with torch.no_grad():
        for name, p in rest.items():
            p.copy_(stored[f"rest/{name}"])
        for name, p in weights.items():
            p.copy_(stored[f"weight/{name}"])
            average[name].copy_(stored[f"average/{name}"])
            optimiser.state[p] = {
                "step": torch.tensor(float(step), device=p.device),
                # in the weights' own memory format, since one kernel walks through all of them
                "exp_avg": torch.empty_like(p).copy_(stored[f"exp_avg/{name}"]),
                "exp_avg_sq": torch.empty_like(p).copy_(stored[f"exp_avg_sq/{name}"]),
            }
    return step, seconds, [(int(seen), value) for seen, value in stored["curve"].tolist()]
