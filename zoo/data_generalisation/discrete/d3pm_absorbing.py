"""D3PM with an absorbing state: a chain that masks tokens one by one, undone by a network that fills them in.

A step masks each token with probability beta_t, and a mask stays one. With the mutual-information schedule,
beta_t = 1 / (T - t + 1) (section 3.2), a token is masked by the step t with probability t / T. The reverse
step is the network's prediction of x_0 carried through the chain (eq. 4). Trained on the bound, term by term,
plus `auxiliary` times the cross-entropy of that prediction (eq. 5). The mask is a state of its own; the
paper's is one for text, and the middle grey for images.
"""

from torch import Tensor

from bench.diffusion.categorical import Mixing
from bench.diffusion.tokens import TokenDenoiser, ancestral, grid, step_bound, step_loss, token_denoiser
from bench.diffusion.training import fit
from bench.method import Method


class D3PMAbsorbing(Method):
    """D3PM (absorbing)"""

    paper = "arXiv:2107.03006"
    entry = "d3pm"
    base = None
    kinds = {"tokens"}
    schedules = ()
    likelihood = "elbo"
    dequantise = "none"
    share = 0.35

    steps: int = 1000
    auxiliary: float = 0.001  # lambda; the paper's for images, and 0.01 for text
    last: str = "mode"  # of sampling: the likeliest token, as in the paper's code, or a "draw"
    learned: bool = False  # a network where the exact denoiser is known

    def build(self, base: None, data, nfe: int) -> TokenDenoiser:
        kernel = Mixing(data.levels, keep=lambda t: 1 - t, masked=lambda t: t)
        return token_denoiser(data, kernel, others=True, learned=self.learned)

    def train(self, model: TokenDenoiser, base: None, data, images: int, nfe: int) -> None:
        if not model.exact:
            loss = lambda x0, generator: step_loss(model, x0, self.steps, self.auxiliary)
            fit(loss, model, data, images, lr=2e-3, at_once=model.at_once)

    def sample(self, model: TokenDenoiser, x: Tensor, nfe: int) -> Tensor:
        return ancestral(model, x, grid(self.steps, nfe), self.last)

    def nll(self, model: TokenDenoiser, x: Tensor, nfe: int) -> dict[str, Tensor]:
        return step_bound(model, x, grid(self.steps, nfe))
