"""Consistency training: a consistency model learned from data, without a teacher's steps.

With the same data and noise at two neighbouring times of EDM's grid t_1 = t_min < ... < t_N = t_max
(Algorithm 3, eq. 10),

    E over n of w(n) d(f(x0 + t_{n+1} eps, t_{n+1}), f'(x0 + t_n eps, t_n)),

f' being a running average of f of decay mu, without gradient. In the course of training (appendix C)

    N(k) = ceil(sqrt(k/K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1,    mu(k) = exp(s0 log mu0 / N(k)).

`improved` is the recipe of arXiv:2310.14189: mu = 0, N - 1 doubling from s0 to s1, ln sigma normal, w = 1 /
(t_{n+1} - t_n) and the pseudo-Huber distance. LPIPS, the first paper's best d, is a network trained on
photographs and is not used here: without `improved`, d is its squared distance.
"""

import copy
import math

import torch
from torch import Tensor, nn

from bench.diffusion import training
from bench.diffusion.denoiser import Denoiser, noise_like, rowwise
from bench.diffusion.distillation import (
    Students,
    consistency_loss,
    consistent,
    multistep_consistency,
    student_of,
)
from bench.method import Method


class ConsistencyTraining(Method):
    """Consistency training"""

    paper = "arXiv:2303.01469"
    entry = "consistency"
    schedules = ("edm",)
    share = 0.6

    improved: bool = False
    s0: int = 2  # 10 with `improved`
    s1: int = 150  # 1280 with `improved`
    mu0: float = 0.9  # of the first recipe alone
    warm: bool = False  # begin with the denoiser's weights
    spacing: str = "karras"  # of the times of multistep sampling; the paper searches them for the best FID

    def build(self, base: Denoiser, data, nfe: int) -> nn.Module:
        return Students({"student": student_of(base, data, self.warm)})

    def train(self, model: Students, base: Denoiser, data, images: int, nfe: int) -> None:
        student = model["student"]
        # What the loss remembers from step to step is in tensors of what is fitted, which checkpoints hold.
        fitted = nn.ModuleDict({"student": student, "target": copy.deepcopy(student).requires_grad_(False)})
        fitted.register_buffer("seen", torch.zeros((), dtype=torch.int64))

        def loss(x0: Tensor, generator: torch.Generator) -> Tensor:
            points = self.points(int(fitted.seen) / images)
            fitted.seen += len(x0)
            grid = student.schedule.steps(points - 1, "karras").flip(0)
            self.follow(fitted["target"], student, points)
            n = self.drawn(grid, len(x0), generator)
            t, s = grid[n], grid[n + 1]
            eps = noise_like(x0, generator)
            with torch.no_grad():
                aim = consistent(fitted["target"], x0 + rowwise(t, x0) * eps, t)
            found = consistent(student, x0 + rowwise(s, x0) * eps, s)
            return consistency_loss(found, aim, s, t, self.improved)

        training.fit(loss, fitted, data, images, lr=1e-3, decay=1.0)

    def points(self, done: float) -> int:
        """N after this share of the training."""
        if self.improved:
            stages = int(math.log2(self.s1 / self.s0)) + 1
            return min(self.s0 * 2 ** int(done * stages), self.s1) + 1
        return math.ceil(math.sqrt(done * ((self.s1 + 1) ** 2 - self.s0**2) + self.s0**2) - 1) + 1

    def drawn(self, grid: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """n places in the rising grid, all but the last: even, or so that ln sigma is normal."""
        share = torch.ones(len(grid) - 1)
        if self.improved:
            mass = torch.erf((grid.log() + 1.1) / (2.0 * math.sqrt(2)))  # mean -1.1, deviation 2
            share = mass.diff().float()
        return torch.multinomial(share.to(generator.device), n, replacement=True, generator=generator).cpu()

    def follow(self, target: Denoiser, student: Denoiser, points: int) -> None:
        """Move the target's weights towards the student's, all the way where mu is 0."""
        mu = 0.0 if self.improved else math.exp(self.s0 * math.log(self.mu0) / points)
        with torch.no_grad():
            for theirs, own in zip(target.parameters(), student.parameters()):
                theirs.lerp_(own, 1 - mu)

    def sample(self, model: Students, x: Tensor, nfe: int) -> Tensor:
        return multistep_consistency(model["student"], x, nfe, self.spacing)
