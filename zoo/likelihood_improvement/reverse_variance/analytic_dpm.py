"""Analytic-DPM: the K-step bound of a trained network with the reverse variance and the trajectory that make
it least, both in closed form.

With v the variance of DDPM's posterior from s to t and c the factor of x0 in its mean, the best variance that
is the same for all x_s is (Theorem 1)

    v + c^2 (sigma_s^2/alpha_s^2) (1 - E|eps(x_s)|^2 / d),    c = alpha_t (1 - e^{2 (lambda_s - lambda_t)}),

and a step then costs d/2 log(best variance / v): the cheapest K of them are found by dynamic programming
(section 4). It is Analytic-DDPM as its paper judges it by likelihood; the samples are drawn from the very
chain whose bound is told, and are the worse for it at few steps.
"""

from torch import Tensor

from bench.diffusion.covariance import MeanVariance, best_reverse, chain_bound, chosen
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.steps import ancestral
from bench.method import Method


class AnalyticDPM(Method):
    """Analytic-DPM (optimal trajectory)"""

    paper = "arXiv:2201.06503"
    schedules = ("ddpm", "vp", "vp_cosine", "subvp", "ve", "edm", "flow")
    likelihood = "elbo"
    dequantise = "none"

    clip: float = 0.0  # bound on x0 in each step; the paper's code clips images to 1, 0 is none
    knots: int = 60  # where the expectation is taken, even in lambda; the paper takes all its 1000 steps
    points: int = 256  # training data at each; the paper takes 10 to 50,000

    def build(self, base: Denoiser, data, nfe: int) -> MeanVariance:
        return MeanVariance(base, self.knots)

    def train(self, model: MeanVariance, base: Denoiser, data, images: int, nfe: int) -> None:
        model.estimate(*chosen(data, self.points))

    def sample(self, model: MeanVariance, x: Tensor, nfe: int) -> Tensor:
        return ancestral(x, model.best_times(nfe), best_reverse(model.base, model.of, self.clip))

    def nll(self, model: MeanVariance, x: Tensor, nfe: int) -> dict[str, Tensor]:
        reverse = best_reverse(model.base, model.of, self.clip)
        return chain_bound(model.base, x, model.best_times(nfe), reverse, even=False)
