"""RK45: the probability flow by an adaptive Runge-Kutta method, each sample with steps of its own.

Dormand and Prince's pair of orders 5 and 4 on dx/dt = f x - g^2 score / 2 (eq. 13, section 4.3), from t_max
to t_min. A step is accepted if the difference of the two solutions, as the root mean square over a sample's
dimensions of

    error / (tolerance + tolerance max(|x_s|, |x_t|)),

is below 1, and the next is 0.9 error^(-1/5) times as long, between a fifth and ten times. A trial costs six
evaluations, accepted or not; the first slope and the first step cost two. The paper's black box takes a
whole batch for one system; here a sample does not depend on those beside it.
"""

import torch
from torch import Tensor

from bench.diffusion.denoiser import Denoiser, rowwise
from bench.method import Method

# Dormand & Prince 1980: places, stages (the last is the solution of order 5), its difference from order 4
C = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1)
A = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
E = (71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


class RK45(Method):
    """Score SDE (RK45)"""

    paper = "arXiv:2011.13456"
    entry = "score_sde"
    schedules = ("vp", "subvp", "ve", "vp_cosine", "edm", "flow")
    least = 20  # no tolerance takes fewer under any of the schedules
    adaptive = True

    tolerance: float = 1e-5  # relative and absolute; found for the budget

    def sample(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        t_min = denoiser.schedule.t_min
        t = torch.full((len(x),), denoiser.schedule.t_max, dtype=torch.float64)
        x, slope = x.clone(), velocity(denoiser, x, t)
        h = self.first_step(denoiser, x, t, slope)
        again = torch.zeros(len(x), dtype=torch.bool)  # rows whose last trial was rejected
        going = torch.arange(len(x))
        while len(going):
            rows = going.to(x.device)
            s, step = t[going], torch.minimum(h[going], t[going] - t_min)
            x_s, stages = x[rows], [slope[rows]]
            for c, a in zip(C, A):
                x_t = x_s - rowwise(step, x) * sum(w * k for w, k in zip(a, stages))
                stages.append(velocity(denoiser, x_t, (s - c * step).clamp(min=t_min)))
            error = rowwise(step, x) * sum(w * k for w, k in zip(E, stages))
            size = self.size(error, torch.maximum(x_s.abs(), x_t.abs()))
            accepted = size < 1
            rows, done = rows[accepted.to(rows.device)], going[accepted]
            x[rows], slope[rows] = x_t[accepted.to(x.device)], stages[-1][accepted.to(x.device)]
            t[done] = torch.where(step == s - t_min, t_min, s - step)[accepted]
            most = torch.where(accepted & ~again[going], 10.0, 1.0)
            h[going] = step * torch.minimum((0.9 * size**-0.2).clamp(min=0.2), most)
            again[going] = ~accepted
            if not bool((h[going] > 1e-12 * s).all()):
                raise ArithmeticError(
                    f"no step is short enough for the tolerance {self.tolerance:g}: ask for a larger one"
                )
            going = going[t[going] > t_min]
        return x

    def size(self, error: Tensor, x: Tensor) -> Tensor:
        """Root mean square of each row's error in units of what is tolerated at |x|: (N,) float64."""
        scaled = error.double() / (self.tolerance * (1 + x.abs().double()))
        return scaled.flatten(1).square().mean(1).sqrt().cpu()

    def first_step(self, denoiser: Denoiser, x: Tensor, t: Tensor, slope: Tensor) -> Tensor:
        """A first step (N,) that is about right (Hairer et al. 1993, section II.4); one evaluation."""
        span = t - denoiser.schedule.t_min
        slope_size = self.size(slope, x)
        trial = torch.minimum(0.01 * self.size(x, x) / slope_size, span)
        ahead = velocity(denoiser, x - rowwise(trial, x) * slope, t - trial)
        bend = self.size(ahead - slope, x) / trial
        step = (0.01 / torch.maximum(slope_size, bend)) ** 0.2
        return torch.stack([100 * trial, step, span]).amin(0)


def velocity(denoiser: Denoiser, x: Tensor, t: Tensor) -> Tensor:
    """dx/dt of the probability flow at x (N, ...) and times t (N,)."""
    f, g = denoiser.schedule.drift(t), denoiser.schedule.diffusion(t)
    return rowwise(f, x) * x - rowwise(g**2 / 2, x) * denoiser(x, t).score
