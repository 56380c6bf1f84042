"""ARDM: autoregression in any order, several tokens at a time where the budget asks for it.

For a random order of the D tokens the network tells each from those before it, all others being masked. Its
bound is a mean over places in the order (section 3 of the paper)

    -log P(x) <= D E_t [ 1/(D - t + 1) E sum over the tokens from place t on of -log p(x | those before t) ].

A budget of fewer evaluations than tokens draws them in groups, the tokens of one from the same evaluation.
With L_t the mean loss of a token told at place t, a group from place i to j costs (j - i) L_i (eq. 3), and
the grouping that costs least is found by dynamic programming (section 3.1); or all are equally long.
"""

import torch
from torch import Tensor

from bench.diffusion.categorical import Mixing, draw
from bench.diffusion.distillation import spent
from bench.diffusion.dynamic import cheapest_paths
from bench.diffusion.tokens import TokenDenoiser, pieces, token_denoiser
from bench.diffusion.training import fit
from bench.method import Method


class ARDM(Method):
    """ARDM"""

    paper = "arXiv:2110.02037"
    base = None
    kinds = {"tokens"}
    schedules = ()
    likelihood = "elbo"
    dequantise = "none"
    share = 0.35

    groups: str = "dynamic"  # | "even"
    knots: int = 64  # places at which L_t is estimated
    points: int = 64  # training data for it
    learned: bool = False  # a network where the exact denoiser is known

    def build(self, base: None, data, nfe: int) -> TokenDenoiser:
        kernel = Mixing(data.levels, keep=lambda t: 1 - t, masked=lambda t: t)
        model = token_denoiser(data, kernel, learned=self.learned)
        model.register_buffer("losses", torch.ones(data.dim))
        return model

    def train(self, model: TokenDenoiser, base: None, data, images: int, nfe: int) -> None:
        def loss(x0: Tensor, generator) -> Tensor:
            return self.term(model, x0, torch.randint(data.dim, (len(x0),)))

        if not model.exact:
            fit(loss, model, data, images, lr=2e-3, at_once=model.at_once)
        self.estimate(model, data)

    @torch.no_grad()
    def estimate(self, model: TokenDenoiser, data) -> None:
        """L_t on training data, at all places or at knots with lines between; never rising, as in truth."""
        device = model.losses.device
        knots = torch.linspace(0, data.dim - 1, min(self.knots, data.dim)).round().long()
        x0 = data.scale(data.train[: self.points].to(device))
        found = torch.stack([self.term(model, x0, knot.expand(len(x0))).mean() for knot in knots]).cpu()
        spent(len(knots) * len(x0))
        falling = found.cummin(0).values.double()
        place = torch.arange(data.dim)
        right = torch.searchsorted(knots, place).clamp(1, len(knots) - 1)
        share = (place - knots[right - 1]) / (knots[right] - knots[right - 1])
        model.losses.copy_(falling[right - 1].lerp(falling[right], share.double()))

    def term(self, model: TokenDenoiser, x0: Tensor, known: Tensor) -> Tensor:
        """(N,) nats: the mean loss of a token that is not among the `known` (N,) first of a random order."""
        place = order(x0)
        hidden = place >= known.view(-1, *[1] * (x0.ndim - 1)).to(x0.device)
        own = self.told(model, x0, hidden, 1 - known / x0[0].numel())
        return -torch.where(hidden, own, 0.0).flatten(1).sum(1) / (x0[0].numel() - known).to(own)

    def told(self, model: TokenDenoiser, x0: Tensor, hidden: Tensor, t: Tensor | float) -> Tensor:
        """(N, *shape) the log probability of every token, those `hidden` being masked."""
        x = torch.where(hidden, model.kernel.levels, x0)
        return model(x, t).gather(-1, x0[..., None])[..., 0]

    def bounds(self, model: TokenDenoiser, nfe: int) -> list[tuple[int, int]]:
        """The places at which groups begin and end."""
        dim = len(model.losses)
        count = min(nfe, dim)
        if self.groups == "even":
            ends = torch.linspace(0, dim, count + 1).round().long()
        else:
            place = torch.arange(dim + 1)
            losses = torch.cat([model.losses, model.losses[-1:]]).double().cpu()
            cost = (place[None] - place[:, None]) * losses[:, None]
            ends = cheapest_paths(cost, count)[1][-1]
        return list(zip(ends[:-1].tolist(), ends[1:].tolist()))

    def sample(self, model: TokenDenoiser, x: Tensor, nfe: int) -> Tensor:
        found, bounds = [], self.bounds(model, nfe)
        for piece in pieces(x, model.kernel.states):
            place = order(piece)
            for begin, end in bounds:
                p = model(piece, 1 - begin / len(model.losses)).exp()
                piece = torch.where((place >= begin) & (place < end), draw(p), piece)
            found.append(piece)
        return torch.cat(found)

    def nll(self, model: TokenDenoiser, x: Tensor, nfe: int) -> Tensor:
        found, bounds = [], self.bounds(model, nfe)
        for piece in pieces(x, model.kernel.states):
            place, total = order(piece), torch.zeros(len(piece), dtype=torch.float64, device=x.device)
            for begin, end in bounds:
                own = self.told(model, piece, place >= begin, 1 - begin / len(model.losses))
                total -= torch.where((place >= begin) & (place < end), own.double(), 0.0).flatten(1).sum(1)
            found.append(total)
        return torch.cat(found)


def order(x: Tensor) -> Tensor:
    """(N, *shape) the place of every token in a random order of each row's."""
    noise = torch.rand(x.shape, device=x.device).flatten(1)
    return noise.argsort(1).argsort(1).view(x.shape)
