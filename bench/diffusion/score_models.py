"""What the methods share that train a score for its likelihood: the model, what is asked of it, and the
weighted denoising losses.

For every Gaussian process the likelihood weighting g(t)^2 of the score's error, with time drawn in proportion
to g^2 / sigma^2, is the squared error of the noise at half log-SNRs drawn evenly: g^2 dt / sigma^2 is 2
dlambda.
"""

import torch
from torch import Tensor, nn

from bench.diffusion.bounds import continuous_bound
from bench.diffusion.denoiser import Denoiser, Prediction, noise_like, untrained
from bench.diffusion.dequantise import dequantiser
from bench.diffusion.likelihood import flow_nll
from bench.diffusion.schedule import Schedule
from bench.diffusion.steps import ancestral, generalised


class ScoreModel(nn.Module):
    """A denoiser of data made continuous, and what makes data on levels so."""

    def __init__(self, denoiser: Denoiser, spread: nn.Module):
        super().__init__()
        self.denoiser, self.spread = denoiser, spread

    def prior(self, n: int, generator: torch.Generator | None = None, device="cpu") -> Tensor:
        return self.denoiser.prior(n, generator, device)

    def flow_terms(self, x: Tensor, nfe: int) -> dict[str, Tensor]:
        """The flow's -log density of x by Hutchinson's trace, and what dequantisation costs: at most `nfe`
        rows a sample, 4 or more.
        """
        u, cost = self.spread(x)
        times = self.denoiser.schedule.steps(nfe // 4, "lambda").flip(0)
        return {"flow": flow_nll(self.denoiser, u, times), "dequantisation": cost}

    def bound_terms(self, x: Tensor, nfe: int) -> dict[str, Tensor]:
        """The variational bound with infinitely many steps, from `nfe` rows a sample."""
        u, cost = self.spread(x)
        return continuous_bound(self.denoiser, u, nfe) | {"dequantisation": cost}

    def sampled(self, x: Tensor, nfe: int, t_min: float) -> Tensor:
        """Samples along the flow by DDIM's steps, even in lambda, to t_min and from there to the mean."""
        schedule = self.denoiser.schedule.begun(t_min)
        times = schedule.steps(nfe, "lambda", end="zero")
        return ancestral(x, times, generalised(self.denoiser, 0.0))


def score_model(data, schedule: Schedule, dequantisation: str, form: str = "F") -> ScoreModel:
    """A new ScoreModel for `data` under a schedule that begins where its likelihood is told."""
    denoiser = untrained(data, form=form, schedule=schedule)
    first = denoiser.schedule.t_min
    deviation = float(denoiser.schedule.sigma(first) / denoiser.schedule.alpha(first))
    return ScoreModel(denoiser, dequantiser(dequantisation, data, deviation))


def evenly(n: int, generator: torch.Generator) -> Tensor:
    """n numbers even over [0, 1), float64 on the CPU."""
    return torch.rand(n, generator=generator, device=generator.device).double().cpu()


def span(schedule: Schedule, first: float | Tensor | None = None) -> Tensor:
    """How far the half log-SNR goes from t_max to `first` (t_min), a time or several."""
    return schedule.lam(schedule.t_min if first is None else first) - schedule.lam(schedule.t_max)


def even_times(
    schedule: Schedule, n: int, generator: torch.Generator, first: float | Tensor | None = None
) -> Tensor:
    """n times at which the half log-SNR is even between that of t_max and that of `first` (t_min), a time or
    one for each.
    """
    return schedule.time(schedule.lam(schedule.t_max) + span(schedule, first) * evenly(n, generator))


def noise_error(
    denoiser: Denoiser, x0: Tensor, t: Tensor, generator: torch.Generator
) -> tuple[Tensor, Prediction]:
    """eps - eps(x_t) of the shape of x0, for x0 noised at times t (n,), and the prediction."""
    eps = noise_like(x0, generator)
    out = denoiser(denoiser.noised(x0, t, eps), t)
    return eps - out.eps, out
