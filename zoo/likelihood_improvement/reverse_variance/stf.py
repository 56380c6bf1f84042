"""STF: denoising score matching with a stable target field, a mean over many data in the stead of the one
that was noised.

Denoising score matching regresses on the x0 from which z = x0 + r eps was made, though z may come from any of
them. The stable target is the mean over a reference batch, which holds x0, of what z may come from, by
self-normalised importance weights (Algorithm 1),

    sum_k w_k y_k,    w_k = p(z | y_k) / sum_j p(z | y_j),    p(z | y) = N(z; y, r^2),

whose covariance is smaller, most so at the noise levels where several data compete, and whose bias vanishes
as the reference batch grows. All else is the shared denoiser's: EDM's loss, network and budget. Samples are
drawn by EDM's Heun steps, the likelihood is that of the probability flow.
"""

from itertools import pairwise

import torch
from torch import Tensor

from bench.diffusion.denoiser import Denoiser, untrained
from bench.diffusion.likelihood import flow_nll
from bench.diffusion.schedule import SCHEDULES
from bench.diffusion.steps import heun
from bench.diffusion.training import denoising_loss, fit
from bench.method import Method


class STF(Method):
    """STF"""

    paper = "arXiv:2302.00670"
    base = None
    schedules = ("edm", "vp", "ve")
    least = 4  # of the likelihood: a Runge-Kutta step
    likelihood = "ode"

    reference: int = 4096  # data in the reference batch, those of the batch among them
    spacing: str = "karras"  # of samples; the flow's likelihood is even in lambda
    trace: str = "hutchinson"  # "exact" costs one derivative per dimension
    lr: float = 2e-3

    def build(self, base: None, data, nfe: int) -> Denoiser:
        return untrained(data, schedule=SCHEDULES[self.schedule or self.schedules[0]]())

    def train(self, model: Denoiser, base: None, data, images: int, nfe: int) -> None:
        def loss(x0: Tensor, generator: torch.Generator) -> Tensor:
            more = (max(0, self.reference - len(x0)),)
            index = torch.randint(len(data.train), more, generator=generator, device=generator.device)
            among = torch.cat([x0, data.scale(data.train[index.cpu()].to(x0.device))])
            return denoising_loss(model, x0, generator, lambda z, r: stable(z, r, among))

        fit(loss, model, data, images, lr=self.lr)

    def sample(self, model: Denoiser, x: Tensor, nfe: int) -> Tensor:
        z = x / model.schedule.alpha(model.schedule.t_max)
        for s, t in pairwise(model.schedule.steps((nfe + 1) // 2, self.spacing, end="zero")):
            z = heun(model, z, s, t)
        return z

    def nll(self, model: Denoiser, x: Tensor, nfe: int) -> Tensor:
        times = model.schedule.steps(max(1, nfe // 4), "lambda").flip(0)
        return flow_nll(model, x, times, self.trace)


def stable(z: Tensor, r: Tensor, among: Tensor) -> Tensor:
    """The mean (n, *shape) of the data `among` (m, *shape), each weighted by how likely it is to have become
    z (n, *shape) by noise r (n,).
    """
    away = torch.cdist(z.flatten(1), among.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
    weights = torch.softmax(-((away / r.to(away)[:, None]) ** 2) / 2, dim=1)
    return (weights @ among.flatten(1)).view_as(z)
