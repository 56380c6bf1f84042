"""The diffusion model of 2015: a chain that erases an equal share of the signal in every step.

Its T steps x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) noise have a small fixed beta_1 and, where the paper
starts to learn the others, beta_t = 1 / (T - t + 1) (section 2.4.1), so that

    alpha_t^2 = (1 - beta_1) (T - t) / (T - 1)        is linear in t.

A reverse step is normal around the posterior mean with the network's x0 in it; its variance, in the paper one
more output of the network, is the beta_t that the paper's code starts it from. Unlike DDPM's, the step to x_0
is no network's but the forward step again, p(x_0 | x_1) = N(sqrt(1 - beta_1) x_1, beta_1) (appendix B), so
that T steps cost T - 1 evaluations; and samples are x_1, with its noise, as in the paper's code. The paper
writes the bound's first term as a difference of entropies (eq. 14), which is ours for data of unit variance.
"""

from itertools import pairwise

import torch
from torch import Tensor

from bench.diffusion.denoiser import Denoiser
from bench.diffusion.likelihood import step_bound
from bench.diffusion.steps import posterior
from bench.method import Method


class DPM2015(Method):
    """DPM (2015)"""

    paper = "arXiv:1503.03585"
    schedules = ("vp", "vp_cosine", "ddpm")  # any that preserves variance: the chain only picks its times
    likelihood = "elbo"
    dequantise = "none"

    beta_1: float = 1e-3  # "a small constant", to prevent overfitting; the value is the paper's code's

    def sample(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        for s, t in pairwise(self.times(denoiser, nfe + 1)[:-1]):
            mean, variance = self.reverse(denoiser, x, s, t)
            x = mean + variance.sqrt() * torch.randn_like(x)
        return x

    def nll(self, denoiser: Denoiser, x: Tensor, nfe: int) -> dict[str, Tensor]:
        times = self.times(denoiser, nfe + 1)
        return step_bound(denoiser, x, times, lambda x, s, t: self.reverse(denoiser, x, s, t))

    def times(self, denoiser: Denoiser, n: int) -> Tensor:
        """The times at which the schedule has the signal of the n-step chain, from t_max to 0."""
        share = torch.arange(n, dtype=torch.float64) / (n - 1)
        alpha_bar = (1 - self.beta_1) * share
        times = denoiser.schedule.time((alpha_bar / (1 - alpha_bar)).log() / 2)
        return torch.cat([times, times.new_zeros(1)])

    def reverse(self, denoiser: Denoiser, x: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of p(x_t | x_s)."""
        q = posterior(denoiser.schedule, s, t)
        if t == 0:
            return denoiser.schedule.alpha(s) * x, q.forward
        return q.on_x * x + q.on_x0 * denoiser(x, s).x0, q.forward
