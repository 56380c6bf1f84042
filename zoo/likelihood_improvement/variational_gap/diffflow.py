"""DiffFlow: the forward process is learned as well as the backward one, so that few steps are enough.

Forwards and backwards are chains of K normal steps with learned means (section 3),

    x_{k+1} = x_k + f(x_k) dt + g dw        x_k = x_{k+1} - [f - g^2 s](x_{k+1}) dt + g dw,

and both descend the divergence of their paths, of which the bound of -log p(x_0) is what depends on them:

    -log p(x_K) + sum_k [log q(x_{k+1} | x_k) - log p(x_k | x_{k+1})].

The linear part of the drift is the schedule's, taken exactly from step to step; the forward network adds to
the mean, in units of the step's noise, and begins at zero, where the forward process is the schedule's own.
The backward drift is one denoiser's, its deviation one number a step, both learned. A step of the bound costs
an evaluation of each, so K is half of the NFE; sampling costs K. Training goes through all K steps, hence the
small share of images. `drift` False leaves the forward process as it is.
"""

import torch
from torch import Tensor, nn

from bench.diffusion.counting import Counted
from bench.diffusion.covariance import unit
from bench.diffusion.denoiser import Denoiser, noise_like, untrained
from bench.diffusion.likelihood import bin_log_density, normal_log_prob
from bench.diffusion.networks import MLP, image_net
from bench.diffusion.schedule import SCHEDULES
from bench.diffusion.steps import posterior
from bench.diffusion.training import fit
from bench.method import Method


def silent(net: nn.Module) -> nn.Module:
    """The network, its last layer set to zero: it says nothing before it is trained."""
    last = [layer for layer in net.modules() if isinstance(layer, nn.Linear | nn.Conv2d)][-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return net


class Chains(nn.Module):
    """The networks of both chains, forward drift and backward denoiser, over rising times from 0, and what
    the backward deviations are of those that they would be if the data were normal.
    """

    def __init__(self, drift: nn.Module, denoiser: Denoiser, steps: int):
        super().__init__()
        self.drift, self.denoiser = Counted(silent(drift)), denoiser
        times = torch.linspace(0, denoiser.schedule.t_max, steps + 1, dtype=torch.float64)
        self.register_buffer("times", times)
        self.log_scale = nn.Parameter(torch.zeros(steps))

    def prior(self, n: int, generator: torch.Generator | None = None, device="cpu") -> Tensor:
        return self.denoiser.prior(n, generator, device)

    def ahead(self, x: Tensor, k: int, learned: bool) -> tuple[Tensor, Tensor]:
        """Mean and variance of q(x_{k+1} | x_k = x)."""
        schedule, (t, s) = self.denoiser.schedule, self.times[k : k + 2]
        alpha, variance = schedule.alpha(t), posterior(schedule, s, t).forward
        mean = (schedule.alpha(s) / alpha).to(x) * x
        if learned:
            scale = torch.sqrt(alpha**2 * self.denoiser.sigma_data**2 + schedule.sigma(t) ** 2)
            lam = schedule.lam(t).clamp(max=self.denoiser.known[1])
            mean = mean + variance.sqrt().to(x) * self.drift(x / scale.to(x), lam.to(x).expand(len(x)))
        return mean, variance

    def back(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Mean and variance of p(x_k | x_{k+1} = x)."""
        schedule, (t, s) = self.denoiser.schedule, self.times[k : k + 2]
        q = posterior(schedule, s, t)
        known = unit(schedule.sigma(s) / schedule.alpha(s), self.denoiser.sigma_data)
        mean = q.on_x.to(x) * x + q.on_x0.to(x) * self.denoiser(x, s).x0
        return mean, (q.variance + q.on_x0**2 * known) * (2 * self.log_scale[k].double()).exp()

    def bound(self, x0: Tensor, learned: bool, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The terms of the bound of -log p(x0), (N,) nats each, along one path of the forward chain."""
        x, total = x0, {"diffusion": x0.new_zeros(len(x0), dtype=torch.float64)}
        for k in range(len(self.times) - 1):
            mean, variance = self.ahead(x, k, learned)
            noise = torch.randn_like(x) if generator is None else noise_like(x, generator)
            last, x = x, mean + variance.sqrt().to(x) * noise
            total["diffusion"] = total["diffusion"] + normal_log_prob(x, mean.double(), variance)
            mean, variance = self.back(x, k)
            if k == 0 and self.denoiser.levels:
                total["reconstruction"] = -bin_log_density(last, mean, variance, self.denoiser.levels)
            else:
                name = "diffusion" if k else "reconstruction"
                total[name] = total.get(name, 0) - normal_log_prob(last, mean.double(), variance)
        sigma = self.denoiser.schedule.sigma(self.times[-1])
        return {"prior": -normal_log_prob(x, 0.0, sigma**2)} | total


class DiffFlow(Method):
    """DiffFlow"""

    paper = "arXiv:2110.07579"
    base = None
    schedules = ("vp", "subvp", "vp_cosine")
    least = 2
    per_nfe = True
    share = 0.1
    likelihood = "elbo"
    dequantise = "none"

    drift: bool = True  # learn the forward process too
    lr: float = 1e-3

    def build(self, base: None, data, nfe: int) -> Chains:
        denoiser = untrained(data, schedule=SCHEDULES[self.schedule or self.schedules[0]]())
        drift = image_net(data.shape) if data.kind == "image" else MLP(data.dim)
        return Chains(drift, denoiser, nfe // 2)

    def train(self, model: Chains, base: None, data, images: int, nfe: int) -> None:
        def loss(x0: Tensor, generator: torch.Generator) -> Tensor:
            return (sum(model.bound(x0, self.drift, generator).values()) / data.dim).float()

        fit(loss, model, data, images, batch=32, lr=self.lr, clip=10.0)

    def sample(self, model: Chains, x: Tensor, nfe: int) -> Tensor:
        for k in reversed(range(len(model.times) - 1)):
            mean, variance = model.back(x, k)
            x = mean + variance.sqrt().to(x) * torch.randn_like(x) if k else mean
        return x

    def nll(self, model: Chains, x: Tensor, nfe: int) -> dict[str, Tensor]:
        return model.bound(x, self.drift)
