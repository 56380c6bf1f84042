"""iDDPM's cosine schedule: a chain that destroys the data more slowly than DDPM's, trained and sampled alike.

Its marginals fall as a squared cosine (eq. 17; section 3.2)

    bar-alpha_t = f(t) / f(0),    f(t) = cos^2(pi/2 (t + s) / (1 + s)),    s = 0.008,

t = n/1000 being step n. The noise is predicted, with L_simple: the same weight for all steps. K steps are
those of the chain's reverse between K even times of it (section 4). What it is compared to is DDPM's linear
beta under the same training, `schedule=ddpm`; the learned variance of the same paper is `iddpm`. A network of
ours knows noise from half log-SNR -5.1 on, where the cosine's chain is at 0.996 of its time: the last of its
betas, which the paper clips at 0.999, are not reached.
"""

import torch
from torch import Tensor, nn

from bench.diffusion.covariance import chain_bound
from bench.diffusion.denoiser import Denoiser, noise_like, untrained
from bench.diffusion.schedule import SCHEDULES
from bench.diffusion.steps import ancestral, clipped, posterior
from bench.diffusion.training import fit
from bench.method import Method


class IDDPMCosine(Method):
    """iDDPM (L_simple)"""

    paper = "arXiv:2102.09672"
    entry = "iddpm"
    base = None
    schedules = ("vp_cosine", "ddpm")
    likelihood = "elbo"
    dequantise = "none"

    variance: str = "beta"  # of a step: the chain's own; "posterior" is that of the chain given x0
    clip: bool = True  # x0 to where levels lie, as in the paper's code; data without levels are left alone
    lr: float = 2e-3

    def build(self, base: nn.Module | None, data, nfe: int) -> Denoiser:
        return untrained(data, form="eps", schedule=SCHEDULES[self.schedule or self.schedules[0]]())

    def train(self, model: Denoiser, base: nn.Module | None, data, images: int, nfe: int) -> None:
        first, last = model.schedule.t_min, model.schedule.t_max

        def loss(x0: Tensor, generator: torch.Generator) -> Tensor:
            t = torch.rand(len(x0), generator=generator, device=generator.device, dtype=torch.float64)
            t = (first + (last - first) * t).to(x0.device)
            eps = noise_like(x0, generator)
            return ((model(model.noised(x0, t, eps), t).eps - eps) ** 2).flatten(1).mean(1)

        fit(loss, model, data, images, lr=self.lr)

    def sample(self, model: Denoiser, x: Tensor, nfe: int) -> Tensor:
        times = model.schedule.steps(nfe, "time", end="zero")
        return ancestral(x, times, lambda *at: self.reverse(model, *at))

    def nll(self, model: Denoiser, x: Tensor, nfe: int) -> dict[str, Tensor]:
        times = model.schedule.steps(nfe, "time", end="zero")
        return chain_bound(model, x, times, lambda *at: self.reverse(model, *at))

    def reverse(self, model: Denoiser, x: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of p(x_t | x_s)."""
        q = posterior(model.schedule, s, t)
        x0 = clipped(model(x, s).x0, 1.0 if self.clip and model.levels else None)
        return q.on_x * x + q.on_x0 * x0, q.forward if self.variance == "beta" else q.variance
