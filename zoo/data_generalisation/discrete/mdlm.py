"""MDLM: masked diffusion in continuous time, whose bound is a weighted mean of masked-token cross-entropies.

A token is masked by the time t with probability 1 - alpha_t. The network gives a mask no probability and
leaves what is seen as it is (the paper's SUBS), so that the bound, with infinitely many steps, is (eq. 10)

    -log P(x_0) <= integral over t of (-alpha'_t / (1 - alpha_t)) E[sum over masks of -log p(x_0 | x_t)] dt,

which for alpha_t = 1 - t has the weight 1/t. It is estimated at one place u in each of as many equal parts
of [0, 1] as the budget has evaluations, the time being u^2: at even times, as in training, the few masks of a
small t would weigh so much that the estimate had an infinite variance. A step from s to t fills each mask
with probability (s - t) / s. The network is not told the time, so a sequence that a step left as it was needs
no new evaluation: sampling spends no more than the budget, and often less.
"""

from itertools import pairwise

import torch
from torch import Tensor

from bench.diffusion.categorical import Mixing, draw
from bench.diffusion.tokens import TokenDenoiser, pieces, token_denoiser
from bench.diffusion.training import fit
from bench.method import Method


class MDLM(Method):
    """MDLM"""

    paper = "arXiv:2406.07524"
    base = None
    kinds = {"tokens"}
    schedules = ()
    likelihood = "elbo"
    dequantise = "none"
    share = 0.35

    soonest: float = 1e-3  # the least time that is trained on
    learned: bool = False  # a network where the exact denoiser is known

    def build(self, base: None, data, nfe: int) -> TokenDenoiser:
        kernel = Mixing(data.levels, keep=lambda t: 1 - t, masked=lambda t: t)
        return token_denoiser(data, kernel, learned=self.learned)

    def train(self, model: TokenDenoiser, base: None, data, images: int, nfe: int) -> None:
        def loss(x0: Tensor, generator) -> Tensor:
            n = len(x0)
            spread = (torch.arange(n) + torch.rand(n).double()) / n  # one in each part: less noise
            return self.term(model, x0, self.soonest + (1 - self.soonest) * spread) / x0[0].numel()

        if not model.exact:
            fit(loss, model, data, images, lr=2e-3, at_once=model.at_once)

    def sample(self, model: TokenDenoiser, x: Tensor, nfe: int) -> Tensor:
        return torch.cat([self.filled(model, piece, nfe) for piece in pieces(x, model.kernel.states)])

    def filled(self, model: TokenDenoiser, x: Tensor, nfe: int) -> Tensor:
        p, stale = None, torch.ones(len(x), dtype=torch.bool, device=x.device)
        for s, t in pairwise(torch.linspace(1, 0, nfe + 1, dtype=torch.float64).tolist()):
            masked = x == model.kernel.levels
            stale &= masked.flatten(1).any(1)
            if bool(stale.any()):
                found = model(x[stale], 0.0).exp()
                p = found.new_zeros(*x.shape, model.kernel.levels) if p is None else p
                p[stale] = found
            chosen = masked & (torch.rand(x.shape, device=x.device) < (s - t) / s)
            x = torch.where(chosen, draw(p), x)
            stale = chosen.flatten(1).any(1)
        return x

    def nll(self, model: TokenDenoiser, x: Tensor, nfe: int) -> Tensor:
        found = []
        for piece in pieces(x, model.kernel.states):
            places = (torch.arange(nfe)[:, None] + torch.rand(nfe, len(piece)).double()) / nfe
            terms = (2 * u.to(x.device) * self.term(model, piece, u**2) for u in places)
            found.append(sum(terms) / nfe)
        return torch.cat(found)

    def term(self, model: TokenDenoiser, x0: Tensor, t: Tensor) -> Tensor:
        """(N,) nats: the integrand of the bound at times t (N,)."""
        x = model.kernel.noised(x0, t)
        own = model(x, 0.0).gather(-1, x0[..., None])[..., 0]
        return -torch.where(x == model.kernel.levels, own, 0.0).flatten(1).sum(1) / t.to(own)
