"""i-DODE: diffusion ODEs trained for their likelihood as flows, and told it without a dequantisation gap.

The network gives the velocity, normalised to be of one size: v = alpha eps - sigma x0 for the
variance-preserving path, eps - x0 over sqrt(2) for the straight one. Time is the log-SNR, on which the
likelihood-weighted error of the noise is alpha^2 times that of the velocity (twice that for the straight
path); half log-SNRs are therefore drawn in proportion to alpha^2. Fine-tuning may add the second-order
error-bounded loss, for the variance-preserving path

    (sigma div v(x) - alpha (D - |v - v(x)|^2))^2 / D,

the error inside held fixed and the divergence Hutchinson's. Nothing is added to levels in training: at the
process's first time noise of a third of half a bin is there already, and the likelihood is told with that
same noise, cut to the bin (truncated-normal dequantisation).
"""

import math

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.diffusion.denoiser import Denoiser, noise_like
from bench.diffusion.likelihood import per_row
from bench.diffusion.schedule import SCHEDULES, Schedule
from bench.diffusion.score_models import ScoreModel, evenly, score_model
from bench.diffusion.training import fit
from bench.method import Method

FORM = {"vp": "v", "flow": "u"}  # the velocity of each path
NORM = {"v": 1.0, "u": math.sqrt(2)}  # what makes it of one size


def important(schedule: Schedule, places: Tensor, cells: int = 4096) -> Tensor:
    """Times whose half log-SNRs have a density in proportion to alpha^2, at places (n,) in [0, 1) of its
    distribution, which is summed up over `cells`.
    """
    low, high = (float(schedule.lam(t)) for t in (schedule.t_max, schedule.t_min))
    lam = torch.linspace(low, high, cells + 1, dtype=torch.float64)
    weight = schedule.alpha(schedule.time((lam[1:] + lam[:-1]) / 2)) ** 2
    reached = torch.cat([weight.new_zeros(1), weight.cumsum(0) / weight.sum()])
    cell = (torch.searchsorted(reached, places, right=True) - 1).clamp(0, cells - 1)
    within = (places - reached[cell]) / (reached[cell + 1] - reached[cell])
    return schedule.time(lam[cell] + within * (lam[1] - lam[0]))


def mismatch(denoiser: Denoiser, t: Tensor, error: Tensor, trace: Tensor) -> Tensor:
    """What the second-order loss squares, (N,), 0 in the mean for the exact velocity: between the divergence
    `trace` (N,) of the velocity and the squared `error` (N,) of the normalised one.
    """
    dim, norm = math.prod(denoiser.shape), NORM[denoiser.form]
    alpha, sigma = (f(t).to(error.device) for f in (denoiser.schedule.alpha, denoiser.schedule.sigma))
    if denoiser.form == "v":
        return sigma * trace - alpha * (dim - error)
    return (sigma * trace - dim) / norm + norm * alpha * error


class IDODE(Method):
    """i-DODE"""

    paper = "arXiv:2305.03935"
    base = None
    schedules = ("vp", "flow")
    least = 4
    likelihood = "ode"
    dequantise = "own"

    first: float = 6.65  # half log-SNR of the first time, for 256 levels and data without levels
    tau: float = 3.02  # half a bin in deviations of the first noise: what 256 levels have at `first`
    end: float = -2.5  # half log-SNR of the last time
    tuned: float = (
        0.0  # share of the images seen, at the end, with the second-order loss too; the paper's 0.03
    )
    weight: float = 0.1  # of the second order
    dequantisation: str = "truncated_normal"  # | "uniform"
    lr: float = 2e-3
    lr_tuned: float = 2e-4

    def build(self, base: None, data, nfe: int) -> ScoreModel:
        name = self.schedule or self.schedules[0]
        first = -math.log(1 / (data.levels - 1) / self.tau) if data.levels else self.first
        whole = SCHEDULES[name]()
        whole.t_min = 1e-9
        return score_model(data, whole.narrowed((self.end, first)), self.dequantisation, FORM[name])

    def train(self, model: ScoreModel, base: None, data, images: int, nfe: int) -> None:
        tuning = round(self.tuned * images)
        fit(self.loss(model, False), model, data, images - tuning, lr=self.lr)
        if tuning:
            fit(self.loss(model, True), model, data, tuning, lr=self.lr_tuned)

    def loss(self, model: ScoreModel, second_order: bool):
        denoiser = model.denoiser
        schedule, norm = denoiser.schedule, NORM[denoiser.form]

        def loss(x0: Tensor, generator: torch.Generator) -> Tensor:
            n, eps = len(x0), noise_like(x0, generator)
            # One draw moves an even grid of places: the batch covers time.
            places = (evenly(1, generator) + torch.arange(n, dtype=torch.float64) / n) % 1
            t = important(schedule, places)
            with sdpa_kernel(SDPBackend.MATH) if second_order else torch.enable_grad():
                x = denoiser.noised(x0, t, eps).requires_grad_(second_order)
                out = denoiser(x, t).out
                first = ((denoiser.target(x0, eps, t) - out) / norm).square()
                if not second_order:
                    return first.flatten(1).mean(1)
                probe = (
                    torch.randint(0, 2, x.shape, generator=generator, device=generator.device).to(x) * 2 - 1
                )
                (product,) = torch.autograd.grad(out, x, probe, create_graph=True)
            gap = mismatch(denoiser, t, per_row(first.detach()), per_row(product * probe))
            return first.flatten(1).mean(1) + self.weight * (gap / x0[0].numel()).square().to(x0)

        return loss

    def sample(self, model: ScoreModel, x: Tensor, nfe: int) -> Tensor:
        return model.sampled(x, nfe, 0.0)

    def nll(self, model: ScoreModel, x: Tensor, nfe: int) -> dict[str, Tensor]:
        return model.flow_terms(x, nfe)
