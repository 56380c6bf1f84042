"""Steps of a likelihood's integral chosen by a tolerance, inside a budget that is known beforehand.

The embedded pair of orders 5 and 4 goes over a few rows with its own step control. All rows then take fixed
steps as dense as its own were, as many as it took for the tolerance, or as the budget still holds: their
density is the control's at any tolerance, since every step's error is of one order.
"""

import math

import torch
from torch import Tensor
from torchdiffeq import odeint

from bench.diffusion.denoiser import Denoiser
from bench.diffusion.grids import resampled
from bench.diffusion.likelihood import divergence, drift, probes_for

PILOTS = 32  # one row in so many is a pilot
SHARE = 0.2  # of the budget for pilots, at most


class Spent(Exception):
    """The pilots have had what they may have."""


class Recorder:
    """The flow with its divergence in u = log(sigma / alpha), for torchdiffeq; keeps the steps accepted."""

    def __init__(self, denoiser: Denoiser, probe: Tensor, most: int):
        self.denoiser, self.probe, self.most = denoiser, probe, most
        self.calls, self.places = 0, []

    def __call__(self, u: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        if self.calls >= self.most:
            raise Spent
        self.calls += 1
        slope, trace = divergence(
            lambda y: drift(self.denoiser, y, u.double()), state[0], "hutchinson", self.probe
        )
        return slope, trace

    def callback_accept_step(self, u: Tensor, state, step: Tensor) -> None:
        self.places.append(float(u))


def controlled_times(denoiser: Denoiser, x: Tensor, nfe: int, tolerance: float) -> Tensor:
    """Rising times for `flow_estimates` of x (N, ...), as many as a budget of `nfe` rows a sample holds.

    The pilots are rows of x; where the tolerance is too dear for them it is taken ten times as large, until
    it is not. Where nothing can be afforded the times are even in lambda.
    """
    schedule, n = denoiser.schedule, len(x)
    pilots = x[: max(1, n // PILOTS)]
    first, last = (-float(schedule.lam(t)) for t in (schedule.t_min, schedule.t_max))
    span = torch.tensor([first, last], dtype=torch.float64, device=x.device)
    probe = probes_for(pilots, "hutchinson", 1)[0]
    start = (pilots, pilots.new_zeros(len(pilots), dtype=torch.float64))
    left, places = int(SHARE * nfe * n) // len(pilots), [first, last]
    spent = 0
    while left >= 20:
        recorder = Recorder(denoiser, probe, left // 2)
        try:
            odeint(recorder, start, span, rtol=tolerance, atol=tolerance, method="dopri5")
            spent, places = spent + recorder.calls, [*recorder.places, last]
            break
        except Spent:
            spent, left, tolerance = spent + recorder.calls, left - recorder.calls, 10 * tolerance
    affordable = (nfe - math.ceil(spent * len(pilots) / n)) // 4
    steps = affordable if len(places) == 2 else min(affordable, math.ceil(1.5 * (len(places) - 1)))
    times = schedule.time(-resampled(torch.tensor(places, dtype=torch.float64), max(1, steps) + 1))
    times[0], times[-1] = schedule.t_min, schedule.t_max
    return times
