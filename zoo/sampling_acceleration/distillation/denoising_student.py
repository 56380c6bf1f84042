"""Denoising Student: one network that maps noise in one pass to where DDIM takes it in many steps.

The student's distribution given the noise x_T is a normal of unit variance around its output F(x_T), the
teacher's is the point DDIM(x_T); the divergence between them is (eq. 11)

    E over x_T of |F(x_T) - DDIM(x_T)|^2 / 2.

The student has the teacher's weights to begin with. It spends one evaluation, whatever the budget.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from bench.diffusion import training
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.distillation import Students, drawn, pairs, student_of
from bench.diffusion.steps import ddim
from bench.method import Method


class DenoisingStudent(Method):
    """Denoising Student"""

    paper = "arXiv:2101.02388"
    schedules = ("ddpm", "vp", "vp_cosine", "flow")
    share = 0.5

    teacher_steps: int = 50  # even; its authors' code has 100 quadratic ones for CIFAR-10, 50 even for LSUN
    images_per_pair: int = 20  # each pair is made once and seen so often; the paper makes a million pairs

    def build(self, base: Denoiser, data, nfe: int) -> nn.Module:
        return Students({"student": student_of(base, data)})

    def train(self, model: Students, base: Denoiser, data, images: int, nfe: int) -> None:
        made = pairs(base, lambda x: self.taught(base, x), max(1, images // self.images_per_pair))

        def loss(x0: Tensor, generator: torch.Generator) -> Tensor:
            x, end = drawn(made, len(x0), generator)
            return ((self.sample(model, x, 1) - end) ** 2).flatten(1).mean(1) / 2

        training.fit(loss, model, data, images, lr=1e-3, decay=1.0)

    def taught(self, base: Denoiser, x: Tensor) -> Tensor:
        """Where DDIM takes x."""
        for s, t in pairwise(base.schedule.steps(self.teacher_steps, "time", end="zero")):
            out = base(x, s)
            x = ddim(base.schedule, out.x0, out.eps, t)
        return x

    def sample(self, model: Students, x: Tensor, nfe: int) -> Tensor:
        student = model["student"]
        return student(x, student.schedule.t_max).x0
