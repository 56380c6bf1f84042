"""Soft Truncation: the smallest diffusion time of the likelihood-weighted loss is drawn anew for every batch.

With the likelihood's weight nearly all of time's draws fall near the smallest time, and large times, on which
samples depend, are hardly trained. So each batch has smallest times tau of its own, drawn from

    p(tau) in proportion to 1 / tau^k between t_min and t_max,

and the loss is the bound's from there on, Z(tau) times the noise's squared error at times drawn in proportion
to g^2 / sigma^2 above tau. In expectation that is score matching with another weight, and for each tau it
bounds the likelihood of data diffused until tau.
"""

import torch
from torch import Tensor

from bench.diffusion.schedule import SCHEDULES, Schedule
from bench.diffusion.score_models import ScoreModel, even_times, evenly, noise_error, score_model, span
from bench.diffusion.training import fit
from bench.method import Method


class SoftTruncation(Method):
    """Soft Truncation"""

    paper = "arXiv:2106.05527"
    base = None
    schedules = ("vp", "subvp", "ve")
    least = 4
    likelihood = "ode"
    dequantise = "own"

    k: float = 1.0  # the paper's for VP; 2 for VE, and a larger k is nearer to a fixed truncation
    draws: int = 8  # taus in a batch; the paper's one is the same in the mean, for millions of batches
    dequantisation: str = "uniform"
    t_min: float = 1e-5  # of training and likelihood
    last: float = 1e-3  # the last time of sampling
    lr: float = 2e-3

    def build(self, base: None, data, nfe: int) -> ScoreModel:
        if self.dequantisation != "uniform":
            raise ValueError(f"soft truncation dequantises by 'uniform' noise, not {self.dequantisation!r}")
        schedule = SCHEDULES[self.schedule or self.schedules[0]]()
        schedule.t_min = self.t_min
        return score_model(data, schedule, self.dequantisation)

    def train(self, model: ScoreModel, base: None, data, images: int, nfe: int) -> None:
        schedule = model.denoiser.schedule

        def loss(x0: Tensor, generator: torch.Generator) -> Tensor:
            part = torch.arange(len(x0)) * self.draws // len(x0)
            taus = self.truncations(schedule, generator)[part]
            u, _ = model.spread(x0, generator)
            error, _ = noise_error(
                model.denoiser, u, even_times(schedule, len(x0), generator, taus), generator
            )
            # Z(tau), as a share of its largest
            return (span(schedule, taus) / span(schedule)).to(x0) * error.square().flatten(1).mean(1)

        fit(loss, model, data, images, lr=self.lr)

    def truncations(self, schedule: Schedule, generator: torch.Generator) -> Tensor:
        """The taus (draws,) of a batch, by the inverse of their distribution function."""
        place, low, high = evenly(self.draws, generator), schedule.t_min, schedule.t_max
        if self.k == 1:
            return low * (high / low) ** place
        power = 1 - self.k
        return (low**power + place * (high**power - low**power)) ** (1 / power)

    def sample(self, model: ScoreModel, x: Tensor, nfe: int) -> Tensor:
        return model.sampled(x, nfe, self.last)

    def nll(self, model: ScoreModel, x: Tensor, nfe: int) -> dict[str, Tensor]:
        return model.flow_terms(x, nfe)

    def bound(self, model: ScoreModel, x: Tensor, nfe: int) -> dict[str, Tensor]:
        return model.bound_terms(x, nfe)
