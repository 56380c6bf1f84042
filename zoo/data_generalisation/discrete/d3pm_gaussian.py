"""D3PM with Gaussian noise: a chain that moves tokens to near levels, where those measure a quantity.

A step leads from level i to level j with probability (appendix A.2.3)

    [Q_t]_ij ~ exp(-4 |i - j|^2 / ((K - 1)^2 beta_t)),    i != j,

the rest being kept where it is, so that the even distribution is stationary. The reverse step is the
network's prediction of x_0 carried through the chain (eq. 4), a logistic distribution cut into levels where
the data is an image. Trained on the bound, term by term, plus `auxiliary` times the cross-entropy of that
prediction (eq. 5); beta_t is linear. A budget below the chain's steps takes an even part of its times, or
those between which the share of tokens kept in place falls evenly: better for letters, few of which move in
its first steps, and worse for images.
"""

import torch
from torch import Tensor

from bench.diffusion.categorical import Gaussian
from bench.diffusion.tokens import TokenDenoiser, ancestral, grid, step_bound, step_loss, token_denoiser
from bench.diffusion.training import fit
from bench.method import Method


class D3PMGaussian(Method):
    """D3PM (Gaussian)"""

    paper = "arXiv:2107.03006"
    entry = "d3pm"
    base = None
    kinds = {"tokens"}
    schedules = ()
    likelihood = "elbo"
    dequantise = "none"
    share = 0.35

    steps: int = 1000
    first: float = 1e-4  # beta_1 and beta_T
    final: float = 0.02
    auxiliary: float = 0.001  # lambda
    spacing: str = "time"  # | "kept": the times of a budget below the chain's steps
    logistic: bool = True  # the prediction of pixels; False leaves them any distribution
    last: str = "mode"  # of sampling: the likeliest token, as in the paper's code, or a "draw"
    learned: bool = False  # a network where the exact denoiser is known

    def build(self, base: None, data, nfe: int) -> TokenDenoiser:
        kernel = Gaussian(data.levels, torch.linspace(self.first, self.final, self.steps).double())
        return token_denoiser(data, kernel, others=True, logistic=self.logistic, learned=self.learned)

    def train(self, model: TokenDenoiser, base: None, data, images: int, nfe: int) -> None:
        if not model.exact:
            loss = lambda x0, generator: step_loss(model, x0, self.steps, self.auxiliary)
            fit(loss, model, data, images, lr=2e-3, at_once=model.at_once)

    def sample(self, model: TokenDenoiser, x: Tensor, nfe: int) -> Tensor:
        return ancestral(model, x, self.times(model, nfe), self.last)

    def nll(self, model: TokenDenoiser, x: Tensor, nfe: int) -> dict[str, Tensor]:
        return step_bound(model, x, self.times(model, nfe))

    def times(self, model: TokenDenoiser, nfe: int) -> Tensor:
        """Falling times from 1 to 0, nfe + 1 or less."""
        if self.spacing == "time" or nfe >= self.steps:
            return grid(self.steps, nfe)
        kept = model.kernel.whole.diagonal(dim1=1, dim2=2).mean(1).double().cpu()
        wanted = torch.linspace(float(kept[-1]), 1, nfe + 1, dtype=torch.float64)
        near = torch.searchsorted(-kept, -wanted).clamp(max=self.steps)
        near[0], near[-1] = self.steps, 0
        return near.unique().flip(0).double() / self.steps
