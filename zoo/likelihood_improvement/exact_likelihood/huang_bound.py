"""The variational bound of a plug-in reverse SDE: what score matching maximises, told of the shared base.

Putting a score network s into the reverse of dy = f dy dt + g dw gives a generative SDE of its own, whose
density is bounded (the continuous-time ELBO, by Feynman-Kac and Girsanov) by

    -log p(x) <= E[-log p_T(y_T)] + integral of E[g^2 |s|^2 / 2 + g^2 div s - div f] dt,

for any forward process. The divergence is Hutchinson's. By Stein's identity the implicit form equals the
denoising one, an error of the noise, whose estimate wants no derivative. Over half log-SNRs lambda and with s
= -eps(y) / sigma the integrands are

    implicit: E[|eps(y)|^2 - 2 sigma div eps(y)] + D,        denoising: E|eps - eps(y)|^2.

The bound is of the data as the process has them at t_min; what is left to the data themselves is told by a
level's posterior probability, or the normal's density.

Samples are from the family of SDEs with these marginals, dx = [(1 - mix / 2) g^2 s - f] dt + sqrt(1 - mix) g
dw backwards in time, whose member `mix` = 0 is the one that is bounded and `mix` = 1 the flow.
"""

from itertools import pairwise

import torch
from torch import Tensor

from bench.diffusion.bounds import continuous_bound
from bench.diffusion.denoiser import Denoiser
from bench.method import Method


class HuangBound(Method):
    """Plug-in reverse SDE (CT-ELBO)"""

    paper = "arXiv:2106.02808"
    entry = "huang_var"
    likelihood = "elbo"
    dequantise = "none"

    form: str = "denoising"  # | "implicit"
    mix: float = 0.0  # of the flow in the SDE that is sampled: 0 is the reverse SDE, 1 the flow
    spacing: str = "lambda"

    def sample(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        if not 0 <= self.mix <= 1:
            raise ValueError(f"mix lies between 0 and 1; {self.mix:g} is no share of the flow")
        schedule = denoiser.schedule
        times = schedule.steps(nfe, self.spacing)
        for s, t in pairwise(times):
            f, g, h = schedule.drift(s), schedule.diffusion(s), s - t
            x = x - h * (f * x - (1 - self.mix / 2) * g**2 * denoiser(x, s).score)
            if t > times[-1]:  # the last step ends on its mean
                x = x + ((1 - self.mix) * h).sqrt() * g * torch.randn_like(x)
        return x

    def nll(self, denoiser: Denoiser, x: Tensor, nfe: int) -> dict[str, Tensor]:
        if self.form not in ("denoising", "implicit"):
            raise ValueError(f"the bound's form is 'denoising' or 'implicit', not {self.form!r}")
        return continuous_bound(denoiser, x, nfe, levels=denoiser.levels, implicit=self.form == "implicit")
