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

from torch import Tensor

from bench.diffusion.covariance import LOSSES, by_head, chain_bound, noised, pixel, positive
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.networks import second_head
from bench.diffusion.steps import ancestral, clipped, posterior
from bench.diffusion.training import fit
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
    pixels: float = 2.0  # the noise drawn last changes no pixel by more levels in the mean; 0 does not clip
    hidden: int = 64  # width of the head
    loss: str = "relative"  # the paper's is "square"
    lr: float = 2e-3

    def build(self, base: Denoiser, data, nfe: int) -> Denoiser:
        return base.with_head(lambda width: second_head(width, base.shape, self.hidden))

    def train(self, model: Denoiser, base: Denoiser, data, images: int, nfe: int) -> None:
        def loss(x0: Tensor, generator) -> Tensor:
            eps, out, scale = noised(model, x0, generator)
            residual = (eps - out.eps) ** 2 / scale
            return LOSSES[self.loss](residual, positive(out.extra)).flatten(1).mean(1)

        # each image is seen twice, under a noise and its negative
        fit(loss, model, data, images // 2, batch=64, lr=self.lr, clip=10.0)

    def sample(self, model: Denoiser, x: Tensor, nfe: int) -> Tensor:
        times = model.schedule.steps(nfe, self.spacing, end="zero")
        return ancestral(x, times, lambda *at: self.reverse(model, *at), pixel(model, self.pixels))

    def nll(self, model: Denoiser, x: Tensor, nfe: int) -> dict[str, Tensor]:
        times = model.schedule.steps(nfe, self.spacing, end="zero")
        return chain_bound(model, x, times, lambda *at: self.reverse(model, *at))

    def reverse(self, model: Denoiser, x: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of p(x_t | x_s)."""
        q, out = posterior(model.schedule, s, t), model(x, s)
        x0 = clipped(out.x0, self.clip or None)
        return q.on_x * x + q.on_x0 * x0, q.variance + q.on_x0**2 * by_head(model, out)
