"""Euler's method on the probability flow, in the schedule's own time: the baseline of all ODE solvers.

The flow dx/dt = f x - g^2 score / 2 (eq. 13) has the marginals of the SDE. From time s to t < s,

    x_t = x_s + (t - s) (f_s x_s - g_s^2 score(x_s) / 2).

Unlike DDIM, which is also of first order, it spends its error on the linear term f x as well.
"""

from torch import Tensor

from bench.diffusion.denoiser import Denoiser
from bench.method import Method


class Euler(Method):
    """Euler (probability flow)"""

    paper = "arXiv:2011.13456"
    entry = "ode_baseline"
    schedules = ("vp", "subvp", "ve", "vp_cosine", "edm", "flow")
    # Even steps in time do not settle under EDM, where time is sigma.
    order = {"vp": 1, "subvp": 1, "ve": 1, "vp_cosine": 1, "flow": 1}

    spacing: str = "time"

    def sample(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        times = denoiser.schedule.steps(nfe, self.spacing)
        drifts, diffusions = denoiser.schedule.drift(times[:-1]), denoiser.schedule.diffusion(times[:-1])
        for s, t, f, g in zip(times, times[1:], drifts, diffusions):
            x = x + (t - s) * (f * x - g**2 / 2 * denoiser(x, s).score)
        return x
