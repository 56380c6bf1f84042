"""A Markov chain over sequences of tokens, whose denoiser is exact under any noise that acts on each position
by itself: the forward-backward algorithm.

With e_i(k) = q(x_t^i | x_0^i = k) the evidence at position i, f_i and b_i the messages from its left and its
right,

    f_{i+1}(l) ~ sum_k f_i(k) e_i(k) A(k, l),    b_{i-1}(k) ~ sum_l A(k, l) e_i(l) b_i(l),

the posterior of x_0^i is f_i e_i b_i, and f_i b_i what the other positions say of it.
"""

import math

import torch
from torch import Tensor, nn


class MarkovChain(nn.Module):
    """The stationary chain of a transition matrix (K, K), positive and with rows that sum to 1, over
    sequences of `length` tokens 0..K-1. Computes in the matrix's precision.
    """

    def __init__(self, matrix: Tensor, length: int):
        super().__init__()
        if matrix.ndim != 2 or len(matrix) != matrix.shape[1] or not bool((matrix > 0).all()):
            raise ValueError("the transition matrix of a chain is square, and all its entries are positive")
        self.length = length
        self.register_buffer("matrix", matrix / matrix.sum(1, keepdim=True))
        self.register_buffer("initial", None, persistent=False)
        self.register_load_state_dict_post_hook(_derive)
        _derive(self)

    @property
    def levels(self) -> int:
        return len(self.matrix)

    @property
    def entropy(self) -> float:
        """Nats a token, the mean over the sequence."""
        first = -(self.initial * self.initial.log()).sum()
        rate = -(self.initial @ (self.matrix * self.matrix.log()).sum(1))
        return float(first + (self.length - 1) * rate) / self.length

    def log_prob(self, x: Tensor) -> Tensor:
        """(N,) nats: the log probability of sequences x (N, length)."""
        x = x.long()
        steps = self.matrix.log()[x[:, :-1], x[:, 1:]].sum(1)
        return self.initial.log()[x[:, 0]] + steps

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """(n, length) int64 exact draws; their uniform numbers come from the CPU."""
        noise = torch.rand(n, self.length, generator=generator, dtype=torch.float64).to(self.matrix)
        rows, found = self.initial.expand(n, -1), []
        for u in noise.T:
            found.append((rows.cumsum(1) <= u[:, None]).sum(1).clamp(max=self.levels - 1))
            rows = self.matrix[found[-1]]
        return torch.stack(found, 1)

    def posterior(self, log_evidence: Tensor, own: bool = True) -> Tensor:
        """(N, length, K) log marginals of each token of x_0, from the log evidence of its values at each
        position, up to a constant. `own` False: by the evidence of the other positions alone.
        """
        evidence = log_evidence.to(self.matrix)
        evidence = (evidence - evidence.amax(-1, keepdim=True)).exp()
        left = [self.initial.expand(len(evidence), -1)]
        for i in range(self.length - 1):
            left.append(_normal((left[-1] * evidence[:, i]) @ self.matrix))
        right = [torch.ones_like(left[0])]
        for i in range(self.length - 1, 0, -1):
            right.append(_normal((right[-1] * evidence[:, i]) @ self.matrix.T))
        found = torch.stack(left, 1) * torch.stack(right[::-1], 1)
        if own:
            found = found * evidence
        return _normal(found).clamp(min=1e-300).log()

    def ngrams(self, n: int) -> Tensor:
        """(K^n,) the probability of each run of n tokens, the first token's place the slowest to change."""
        found = self.initial
        for _ in range(n - 1):
            found = (found.view(-1, self.levels)[..., None] * self.matrix).flatten()
        return found


def peaked(levels: int, sharpness: float, seed: int) -> Tensor:
    """A transition matrix (levels, levels) in float64, of whole-number weights: equal on every machine."""
    noise = torch.randn(levels, levels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weights = (1000 * (sharpness * noise).softmax(1)).round() + 1
    return weights / weights.sum(1, keepdim=True)


def _normal(p: Tensor) -> Tensor:
    return p / p.sum(-1, keepdim=True)


def _derive(chain: MarkovChain, _keys=None) -> None:
    """The stationary distribution: what a high power of the matrix has in every row."""
    power = chain.matrix
    for _ in range(math.ceil(math.log2(4096))):
        power = _normal(power @ power)
    chain.initial = power[0]
