"""NPR-DDPM: ancestral sampling with a variance for each pixel and state that makes up for an imperfect mean.

A second head on the frozen network learns the squared residual of its noise prediction, E[(eps - eps(x_s))^2
| x_s]. It holds the noise's posterior variance and the prediction's own error, and is what the bound wants
where the mean is not perfect: a step from s to t has the variance

    v + c^2 (sigma_s^2/alpha_s^2) E[(eps - eps(x_s))^2 | x_s],

v that of DDPM's posterior and c = alpha_t (1 - e^{2 (lambda_s - lambda_t)}) the factor of x0 in its mean.
The head is read in units of what a normal's posterior would have, so that the regression is of one size at
every noise level, and by default regressed on by relative error; the paper's least squares has the same
minimum, but needs a far longer training to come as near to it where little variance is left.
"""

from functools import partial

from torch import Tensor

from bench.diffusion.covariance import (
    best_reverse,
    by_head,
    chain_bound,
    fit_head,
    headed,
    pixel,
    squared_residual,
)
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.steps import ancestral
from bench.method import Method


class NPRDDPM(Method):
    """NPR-DDPM"""

    paper = "arXiv:2206.07309"
    entry = "ext_analytic"
    schedules = ("ddpm", "vp", "vp_cosine", "subvp", "ve", "edm", "flow")
    likelihood = "elbo"
    dequantise = "none"
    share = 0.25

    spacing: str = "time"
    clip: float = 0.0  # bound on x0 in each step; the paper's code clips images to 1, 0 is none
    # The noise drawn last changes no pixel by more levels in the mean; 0 does not clip. The paper has 2 for
    # linear beta and CelebA, 1 for cosine and ImageNet.
    pixels: float = 2.0
    hidden: int = 64  # width of the head
    loss: str = "relative"  # the paper's is "square"
    lr: float = 2e-3

    def build(self, base: Denoiser, data, nfe: int) -> Denoiser:
        return headed(base, self.hidden)

    def train(self, model: Denoiser, base: Denoiser, data, images: int, nfe: int) -> None:
        fit_head(squared_residual, model, data, images, self.loss, self.lr)

    def sample(self, model: Denoiser, x: Tensor, nfe: int) -> Tensor:
        times = model.schedule.steps(nfe, self.spacing, end="zero")
        reverse = best_reverse(model, partial(by_head, model), self.clip)
        return ancestral(x, times, reverse, pixel(model, self.pixels))

    def nll(self, model: Denoiser, x: Tensor, nfe: int) -> dict[str, Tensor]:
        times = model.schedule.steps(nfe, self.spacing, end="zero")
        return chain_bound(model, x, times, best_reverse(model, partial(by_head, model), self.clip))
