"""Analytic-DDPM: ancestral sampling with the reverse variance that maximises the bound, in closed form.

The best variance of a step from s to t is the posterior's, v, plus the variance of x0 given x_s times the
square of its factor c in the mean,

    v + c^2 (sigma_s^2/alpha_s^2) (1 - E|eps(x_s)|^2 / d),    c = alpha_t (1 - e^{2 (lambda_s - lambda_t)}),

with the expectation estimated once on training data and the result kept within the bounds that the variances
of noise and data set. The noise drawn last changes no pixel by more than `pixels` levels in the mean. The
even trajectory is DDPM's; the optimal one minimises the sum of log(best variance / v) by dynamic programming.
"""

from torch import Tensor

from bench.diffusion.covariance import MeanVariance, best_reverse, chain_bound, chosen, pixel
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.steps import ancestral
from bench.method import Method


class AnalyticDDPM(Method):
    """Analytic-DDPM"""

    paper = "arXiv:2201.06503"
    entry = "analytic_dpm"
    schedules = ("ddpm", "vp", "vp_cosine", "subvp", "ve", "edm", "flow")
    likelihood = "elbo"
    dequantise = "none"

    trajectory: str = "even"  # "optimal" is the other, for the bound
    spacing: str = "time"  # of the even one
    clip: float = 0.0  # bound on x0 in each step; the paper's code clips images to 1, 0 is none
    pixels: float = 2.0  # the paper's for linear beta and CelebA, 1 for cosine and ImageNet; 0 does not clip
    knots: int = 60  # where the expectation is taken, even in lambda; the paper takes all its 1000 steps
    points: int = 256  # training data at each; the paper takes 10 to 50,000

    def build(self, base: Denoiser, data, nfe: int) -> MeanVariance:
        return MeanVariance(base, self.knots)

    def train(self, model: MeanVariance, base: Denoiser, data, images: int, nfe: int) -> None:
        model.estimate(*chosen(data, self.points))

    def sample(self, model: MeanVariance, x: Tensor, nfe: int) -> Tensor:
        reverse, last = best_reverse(model.base, model.of, self.clip), pixel(model.base, self.pixels)
        return ancestral(x, self.times(model, nfe), reverse, last)

    def nll(self, model: MeanVariance, x: Tensor, nfe: int) -> dict[str, Tensor]:
        reverse = best_reverse(model.base, model.of, self.clip)
        return chain_bound(model.base, x, self.times(model, nfe), reverse)

    def times(self, model: MeanVariance, nfe: int) -> Tensor:
        """nfe + 1 falling times, the last two t_min and 0."""
        if self.trajectory == "even":
            return model.base.schedule.steps(nfe, self.spacing, end="zero")
        return model.best_times(nfe)
