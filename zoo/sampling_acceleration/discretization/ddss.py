"""DDSS: a sampler of few steps whose every coefficient is learned by gradients of sample quality.

The generalised Gaussian family (GGDM) draws the next state from all that came before it,

    x_{i+1} = sum over u <= i of m_{iu} x_u + c_i x0 + d_i noise.

With the true x0 for the network's each state is a_i x0 + w_i . (all noises drawn so far), where a and w
follow the same recursion; so the network is told that x_i has the scales a_i and |w_i|, and
learning coefficients learns times too. From DDIM's coefficients on, all are learned by descending the kernel
distance (KID) between samples and data through the whole sampler, reparametrised, with the network's
activations recomputed on the way back. The paper takes Inception's features; here they are the
pixels and what enters the base network's last layer, so that no extractor that measures has been trained on.
"""

import copy

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bench.diffusion import training
from bench.diffusion.counting import counting
from bench.diffusion.denoiser import Denoiser, noise_like
from bench.diffusion.distillation import spent
from bench.method import Method


class DDSS(Method):
    """DDSS (GGDM)"""

    paper = "arXiv:2202.05830"
    entry = "ddss_ggdm"
    schedules = ("ddpm", "vp", "vp_cosine", "subvp", "flow")
    per_nfe = True
    share = 0.1  # images are here the states shown to the network

    spacing: str = "time"  # of DDIM's grid, which learning starts from
    degree: int = 3  # of the polynomial kernel: KID's own; 1 compares means
    lam: float = 1.0  # the half log-SNR at which the base network is asked for features of clean data
    lr: float = 0.02  # divided by the steps

    def build(self, base: Denoiser, data, nfe: int) -> nn.Module:
        return Sampler(base, base.schedule.steps(nfe, self.spacing, end="zero"))

    def train(self, model: nn.Module, base: Denoiser, data, images: int, nfe: int) -> None:
        device = model.coefficients.on_x.device
        real = data.scale(data.train[:2048].to(device))
        with torch.no_grad():
            features = torch.cat([model.features(x, self.lam) for x in real.split(256)])
        mean, spread = features.mean(0), features.std(0) + 1e-2 * features.std()
        real = (features - mean) / spread
        kernel = lambda a, b: (a @ b.T / a.shape[1] + 1) ** self.degree
        without_itself = lambda k: (k.sum(1) - k.diagonal()) / (len(k) - 1)
        among_real = without_itself(kernel(real, real)).mean()

        def loss(x0: Tensor, generator: torch.Generator) -> Tensor:
            start = noise_like(x0, generator) * float(base.schedule.sigma(base.schedule.t_max))
            fake = (model.features(model(start), self.lam) - mean) / spread
            return without_itself(kernel(fake, fake)) - 2 * kernel(fake, real).mean(1) + among_real

        trajectories = max(1, images // nfe)
        with counting(model) as tallies:
            training.fit(loss, model.coefficients, data, trajectories, lr=self.lr / nfe)
        spent(tallies["nfe"].rows + trajectories + len(real))  # features pass by the counter

    def sample(self, model: nn.Module, x: Tensor, nfe: int) -> Tensor:
        return model(x)


class Coefficients(nn.Module):
    """m (K, K), of which the lower triangle is used, c (K,) and d (K,), as DDIM has them on K + 1 times."""

    def __init__(self, alpha: Tensor, sigma: Tensor):
        super().__init__()
        ratio = sigma[1:] / sigma[:-1]
        self.on_x = nn.Parameter(torch.diag(ratio).float())
        self.on_x0 = nn.Parameter((alpha[1:] - alpha[:-1] * ratio).float())
        self.deviation = nn.Parameter(torch.zeros(len(ratio)))


class Sampler(nn.Module):
    """A frozen copy of a denoiser with a sampler's coefficients."""

    def __init__(self, base: Denoiser, times: Tensor):
        super().__init__()
        self.base = copy.deepcopy(base).requires_grad_(False)
        alpha, sigma = base.schedule.alpha(times), base.schedule.sigma(times)
        self.coefficients = Coefficients(alpha, sigma)
        self.register_buffer("start", torch.stack([alpha[0], sigma[0]]))

    def prior(self, n: int, generator: torch.Generator | None = None, device="cpu") -> Tensor:
        return self.base.prior(n, generator, device)

    def forward(self, x: Tensor) -> Tensor:
        """Samples from starts x (N, *shape), in K evaluations."""
        on_x, on_x0, deviation = self.coefficients.parameters()
        states, count = [x], len(on_x0)
        drawn = torch.eye(count + 1, dtype=torch.float64, device=on_x.device)  # one row a noise
        scales, noises = [self.start[0]], [self.start[1] * drawn[0]]
        for i in range(count):
            alpha, sigma = self.within(scales[-1], noises[-1].norm())
            ask = lambda x, alpha, sigma: self.base.at(x, alpha, sigma).x0
            x0 = checkpoint(
                ask, states[-1], alpha, sigma, use_reentrant=False
            )  # no more than a call without grad
            noise = torch.randn_like(x)
            weights = on_x[i, : i + 1]
            states.append(sum(w * x for w, x in zip(weights, states)) + on_x0[i] * x0 + deviation[i] * noise)
            scales.append(sum(w * a for w, a in zip(weights, scales)) + on_x0[i])
            noises.append(sum(w * n for w, n in zip(weights, noises)) + deviation[i] * drawn[i + 1])
        return states[-1]

    def within(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The scales, moved to the nearest that the network knows."""
        lowest, highest = self.base.known
        sigma = torch.maximum(sigma, alpha * torch.tensor(-highest).exp())
        return torch.maximum(alpha, sigma * torch.tensor(lowest).exp()), sigma

    def features(self, x: Tensor, lam: float) -> Tensor:
        """What clean data (N, *shape) is compared by, (N, width): itself, and what enters the network's last
        layer for it.
        """
        r = torch.tensor(-lam, dtype=torch.float64).exp()
        scaled = x / float(torch.sqrt(self.base.sigma_data**2 + r**2))
        known = self.base.net.net.features(scaled, torch.full((len(x),), lam).to(x))[1]
        return torch.cat([x.flatten(1), known.flatten(1)], 1)
