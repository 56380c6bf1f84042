"""Subspace diffusion: while noise hides the finer parts of an image, diffuse the coarser ones alone.

What of x_t = alpha x0 + sigma eps is orthogonal to a subspace becomes normal long before the rest. Where
sigma / alpha is above `switch`, a smaller network denoises the projection y_t = U^T x_t, which undergoes the
same process; below, the shared network denoises all of x_t. Between them the orthogonal part is drawn from a
normal of the variance

    alpha_t^2 v + sigma_t^2,

v being the data's variance in an orthogonal direction (as the authors' own code upsamples). Here its unit
noise is the start's, as the flow of a normal would carry it along: samples begin where the base's do, and are
the base's where the subspace is the whole space. The subspace is that of images of half the side, or of the
first principal components of vectors; the steps are DDIM's.
"""

import math

import torch
from torch import Tensor, nn

from bench.diffusion.covariance import unit
from bench.diffusion.denoiser import Denoiser, noise_like, rowwise
from bench.diffusion.latents import Subspace, net_of
from bench.diffusion.steps import ancestral, generalised
from bench.diffusion.training import fit
from bench.method import Method


class SubspaceDiffusion(Method):
    """Subspace diffusion"""

    paper = "arXiv:2205.01490"
    schedules = ("ddpm", "vp", "vp_cosine", "subvp", "ve", "edm", "flow")
    share = 0.5

    keep: float = (
        0.25  # the subspace's dimensions, as a share of the data's: images of half the side; 1 is all
    )
    switch: float = 2.0  # sigma / alpha above which the diffusion is in the subspace
    eta: float = 0.0  # 1 is DDPM with the posterior variance
    spacing: str = "time"

    def build(self, base: Denoiser, data, nfe: int) -> nn.Module:
        model = nn.ModuleDict({"denoiser": base})
        if self.keep < 1:
            model["subspace"] = space = Subspace(data, self.keep)
            scale = float(space.down(data.scale(data.train[:10_000])).std())
            net = net_of(space.sub)
            model["small"] = Denoiser(net, base.schedule, space.sub, "F", scale, base.known)
        return model

    def train(self, model: nn.Module, base: Denoiser, data, images: int, nfe: int) -> None:
        if self.keep == 1:
            return
        space, small = model["subspace"], model["small"]
        most, least = -float(small.schedule.lam(small.schedule.t_max)), math.log(self.switch)

        def loss(x0: Tensor, generator: torch.Generator) -> Tensor:
            y0 = space.down(x0)
            place = torch.rand(len(x0), generator=generator, device=generator.device).double()
            r = torch.exp(least + place * (most - least)).to(x0.device)
            y = y0 + rowwise(r, y0) * noise_like(y0, generator)
            error = (small.at(y, torch.ones_like(r), r).x0 - y0).square().flatten(1).mean(1)
            return error / unit(r, small.sigma_data).to(error)

        fit(loss, small, data, images, batch=128, lr=2e-3)

    def start(self, model: nn.Module, n: int, generator: torch.Generator, device: str = "cpu") -> Tensor:
        return model["denoiser"].prior(n, generator, device)

    def sample(self, model: nn.Module, x: Tensor, nfe: int) -> Tensor:
        base = model["denoiser"]
        schedule, times = base.schedule, base.schedule.steps(nfe, self.spacing, end="zero")
        hidden = int((-schedule.lam(times[:-1]) >= math.log(self.switch)).sum())
        if self.keep < 1 and hidden > 1:
            space, noise = model["subspace"], x / float(schedule.sigma(schedule.t_max))
            y = ancestral(space.down(x), times[:hidden], generalised(model["small"], self.eta))
            s, times = times[hidden - 1], times[hidden - 1 :]
            x = space.lifted(y, noise, schedule.alpha(s), schedule.sigma(s))
        return ancestral(x, times, generalised(base, self.eta))
