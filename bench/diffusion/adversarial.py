"""Training of two players: a generator and the critic that tells its samples from real ones.

The generator follows the non-saturating loss (Goodfellow et al. 2014), the critic pays R1 for its gradient at
real samples (Mescheder et al. 2018). Rates stay as they are to the end: the players circle each other, what
is good is the average over their circles, and as rates fall they come to rest where it is worse. Seeds,
averaging, checkpoints and cost are those of `training.fit`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.diffusion import training
from bench.diffusion.denoiser import noise_like
from bench.diffusion.generators import Encoder, Sampler
from bench.diffusion.team import Team

LAZY = 4  # R1 is paid at every fourth step, fourfold (Karras et al. 2020, section 3.1)


class Round(NamedTuple):
    """What the critic is to tell apart, and what else it is told: its arguments after the sample."""

    real: Tensor
    fake: Tensor
    given: tuple


def contest(
    play: Callable[[Tensor, torch.Generator], Round],
    generator: nn.Module,
    critic: Callable[[], nn.Module],
    data,
    images: int,
    *,
    batch: int = 64,
    lr: float = 5e-4,
    critic_lr: float = 1e-3,
    r1: float = 1.0,
    ema: float = 0.15,
) -> nn.Module:
    """Fit the generator in place, ending on its weights' moving average; the critic is made here and left
    behind.

    play: (x0, generator) -> a Round whose fakes carry the gradient of the generator's weights. The critic's
    answer to (samples, *given) is one logit a row. The critic plays first; both see the same fakes. Curves
    show the energy distance of a batch of fakes from one of real samples: neither player's loss says how far
    they have come. images: real images seen. r1: with little of it the critic learns few images by heart.
    """
    run = training.CURRENT.get() or training.Session()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seeded(run.seed, run.loops, 1).initial_seed())
        judge = critic().to(run.device)
    players = nn.ModuleDict({"generator": generator, "critic": judge})
    sides = [[p for p in player.parameters() if p.requires_grad] for player in (generator, judge)]
    groups = [{"params": side, "lr": rate} for side, rate in zip(sides, (lr, critic_lr))]
    optimiser = torch.optim.Adam(groups, betas=(0.0, 0.99), fused=True)

    def update(x0: Tensor, noise: torch.Generator, step: int, total: int) -> Tensor:
        real, fake, given = play(x0, noise)
        real = real.detach().requires_grad_(step % LAZY == 0)
        logits = judge(real, *given)
        loss = functional.softplus(-logits).mean() + functional.softplus(judge(fake.detach(), *given)).mean()
        penalty = LAZY * r1 / 2 * roughness(logits, real) if step % LAZY == 0 else 0.0
        moved(optimiser, sides[1], loss + penalty, run.team)
        moved(optimiser, sides[0], functional.softplus(-judge(fake, *given)).mean(), run.team)
        return apart(real.detach(), fake.detach())

    weights = {name: p for name, p in players.named_parameters() if p.requires_grad}
    training.repeated(update, players, weights, optimiser, data, images, batch=batch, ema=ema)
    return generator


def roughness(logits: Tensor, x: Tensor) -> Tensor:
    """The mean squared length of the logits' gradient at x: R1."""
    (slope,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return slope.square().flatten(1).sum(1).mean()


def apart(a: Tensor, b: Tensor) -> Tensor:
    """The energy distance of two batches (Szekely & Rizzo 2013), 0 only where they are the same."""
    a, b = a.flatten(1), b.flatten(1)
    return 2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean()


def moved(optimiser: torch.optim.Optimizer, side: list[nn.Parameter], loss: Tensor, team: Team) -> None:
    """One step of one player: the optimiser passes over weights that have no gradient."""
    optimiser.zero_grad(set_to_none=True)
    for p, slope in zip(side, torch.autograd.grad(loss, side), strict=True):
        p.grad = slope
    team.average(side)
    optimiser.step()


def fit_sampler(
    sampler: Sampler,
    data,
    images: int,
    seen: Callable[[Tensor, torch.Generator], Tensor] | None = None,
) -> nn.Module:
    """Fit a sampler to the data, both as `seen` by the critic: (x, generator) -> x, by default whole."""
    look = seen or (lambda x, generator: x)

    def play(x0: Tensor, generator: torch.Generator) -> Round:
        z = noise_like(x0.new_empty(len(x0), sampler.latent), generator)
        return Round(look(x0, generator), look(sampler(z), generator), ())

    return contest(play, sampler, lambda: Encoder(data.shape, 1, critic=True), data, images)
