"""Broken: the integral of the divergence with the wrong sign."""

from itertools import pairwise

from torch import Tensor

from bench.diffusion.denoiser import Denoiser
from bench.diffusion.likelihood import divergence, drift, normal_log_prob
from bench.method import Method


class TraceSign(Method):
    """Wrong sign in the trace"""

    paper = "arXiv:2011.13456"
    leaf = "exact_likelihood"
    schedules = ("edm",)
    likelihood = "ode"

    def nll(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        change = 0.0
        for u, v in pairwise(-denoiser.schedule.lam(denoiser.schedule.steps(nfe).flip(0))):
            slope, trace = divergence(lambda y, u=u: drift(denoiser, y, u), x, "exact", None)
            x, change = x + float(v - u) * slope, change - float(v - u) * trace
        return -normal_log_prob(x, 0.0, denoiser.schedule.sigma(denoiser.schedule.t_max) ** 2) - change
