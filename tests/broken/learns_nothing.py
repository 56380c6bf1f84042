"""Broken: climbs its loss, the gradient's sign being wrong."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from bench.diffusion.denoiser import Denoiser
from bench.diffusion.steps import ddim
from bench.diffusion.training import fit
from bench.method import Method


class Shifted(nn.Module):
    """A denoiser and one parameter beside it."""

    def __init__(self, base: Denoiser):
        super().__init__()
        self.base, self.shift = base, nn.Parameter(torch.ones(1))

    def prior(self, *arguments) -> Tensor:
        return self.base.prior(*arguments)


class LearnsNothing(Method):
    """Learns nothing"""

    paper = "arXiv:2010.02502"
    leaf = "ode_solver"
    schedules = ("edm",)

    def build(self, base: nn.Module, data, nfe: int) -> nn.Module:
        return Shifted(base)

    def train(self, model: nn.Module, base: nn.Module, data, images: int, nfe: int) -> None:
        def loss(x0: Tensor, generator) -> Tensor:
            value = model.shift.square().expand(len(x0))
            return 2 * value.detach() - value

        fit(loss, model, data, images)

    def sample(self, model: nn.Module, x: Tensor, nfe: int) -> Tensor:
        for s, t in pairwise(model.base.schedule.steps(nfe)):
            out = model.base(x, s)
            x = ddim(model.base.schedule, out.x0, out.eps, t)
        return x
