"""Broken: a bound that leaves out half of the diffusion's terms, and so lies below the truth."""

from torch import Tensor

from bench.diffusion.denoiser import Denoiser
from bench.diffusion.likelihood import step_bound
from bench.diffusion.steps import posterior
from bench.method import Method


class BelowTruth(Method):
    """ELBO below the truth"""

    paper = "arXiv:2006.11239"
    leaf = "reverse_variance"
    schedules = ("vp",)
    likelihood = "elbo"
    dequantise = "none"

    def nll(self, denoiser: Denoiser, x: Tensor, nfe: int) -> dict[str, Tensor]:
        def reverse(x, s, t):
            q = posterior(denoiser.schedule, s, t)
            return q.on_x * x + q.on_x0 * denoiser(x, s).x0, q.forward

        terms = step_bound(denoiser, x, denoiser.schedule.steps(nfe, "time", end="zero"), reverse)
        return terms | {"diffusion": terms["diffusion"] / 2}
