"""iDDPM: a reverse variance that the network learns, between the two that DDPM chooses from.

The network has a second output v for each pixel, and a step's variance is (section 3.1)

    exp(v log beta + (1 - v) log beta~),    beta the chain's own variance, beta~ its posterior's,

trained with L_hybrid = L_simple + 0.001 L_vlb (eq. 16), where L_vlb moves only the variance; or with the
bound L_vlb itself, whose noisy terms are drawn with p_t in proportion to sqrt(E[L_t^2]) and weighted by
1 / p_t, the expectation over the last ten values of each (section 3.3); or with L_simple alone and the
variance beta. A chain of T steps is trained; the same network serves K of them, whose betas follow from the
bar-alphas that are left (section 4).
"""

import math

import torch
from torch import Tensor

from bench.diffusion.denoiser import Denoiser, Prediction, noise_like, rowwise, untrained
from bench.diffusion.likelihood import bin_log_density, normal_kl, normal_log_prob, step_bound
from bench.diffusion.schedule import cosine_table, linear_table
from bench.diffusion.steps import Posterior, ancestral, clipped, posterior
from bench.diffusion.training import fit
from bench.method import Method

TABLES = {"vp_cosine": cosine_table, "ddpm": linear_table}
OBJECTIVES = ("hybrid", "vlb", "simple")
HISTORY = 10  # values of each term that its importance is judged by
UNIFORM = 0.001  # of the draws, whatever the importance; the paper's code has it


