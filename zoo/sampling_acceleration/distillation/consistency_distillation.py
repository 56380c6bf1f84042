"""Consistency distillation: a network that takes any point of a teacher's flow to the flow's end in one pass.

f(x, t) = c_skip(t) x + c_out(t) F(x, t) is the identity at t_min. On a grid t_1 = t_min < ... < t_N = t_max,
even in the seventh root of sigma, neighbours of one trajectory are to agree (Algorithm 2):

    E over n, x = x0 + t_{n+1} eps of w(n) d(f(x, t_{n+1}), f'(x', t_n)),    x' a Heun step of the teacher
    from x,

with f' the same function without gradient (the paper's mu = 0, its choice for CIFAR-10). LPIPS, the paper's
best d, is a network trained on photographs and is not used here. `improved` takes d and w from
arXiv:2310.14189, the pseudo-Huber distance and 1 / (t_{n+1} - t_n); without it d is the paper's squared
distance and w is 1.
"""

import torch
from torch import Tensor, nn

from bench.diffusion import training
from bench.diffusion.denoiser import Denoiser, noise_like, rowwise
from bench.diffusion.distillation import (
    Students,
    consistency_loss,
    consistent,
    multistep_consistency,
    spent,
    student_of,
)
from bench.method import Method


class ConsistencyDistillation(Method):
    """Consistency distillation"""

    paper = "arXiv:2303.01469"
    entry = "consistency"
    schedules = ("edm",)
    share = 0.4

    points: int = 18  # N, the paper's for CIFAR-10
    improved: bool = False
    spacing: str = "karras"  # of the times of multistep sampling; the paper searches them for the best FID

    def build(self, base: Denoiser, data, nfe: int) -> nn.Module:
        return Students({"student": student_of(base, data)})

    def train(self, model: Students, base: Denoiser, data, images: int, nfe: int) -> None:
        student = model["student"]
        grid = base.schedule.steps(self.points - 1, "karras")

        def loss(x0: Tensor, generator: torch.Generator) -> Tensor:
            n = torch.randint(len(grid) - 1, (len(x0),), generator=generator, device=generator.device).cpu()
            s, t = grid[n], grid[n + 1]
            x = x0 + rowwise(s, x0) * noise_like(x0, generator)
            with torch.no_grad():
                aim = consistent(student, heun(base, x, s, t), t)
            return consistency_loss(consistent(student, x, s), aim, s, t, self.improved)

        training.fit(loss, model, data, images, lr=1e-3, decay=1.0)
        spent(2 * images)

    def sample(self, model: Students, x: Tensor, nfe: int) -> Tensor:
        return multistep_consistency(model["student"], x, nfe, self.spacing)


def heun(teacher: Denoiser, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """Heun's step of the teacher's flow dx/dt = eps, each row from its own time to its own."""
    ones = torch.ones_like(s)
    slope = teacher.at(x, ones, s).eps
    h = rowwise(t - s, x)
    return x + h * (slope + teacher.at(x + h * slope, ones, t).eps) / 2
