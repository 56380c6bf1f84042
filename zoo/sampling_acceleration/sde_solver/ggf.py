"""Gotta Go Fast: the stochastic improved Euler method with each sample's own steps.

With D(x, t) = f x - g^2 score(x) and the same noise in both, a step of size h tries

    x' = x - h D(x, t) + sqrt(h) g(t) noise,    x~ = x - h D(x', t-h) + sqrt(h) g(t-h) noise,

and accepts x'' = (x' + x~) / 2 where the error E = |(x' - x'') / max(eps_abs, eps_rel max(|x'|, |x'_last|))|,
root of the mean square over a sample, is at most 1. The next h is theta h E^{-r}, up to what is left. Every
try costs two evaluations, of the samples still on their way only; the end at t_min is denoised with one more.

A try that fails is repeated with new noise, so that noise that allows a larger error is favoured: in two
dimensions the variance comes out half too large and more, in hundreds this is not seen.
"""

import torch
from torch import Tensor

from bench.diffusion.denoiser import Denoiser, rowwise
from bench.method import Method


class GGF(Method):
    """Gotta Go Fast"""

    paper = "arXiv:2105.14080"
    schedules = ("vp", "ve", "subvp")
    least = 5  # the first step, the rest in a second one, and the denoising
    adaptive = True

    tolerance: float = 0.02  # eps_rel; found for the budget
    eps_abs: float = 2 / 256  # one level of 8-bit data on [-1, 1]
    h_first: float = 0.01
    theta: float = 0.9
    r: float = 0.9
    tries: int = 5000  # after which a sample is denoised where it is

    def sample(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        schedule = denoiser.schedule
        t = torch.full((len(x),), schedule.t_max, dtype=torch.float64)
        h = torch.full_like(t, self.h_first)
        x, last = x.clone(), x.clone()
        for _ in range(self.tries):
            rows = (t > schedule.t_min).nonzero()[:, 0]
            if not len(rows):
                break
            here = rows.to(x.device)
            new, trial, error = self.attempt(denoiser, x[here], last[here], t[rows], h[rows])
            good = error <= 1
            x[here[good]], last[here[good]] = new[good], trial[good]
            good, error = good.cpu(), error.double().cpu().nan_to_num(1e12).clamp(1e-12, 1e12)
            t[rows[good]] = (t - h)[rows[good]]
            h[rows] *= self.theta * error**-self.r
            # What is left, exactly: the last step must land on t_min.
            ends = h >= t - schedule.t_min - 1e-9
            h = torch.where(ends, t - schedule.t_min, h)
            t = torch.where(t - schedule.t_min < 1e-9, schedule.t_min, t)
        return denoiser(x, t).x0

    def attempt(
        self, denoiser: Denoiser, x: Tensor, last: Tensor, t: Tensor, h: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x'' and x' (N, *shape) of one step, and its error (N,)."""
        noise = torch.randn_like(x)

        def move(y: Tensor, t: Tensor) -> Tensor:
            f, g = (rowwise(a, x) for a in (denoiser.schedule.drift(t), denoiser.schedule.diffusion(t)))
            slope = f * y - g**2 * denoiser(y, t).score
            return rowwise(h.sqrt(), x) * g * noise - rowwise(h, x) * slope

        trial = x + move(x, t)
        new = (trial + x + move(trial, (t - h).clamp(min=denoiser.schedule.t_min))) / 2
        allowed = (self.tolerance * torch.maximum(trial.abs(), last.abs())).clamp(min=self.eps_abs)
        error = ((trial - new) / allowed).flatten(1).square().mean(1).sqrt()
        return new, trial, error
