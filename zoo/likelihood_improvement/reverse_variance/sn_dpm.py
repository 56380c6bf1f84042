"""SN-DPM: the K-step bound with a variance for each pixel and state, from a prediction of squared noise.

A second head on the frozen network learns E[eps^2 | x_s]; a step from s to t has the variance

    v + c^2 (sigma_s^2/alpha_s^2) (E[eps^2 | x_s] - eps(x_s)^2),

v that of DDPM's posterior and c = alpha_t (1 - e^{2 (lambda_s - lambda_t)}) the factor of x0 in its mean:
the best one if the mean is perfect. Where it is not, the head leaves out the mean's own error, and the bound
pays for it. It is SN-DDPM as a model of likelihood: the times are those of the least bound on training data,
by dynamic programming over its terms, and the samples are drawn from the very chain whose bound is told.
"""

from torch import Tensor

from bench.diffusion.covariance import Planned, chosen, fit_head, headed, squared_noise
from bench.diffusion.denoiser import Denoiser
from bench.method import Method


class SNDPM(Method):
    """SN-DPM (optimal trajectory)"""

    paper = "arXiv:2206.07309"
    entry = "ext_analytic"
    schedules = ("ddpm", "vp", "vp_cosine", "subvp", "ve", "edm", "flow")
    likelihood = "elbo"
    dequantise = "none"
    share = 0.25

    trajectory: str = "optimal"  # "even" in time is the other
    clip: float = 0.0  # bound on x0 in each step; the paper's code clips images to 1, 0 is none
    hidden: int = 64  # width of the head
    loss: str = "relative"  # the paper's is "square"
    lr: float = 2e-3
    candidates: int = 100  # times to choose from, even in lambda; the paper's code takes all its 1000 steps
    points: int = 64  # training data at each

    def build(self, base: Denoiser, data, nfe: int) -> Planned:
        return Planned(headed(base, self.hidden), self.candidates)

    def train(self, model: Planned, base: Denoiser, data, images: int, nfe: int) -> None:
        fit_head(squared_noise, model.base, data, images, self.loss, self.lr)
        model.plan(*chosen(data, self.points))

    def sample(self, model: Planned, x: Tensor, nfe: int) -> Tensor:
        return model.sampled(x, nfe, self.trajectory, self.clip)

    def nll(self, model: Planned, x: Tensor, nfe: int) -> dict[str, Tensor]:
        return model.bound(x, nfe, self.trajectory, self.clip)
