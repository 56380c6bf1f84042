"""VQ-Diffusion: an autoencoder writes the image in few codes of a codebook, and a discrete chain draws those.

The chain masks codes and replaces others by random ones (section 4.1 of the paper): by the time t a code is
still itself with probability 1 - t, a mask with `masked` t, and else drawn evenly. The network predicts the
posterior of x_0, from which a step is the mixture of the chain's posteriors; it is trained on the bound of
the chain's steps plus `auxiliary` times the cross-entropy. The paper draws images of a text; these are of
nothing. The autoencoder, whose share of the training is half, is no part of the NFE: its decoder runs once.
"""

import torch
from torch import Tensor, nn

from bench.diffusion.categorical import Mixing
from bench.diffusion.counting import Counted
from bench.diffusion.quantised import Codebook, Codes
from bench.diffusion.token_nets import CodeTokens
from bench.diffusion.tokens import TokenDenoiser, ancestral, grid, step_loss
from bench.diffusion.training import fit
from bench.method import Method


class VQDiffusion(Method):
    """VQ-Diffusion"""

    paper = "arXiv:2111.14822"
    base = None
    kinds = {"image"}
    schedules = ()
    share = 0.5

    steps: int = 100
    masked: float = 0.9  # of all codes at the end of the chain; the rest is random
    auxiliary: float = 0.0005
    codes: int = 64  # the paper has 2886, of images of 256 pixels a side

    def build(self, base: None, data, nfe: int) -> nn.Module:
        codebook = Codebook(data.shape, self.codes)
        kernel = Mixing(self.codes, keep=lambda t: 1 - t, masked=lambda t: self.masked * t)
        net = CodeTokens(codebook.side, self.codes, masks=True)
        prior = TokenDenoiser(net, kernel, (codebook.side, codebook.side))
        return nn.ModuleDict({"prior": prior, "codebook": Counted(codebook, role="extra")})

    def train(self, model: nn.Module, base: None, data, images: int, nfe: int) -> None:
        codebook, prior = model["codebook"].net, model["prior"]
        fit(codebook.loss, codebook, data, images // 2, batch=64, lr=2e-3)
        codebook.requires_grad_(False)

        def loss(x0: Tensor, generator) -> Tensor:
            return step_loss(prior, x0, self.steps, self.auxiliary)

        fit(loss, prior, Codes(codebook, data), images - images // 2, lr=2e-3)
        codebook.requires_grad_(True)

    def start(self, model: nn.Module, n: int, generator: torch.Generator, device: str = "cpu") -> Tensor:
        return model["prior"].prior(n, generator, device)

    def sample(self, model: nn.Module, x: Tensor, nfe: int) -> Tensor:
        return model["codebook"](ancestral(model["prior"], x, grid(self.steps, nfe)))
