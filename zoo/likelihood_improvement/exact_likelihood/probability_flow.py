"""Probability flow: the ODE with the diffusion's marginals, for sampling and for exact likelihood.

The flow dx/dt = f x - g^2 score / 2 (eq. 13) has the same marginals as the SDE. Samples are its solution
from t_max to t_min by the adaptive Runge-Kutta method of order 5(4) (section 4.3), and the log-density of
data is what the instantaneous change of variables says, log p_0(x) = log p_T(x_T) + integral of the
divergence (eq. 39), here along one ODE for every schedule, z = x / alpha against u = log(sigma / alpha), in
Runge-Kutta steps of order 4 so that the budget is kept: even ones, or as dense as the adaptive method's own
are, as many as the tolerance wants and the budget holds. The trace of its Jacobian is exact, or Hutchinson's
or Hutch++'s, which several probes make better at no more evaluations.
"""

import torch
from torch import Tensor
from torchdiffeq import odeint

from bench.diffusion.denoiser import Denoiser
from bench.diffusion.likelihood import flow_estimates
from bench.diffusion.step_control import controlled_times
from bench.method import Method


class ProbabilityFlow(Method):
    """Probability flow (RK45)"""

    paper = "arXiv:2011.13456"
    entry = "score_sde"
    least = 32  # no tolerance takes fewer: the black box begins with small steps
    adaptive = True
    batchwise = True  # the step control sees the whole chunk
    likelihood = "ode"

    tolerance: float = 1e-5  # relative and absolute; found for the budget
    trace: str = "hutchinson"  # | "hutch++" | "exact", which costs one derivative per dimension
    probes: int = 1  # derivatives an evaluation, of an estimated trace; "hutch++" takes three or a multiple
    integration: str = "fixed"  # of the likelihood; "adaptive" takes its steps by the tolerance

    def sample(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        schedule = denoiser.schedule

        def velocity(t: Tensor, x: Tensor) -> Tensor:
            t = t.clamp(schedule.t_min, schedule.t_max)
            return schedule.drift(t) * x - schedule.diffusion(t) ** 2 / 2 * denoiser(x, t).score

        span = torch.tensor([schedule.t_max, schedule.t_min], dtype=torch.float64, device=x.device)
        return odeint(velocity, x, span, rtol=self.tolerance, atol=self.tolerance, method="dopri5")[-1]

    def nll(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor | dict[str, Tensor]:
        """With several estimates of a trace, the standard error that they leave a row is told with it."""
        if self.integration not in ("fixed", "adaptive"):
            raise ValueError(f"the integration is 'fixed' or 'adaptive', not {self.integration!r}")
        if self.integration == "adaptive":
            times = controlled_times(denoiser, x, nfe, self.tolerance)
        else:
            times = denoiser.schedule.steps(max(1, nfe // 4), "lambda").flip(0)
        estimates = flow_estimates(denoiser, x, times, self.trace, self.probes)
        nats = estimates.mean(0)
        if len(estimates) == 1:
            return nats
        return {"nll": nats, "stderr": estimates.std(0) / len(estimates) ** 0.5}
