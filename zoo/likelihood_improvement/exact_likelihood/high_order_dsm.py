"""High-order denoising score matching: what a diffusion ODE's likelihood wants beside the score itself.

Matching the score bounds the likelihood of the SDE; the ODE's also depends on the errors of the score's first
and second derivatives. They are matched by denoising, with the targets' own errors bounded by the lower
order's. With e = eps - eps(x), held fixed, J = d eps(x) / dx and a Rademacher probe v the losses are

    second:  |v - sigma J v - (e.v) e|^2  and  (|v|^2 - sigma v.Jv - (e.v)^2)^2,
    third:   |sigma^2 grad(v.Jv) - (e.v)^2 e + (|v|^2 - sigma v.Jv) e + 2 (e.v) (v - sigma J v)|^2,

the lower orders in the third held fixed, each over the square of the dimension as in the paper's code (and
the mean over it), added to the likelihood-weighted first order. A model trained by the first order alone is
fine-tuned with them, as in the paper; here both are parts of one budget.
"""

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.diffusion.denoiser import Denoiser, noise_like, rowwise
from bench.diffusion.schedule import SCHEDULES
from bench.diffusion.score_models import ScoreModel, even_times, noise_error, score_model
from bench.diffusion.training import fit
from bench.method import Method


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each row, shaped to multiply them."""
    return rowwise((a * b).flatten(1).sum(1), a)


def losses(denoiser: Denoiser, x0: Tensor, t: Tensor, generator: torch.Generator, order: int) -> list[Tensor]:
    """The losses of the orders up to `order`, (N,) each, for x0 noised at times t (N,)."""
    eps = noise_like(x0, generator)
    v = torch.randint(0, 2, x0.shape, generator=generator, device=generator.device).to(x0) * 2 - 1
    dim, sigma = x0[0].numel(), rowwise(denoiser.schedule.sigma(t), x0)
    with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels have no second derivative
        x = denoiser.noised(x0, t, eps).requires_grad_()
        out = denoiser(x, t).eps
        # The transposed product: for a symmetric target its mean square is the same, and it costs one pass.
        (product,) = torch.autograd.grad(out, x, v, create_graph=True)
        trace = dot(product, v)
        bend = torch.autograd.grad(trace.sum(), x, create_graph=True)[0] if order > 2 else None
    e = (eps - out).detach()
    along = dot(e, v)
    second = v - sigma * product
    row = (second - along * e).square().flatten(1).mean(1) / dim
    whole = (dim - sigma * trace - along**2).flatten(1)[:, 0].square() / dim**2
    found = [(eps - out).square().flatten(1).mean(1), row + whole]
    if bend is not None:
        rest = (dim - sigma * trace.detach() - along**2) * e + 2 * along * second.detach()
        found.append(((sigma**2 * bend + rest) / dim).square().flatten(1).mean(1))
    return found


class HighOrderDSM(Method):
    """High-order DSM"""

    paper = "arXiv:2206.08265"
    entry = "lu_high_order"
    base = None
    schedules = ("vp", "ve")
    least = 4
    likelihood = "ode"
    dequantise = "own"

    highest: int = 3  # order of the scores matched: 1, 2 or 3
    tuned: float = 0.2  # share of the images seen on which the higher orders are matched, at the end
    dequantisation: str = "uniform"
    t_min: float = 1e-5  # of training and likelihood
    last: float = 1e-3  # the last time of sampling
    lr: float = 2e-3
    lr_tuned: float = 2e-4

    def build(self, base: None, data, nfe: int) -> ScoreModel:
        if self.highest not in (1, 2, 3):
            raise ValueError(f"scores of order 1, 2 or 3 are matched, not {self.highest}")
        schedule = SCHEDULES[self.schedule or self.schedules[0]]()
        schedule.t_min = self.t_min
        return score_model(data, schedule, self.dequantisation)

    def train(self, model: ScoreModel, base: None, data, images: int, nfe: int) -> None:
        denoiser, schedule = model.denoiser, model.denoiser.schedule
        tuning = round(self.tuned * images)

        def first(x0: Tensor, generator: torch.Generator) -> Tensor:
            u, _ = model.spread(x0, generator)
            error, _ = noise_error(denoiser, u, even_times(schedule, len(u), generator), generator)
            return error.square().flatten(1).mean(1)

        def all_orders(x0: Tensor, generator: torch.Generator) -> Tensor:
            if self.highest == 1:
                return first(x0, generator)
            u, _ = model.spread(x0, generator)
            return sum(losses(denoiser, u, even_times(schedule, len(u), generator), generator, self.highest))

        fit(first, model, data, images - tuning, lr=self.lr)
        if tuning:
            fit(all_orders, model, data, tuning, lr=self.lr_tuned)

    def sample(self, model: ScoreModel, x: Tensor, nfe: int) -> Tensor:
        return model.sampled(x, nfe, self.last)

    def nll(self, model: ScoreModel, x: Tensor, nfe: int) -> dict[str, Tensor]:
        return model.flow_terms(x, nfe)

    def bound(self, model: ScoreModel, x: Tensor, nfe: int) -> dict[str, Tensor]:
        return model.bound_terms(x, nfe)
