"""Tokens written as bits -1 and 1, and the posterior mean of a known chain's bits under Gaussian noise."""

import math

import torch
from torch import Tensor, nn

from bench.diffusion.markov import MarkovChain


def codes(levels: int) -> Tensor:
    """(levels, bits) the bits of every token, the highest first, as -1 and 1."""
    bits = max(1, math.ceil(math.log2(levels)))
    places = torch.arange(bits - 1, -1, -1)
    return ((torch.arange(levels)[:, None] >> places) & 1).float() * 2 - 1


def bits_of(x: Tensor, table: Tensor) -> Tensor:
    """Tokens (N, C, H, W) or (N, L) as bits in the channels, (N, C bits, H, W) or (N, bits, L)."""
    found = table[x]
    return found.movedim(-1, 2).flatten(1, 2) if x.ndim == 4 else found.mT


def tokens_of(bits: Tensor, table: Tensor) -> Tensor:
    """The tokens whose bits are nearest: each bit by its sign, and codes past the last token as that."""
    count = table.shape[1]
    signs = bits.unflatten(1, (-1, count)).movedim(2, -1) if bits.ndim == 4 else bits.mT
    places = 2 ** torch.arange(count - 1, -1, -1, device=bits.device)
    return ((signs > 0) * places).sum(-1).clamp(max=len(table) - 1)


class ExactBits(nn.Module):
    """The perfect network of a chain's bits, which has no use for another estimate: x0 from the unit-variance
    input and the half log-SNR.
    """

    def __init__(self, chain: MarkovChain):
        super().__init__()
        self.chain = chain
        self.register_buffer("table", codes(chain.levels).double(), persistent=False)

    def forward(self, x_in: Tensor, lam: Tensor, shown: Tensor | None = None) -> Tensor:
        r = torch.exp(-lam.double())[:, None, None]
        z = (x_in.double() * (1 + r**2).sqrt()).mT
        evidence = (z @ self.table.T) / r**2  # all codes being equally long
        return (self.chain.posterior(evidence).exp() @ self.table).mT.to(x_in.dtype)