class IDDPM(Method):
    """iDDPM"""

    paper = "arXiv:2102.09672"
    base = None
    schedules = ("vp_cosine", "ddpm")
    likelihood = "elbo"
    dequantise = "none"

    objective: str = "hybrid"  # | "vlb" | "simple"
    T: int = 4000  # steps of the chain that is trained
    vlb_weight: float = 0.001  # of L_vlb in L_hybrid, both a dimension, L_vlb in bits
    form: str = "eps"  # what the network tells of the mean
    clip: float = 1.0  # bound on x0 in each step where data have levels, as in the paper's code; 0 is none
    lr: float = 2e-3

    def build(self, base: None, data, nfe: int) -> Denoiser:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"the objective is one of {', '.join(OBJECTIVES)}, not {self.objective!r}")
        table = TABLES[self.schedule or self.schedules[0]](self.T)
        model = untrained(data, 1 if self.objective == "simple" else 2, self.form, table)
        # The chain ends at the last of its steps that has as much signal as our networks are told of.
        model.schedule.t_max = math.floor(model.schedule.t_max * self.T + 1e-6) / self.T
        if self.objective == "vlb":
            model.register_buffer("history", torch.zeros(self.length(model), HISTORY))
            model.register_buffer("seen", torch.zeros(self.length(model), dtype=torch.long))
        return model

    def length(self, model: Denoiser) -> int:
        """Steps of the chain."""
        return round(model.schedule.t_max * self.T)

    def train(self, model: Denoiser, base: None, data, images: int, nfe: int) -> None:
        def loss(x0: Tensor, generator: torch.Generator) -> Tensor:
            n, weight = self.drawn(model, len(x0), generator)
            eps = noise_like(x0, generator)
            out = model(model.noised(x0, n / self.T, eps), n / self.T)
            simple = ((eps - out.eps) ** 2).flatten(1).mean(1)
            if self.objective == "simple":
                return simple
            mean = out.x0 if self.objective == "vlb" else out.x0.detach()
            term = self.term(model, x0, out, mean, n)
            if self.objective == "vlb":
                remember(model, n, term.detach())
                return weight.to(term) * self.length(model) * term
            return simple + self.vlb_weight * self.length(model) * term

        fit(loss, model, data, images, lr=self.lr)

    def drawn(self, model: Denoiser, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The numbers (size,), float64, of the steps to train, from 1, and their weights, 1 in the mean."""
        device, length = generator.device, self.length(model)
        if self.objective != "vlb":
            n = torch.randint(1, length + 1, (size,), generator=generator, device=device)
            return n.cpu().double(), torch.ones(size)
        if int(model.seen.min()) < HISTORY:  # all alike, the least seen first: so none is waited for long
            order = (model.seen + torch.rand(length, generator=generator, device=device)).argsort()
            return order.repeat(math.ceil(size / length))[:size].cpu().double() + 1, torch.ones(size)
        share = model.history.square().mean(1).sqrt()
        share = (1 - UNIFORM) * share / share.sum() + UNIFORM / length
        index = torch.multinomial(share, size, replacement=True, generator=generator)
        return index.cpu().double() + 1, (1 / (length * share[index])).cpu()

    def term(self, model: Denoiser, x0: Tensor, out: Prediction, mean: Tensor, n: Tensor) -> Tensor:
        """The bound's term (N,) of the n-th steps in bits a dimension, where x0 is predicted by `mean`. The
        first step's is a level's probability, or by how much a density falls short of that of its least
        noise: a constant would count as importance.
        """
        s, t = n / self.T, (n - 1) / self.T
        q = posterior(model.schedule, s, t)
        floor = posterior(model.schedule, torch.tensor(2.0) / self.T, torch.tensor(1.0) / self.T).variance
        variance = self.variance(q, t, out.extra, floor)
        on_x0, own = (rowwise(a, x0.double()) for a in (q.on_x0, torch.where(t > 0, q.variance, floor)))
        kl = normal_kl(on_x0 * x0, own, on_x0 * mean, variance)
        if model.levels:
            last = -bin_log_density(x0, mean, variance, model.levels)
            least = math.log(2 / (model.levels - 1))
        else:
            last = -normal_log_prob(x0, mean.double(), variance)
            least = float(torch.log(2 * math.pi * math.e * floor)) / 2
        last = last - x0[0].numel() * least
        return torch.where((t > 0).to(kl.device), kl, last).float() / (x0[0].numel() * math.log(2))

    def variance(self, q: Posterior, t: Tensor, v: Tensor | None, floor: Tensor) -> Tensor:
        """Of steps that arrive at t: between the posterior's, `floor` where t is 0, and the chain's own. v:
        -1 to 1, as the network says it; None is 1.
        """
        if v is None:
            return q.forward
        low, high = (rowwise(a.log(), v.double()) for a in (torch.where(t > 0, q.variance, floor), q.forward))
        return torch.exp(low + (v.double() + 1) / 2 * (high - low))

    def sample(self, model: Denoiser, x: Tensor, nfe: int) -> Tensor:
        times = self.times(model, nfe)
        return ancestral(x, times, lambda *at: self.reverse(model, times, *at))

    def nll(self, model: Denoiser, x: Tensor, nfe: int) -> dict[str, Tensor]:
        times = self.times(model, nfe)
        return step_bound(model, x, times, lambda *at: self.reverse(model, times, *at))

    def times(self, model: Denoiser, nfe: int) -> Tensor:
        """nfe + 1 falling times, the last 0: even steps of the chain from its last to its first."""
        length = self.length(model)
        numbers = torch.linspace(length, 1, min(nfe, length), dtype=torch.float64).round()
        return torch.cat([numbers, torch.zeros(1, dtype=torch.float64)]) / self.T

    def reverse(
        self, model: Denoiser, times: Tensor, x: Tensor, s: Tensor, t: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance of p(x_t | x_s) in the chain of these times."""
        q, out = posterior(model.schedule, s, t), model(x, s)
        floor = posterior(model.schedule, times[-3], times[-2]).variance if len(times) > 2 else q.forward
        x0 = clipped(out.x0, self.clip if model.levels and self.clip else None)
        return q.on_x * x + q.on_x0 * x0, self.variance(q, t, out.extra, floor).to(x.dtype)


def remember(model: Denoiser, n: Tensor, terms: Tensor) -> None:
    """Put terms (N,) of the n-th steps in the place of the oldest of theirs."""
    for i, term in zip((n.long() - 1).tolist(), terms.tolist()):
        model.history[i, model.seen[i] % HISTORY] = term
        model.seen[i] += 1
