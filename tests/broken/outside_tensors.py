"""Broken: what it estimates in training is a Python number on the model, which no file carries."""

from itertools import pairwise

from torch import Tensor, nn

from bench.diffusion.denoiser import Denoiser
from bench.diffusion.steps import ddim
from bench.method import Method


class OutsideTensors(Method):
    """Keeps state outside its tensors"""

    paper = "arXiv:2010.02502"
    leaf = "ode_solver"
    schedules = ("edm",)

    def build(self, base: nn.Module, data, nfe: int) -> nn.Module:
        base.shrink = 1.0
        return base

    def train(self, model: nn.Module, base: nn.Module, data, images: int, nfe: int) -> None:
        model.shrink = 0.9

    def sample(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        for s, t in pairwise(denoiser.schedule.steps(nfe)):
            out = denoiser(x, s)
            x = ddim(denoiser.schedule, out.x0, denoiser.shrink * out.eps, t)
        return x
