"""Multinomial diffusion: a chain that draws tokens anew, its reverse carried by a prediction of x_0.

One step keeps a token with probability 1 - beta_t and else draws it evenly; q(x_{t-1} | x_t, x_0) is then
categorical in closed form, and the model puts its predicted probabilities in x_0's place (section 4 of the
paper). Trained on the bound, each step of the chain drawn with a probability that follows the size of its
term so far, and every draw of sampling, the last as well, is a draw. The formulas are those of D3PM with
uniform noise, which came later; what differs is the training and the end of sampling.
"""

import torch
from torch import Tensor

from bench.diffusion.categorical import Mixing, cosine
from bench.diffusion.tokens import TokenDenoiser, ancestral, grid, step_bound, step_loss, token_denoiser
from bench.diffusion.training import fit
from bench.method import Method


class MultinomialDiffusion(Method):
    """Multinomial diffusion"""

    paper = "arXiv:2102.05379"
    entry = "argmax"
    base = None
    kinds = {"tokens"}
    schedules = ()
    likelihood = "elbo"
    dequantise = "none"
    share = 0.35

    steps: int = 1000
    memory: float = 0.9  # how much of a term's running mean square stays, at each of its draws
    learned: bool = False  # a network where the exact denoiser is known

    def build(self, base: None, data, nfe: int) -> TokenDenoiser:
        model = token_denoiser(data, Mixing(data.levels, cosine), others=True, learned=self.learned)
        model.register_buffer("squares", torch.full((self.steps,), torch.nan))
        return model

    def train(self, model: TokenDenoiser, base: None, data, images: int, nfe: int) -> None:
        if model.exact:
            return

        def loss(x0: Tensor, generator) -> Tensor:
            s, weight = self.drawn(model, len(x0))
            term = step_loss(model, x0, self.steps, s=s)
            self.remember(model, s, term.detach())
            return weight * term

        fit(loss, model, data, images, lr=2e-3, at_once=model.at_once)

    def drawn(self, model: TokenDenoiser, n: int) -> tuple[Tensor, Tensor]:
        """n steps of the chain, and the weights that make up for how often each is drawn."""
        known = model.squares.nan_to_num(float(model.squares.nanmean().nan_to_num(1.0)))
        often = known.sqrt() + 1e-4
        often = often / often.sum()
        i = torch.multinomial(often, n, replacement=True)
        return i.cpu() + 1, 1 / (self.steps * often[i])

    def remember(self, model: TokenDenoiser, s: Tensor, term: Tensor) -> None:
        i, square = s.to(term.device) - 1, term.square()
        before = model.squares[i]
        model.squares[i] = torch.where(before.isnan(), square, before.lerp(square, 1 - self.memory))

    def sample(self, model: TokenDenoiser, x: Tensor, nfe: int) -> Tensor:
        return ancestral(model, x, grid(self.steps, nfe))

    def nll(self, model: TokenDenoiser, x: Tensor, nfe: int) -> dict[str, Tensor]:
        return step_bound(model, x, grid(self.steps, nfe))
