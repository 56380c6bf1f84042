"""D3PM with uniform noise: a chain that puts random tokens in the place of some, and its reverse.

A step keeps each token with probability 1 - beta_t and else draws it evenly from all K,

    Q_t = (1 - beta_t) I + (beta_t / K) 1 1^T,

and the reverse step is the network's prediction of x_0 carried through the chain (eq. 4). Trained on the
bound, term by term, plus `auxiliary` times the cross-entropy of that prediction (eq. 5). The schedule is the
cosine one (section 3.2). A budget below the chain's steps takes an even part of its times, in sampling and in
the bound.
"""

from torch import Tensor

from bench.diffusion.categorical import Mixing, cosine
from bench.diffusion.tokens import TokenDenoiser, ancestral, grid, step_bound, step_loss, token_denoiser
from bench.diffusion.training import fit
from bench.method import Method


class D3PMUniform(Method):
    """D3PM (uniform)"""

    paper = "arXiv:2107.03006"
    entry = "d3pm"
    base = None
    kinds = {"tokens"}
    schedules = ()
    likelihood = "elbo"
    dequantise = "none"
    share = 0.35

    steps: int = 1000
    auxiliary: float = 0.0  # lambda; the paper has no gain from it with this noise
    last: str = "mode"  # of sampling: the likeliest token, as in the paper's code, or a "draw"
    learned: bool = False  # a network where the exact denoiser is known

    def build(self, base: None, data, nfe: int) -> TokenDenoiser:
        return token_denoiser(data, Mixing(data.levels, cosine), others=True, learned=self.learned)

    def train(self, model: TokenDenoiser, base: None, data, images: int, nfe: int) -> None:
        if not model.exact:
            loss = lambda x0, generator: step_loss(model, x0, self.steps, self.auxiliary)
            fit(loss, model, data, images, lr=2e-3, at_once=model.at_once)

    def sample(self, model: TokenDenoiser, x: Tensor, nfe: int) -> Tensor:
        return ancestral(model, x, grid(self.steps, nfe), self.last)

    def nll(self, model: TokenDenoiser, x: Tensor, nfe: int) -> dict[str, Tensor]:
        return step_bound(model, x, grid(self.steps, nfe))
