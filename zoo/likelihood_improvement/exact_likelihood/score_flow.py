"""ScoreFlow: score matching weighted so that it bounds the likelihood, and the flow's exact likelihood of it.

With the weight g(t)^2 the denoising loss is, up to what no training changes, an upper bound of -log p(x) for
the reverse SDE (theorem 3, in its denoising form)

    -log p(x) <= E[-log p_T(x_T)] + 1/2 integral of E[g^2 |score(x_t) - grad log q(x_t | x)|^2
                 - g^2 |grad log q(x_t | x)|^2 - 2 div f] dt.

Time is drawn in proportion to g^2 / sigma^2, which takes the weight's variance away and leaves the noise's
squared error. `nll` is the flow's likelihood, `bound` the bound with the paper's correction for the data's
own noise at t_min. Data on levels are spread uniformly over their bins, or by a flow that is learned together
with the score; the paper's runs learn it afterwards, and show the score the levels themselves, which 17
levels are too coarse for.
"""

import torch
from torch import Tensor

from bench.diffusion.likelihood import prior_kl
from bench.diffusion.schedule import SCHEDULES
from bench.diffusion.score_models import ScoreModel, even_times, evenly, noise_error, score_model, span
from bench.diffusion.training import fit
from bench.method import Method


class ScoreFlow(Method):
    """ScoreFlow"""

    paper = "arXiv:2101.09258"
    base = None
    schedules = ("vp", "subvp", "ve")
    least = 4
    likelihood = "ode"
    dequantise = "own"

    weighting: str = (
        "likelihood"  # | "original": the noise's squared error at even times, as before the paper
    )
    dequantisation: str = "uniform"  # | "variational"
    t_min: float = 1e-5  # of training and likelihood
    last: float = 1e-3  # the last time of sampling
    lr: float = 2e-3

    def build(self, base: None, data, nfe: int) -> ScoreModel:
        if self.weighting not in ("likelihood", "original"):
            raise ValueError(f"the weighting is 'likelihood' or 'original', not {self.weighting!r}")
        schedule = SCHEDULES[self.schedule or self.schedules[0]]()
        schedule.t_min = self.t_min
        return score_model(data, schedule, self.dequantisation)

    def train(self, model: ScoreModel, base: None, data, images: int, nfe: int) -> None:
        denoiser, schedule = model.denoiser, model.denoiser.schedule
        # A row's bound is `width` times its noise's squared error and what does not depend on the score.
        width = float(span(schedule))

        def loss(x0: Tensor, generator: torch.Generator) -> Tensor:
            u, cost = model.spread(x0, generator)
            if self.weighting == "likelihood":
                t = even_times(schedule, len(x0), generator)
            else:
                t = schedule.t_min + (schedule.t_max - schedule.t_min) * evenly(len(x0), generator)
            error, _ = noise_error(denoiser, u, t, generator)
            rest = (prior_kl(schedule, u) + cost) / (width * x0[0].numel())
            return error.square().flatten(1).mean(1) + (rest - rest.detach() if cost.requires_grad else 0)

        fit(loss, model, data, images, lr=self.lr)

    def sample(self, model: ScoreModel, x: Tensor, nfe: int) -> Tensor:
        return model.sampled(x, nfe, self.last)

    def nll(self, model: ScoreModel, x: Tensor, nfe: int) -> dict[str, Tensor]:
        return model.flow_terms(x, nfe)

    def bound(self, model: ScoreModel, x: Tensor, nfe: int) -> dict[str, Tensor]:
        return model.bound_terms(x, nfe)
