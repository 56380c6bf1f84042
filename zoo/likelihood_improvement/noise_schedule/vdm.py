"""VDM: a variational diffusion model, whose noise schedule is learned with its network.

With gamma = -log SNR and SNR = alpha^2/sigma^2 the bound of K steps, from times s to t > s, is (section 4)

    -log p(x0) <= prior + sum over steps of E (e^{gamma(t) - gamma(s)} - 1) |eps - eps(x_t)|^2 / 2
                  + reconstruction,

and that of infinitely many, E gamma'(t) |eps - eps(x_t)|^2 / 2 over uniform t (section 5), which knows of the
schedule its two ends only. So the ends are trained on the bound, as the network is, and what lies between on
the square of its estimate, which is its variance, in one backward pass (the appendix on minimising it); the
times of a batch are one draw and even steps from it. The reconstruction is the posterior over levels at t =
0. Sines and cosines of the input whose periods are one and two levels are fed to the network beside it
(Fourier features: 2^7 pi and 2^8 pi of 256 levels), so that it sees which level a barely noised value is of.

The ends start where the paper's do, gamma = -13.3 and 5, the first as much higher as the levels are wider.
The network is the project's own, in EDM's form, which tends to a prediction of the noise there.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from bench.diffusion.bounds import reconstruction
from bench.diffusion.denoiser import Denoiser, noise_like, rowwise
from bench.diffusion.likelihood import per_row, prior_kl
from bench.diffusion.networks import MLP, image_net
from bench.diffusion.schedule import Schedule, at, slope
from bench.diffusion.steps import ancestral, posterior
from bench.diffusion.training import fit
from bench.method import Method

ENDS = (-13.3, 5.0)  # gamma at t = 0 and 1 before training, of 256 levels and of data without levels
TOLD = 16  # rows of a batch whose reconstruction is computed: only gamma at t = 0 learns from it


class Learned(nn.Module, Schedule):
    """A variance-preserving schedule gamma(t) = first + (last - first) shape(t), all of it learned, in
    float64.

    shape rises from 0 at t_min to 1 at t_max: a straight line plus sigmoids of it with positive weights
    (appendix H), shifted and scaled.
    """

    t_min, t_max = 1e-3, 1.0  # the paper's 0 and 1: of a schedule time 0 is the data themselves

    def __init__(self, first: float, last: float, hidden: int):
        super().__init__()
        self.ends = nn.Parameter(torch.tensor([first, last], dtype=torch.float64))
        # Positive weights by their logarithms. The sigmoids' middles lie evenly over the line.
        self.log_steep = nn.Parameter(torch.full((hidden,), math.log(10.0), dtype=torch.float64))
        self.middle = nn.Parameter(torch.linspace(0, 1, hidden, dtype=torch.float64))
        self.log_height = nn.Parameter(torch.full((hidden,), -math.log(hidden), dtype=torch.float64))

    def rising(self, place: Tensor) -> Tensor:
        steps = torch.sigmoid(self.log_steep.exp() * (place[..., None] - self.middle))
        return place + (self.log_height.exp() * steps).sum(-1)

    def shape(self, place: Tensor) -> Tensor:
        """From 0 to 1 as `place`, of any shape, goes from 0 to 1."""
        low, high = self.rising(place.new_tensor([0.0, 1.0]))
        return (self.rising(place) - low) / (high - low)

    def gamma(self, t: float | Tensor) -> Tensor:
        t = at(t)
        place = ((t - self.t_min) / (self.t_max - self.t_min)).to(self.ends.device)
        return (self.ends[0] + (self.ends[1] - self.ends[0]) * self.shape(place)).to(t.device)

    def alpha(self, t: float | Tensor) -> Tensor:
        return torch.sigmoid(-self.gamma(t)).sqrt()

    def sigma(self, t: float | Tensor) -> Tensor:
        return torch.sigmoid(self.gamma(t)).sqrt()

    def lam(self, t: float | Tensor) -> Tensor:
        return -self.gamma(t) / 2


class WithFourier(nn.Module):
    """A network that is fed sines and cosines of x / alpha beside its input; `frequencies` in radians."""

    def __init__(self, net: nn.Module, frequencies: Tensor, sigma_data: float):
        super().__init__()
        self.net, self.sigma_data = net, sigma_data
        self.register_buffer("frequencies", frequencies)

    def forward(self, x: Tensor, lam: Tensor) -> Tensor:
        z = x * rowwise(torch.sqrt(self.sigma_data**2 + torch.exp(-2 * lam)), x)
        angles = [frequency * z for frequency in self.frequencies]
        return self.net(torch.cat([x, *(f(a) for a in angles for f in (torch.sin, torch.cos))], 1), lam)


class VDM(Method):
    """VDM"""

    paper = "arXiv:2107.00630"
    base = None
    schedules = ("vp",)
    likelihood = "elbo"
    dequantise = "none"

    steps: str = (
        "finite"  # of the bound: the budget's; "continuous" estimates the infinite one by as many rows
    )
    hidden: int = 1024  # sigmoids of the schedule
    features: int = 2  # frequencies, each half the one before; 0 has none
    lr: float = 2e-3

    def build(self, base: nn.Module | None, data, nfe: int) -> Denoiser:
        fed = self.features if data.levels else 0
        channels, *rest = data.shape
        inner = (channels * (1 + 2 * fed), *rest)
        net = image_net(inner, channels=channels) if data.kind == "image" else MLP(inner[0], out=channels)
        if fed:
            octaves = torch.pi * (data.levels - 1) * 0.5 ** torch.arange(fed)
            net = WithFourier(net, octaves, data.sigma_data)
        wider = 2 * math.log(255 / (data.levels - 1)) if data.levels else 0.0
        schedule = Learned(ENDS[0] + wider, ENDS[1], self.hidden)
        # The ends move, and the network learns what lies between them wherever they are.
        with torch.no_grad():
            model = Denoiser(net, schedule, data.shape, "F", data.sigma_data, known=(-math.inf, math.inf))
        model.levels = data.levels
        return model

    def train(self, model: Denoiser, base: nn.Module | None, data, images: int, nfe: int) -> None:
        fit(lambda x0, generator: loss(model, x0, generator) / data.dim, model, data, images, lr=self.lr)

    def sample(self, model: Denoiser, x: Tensor, nfe: int) -> Tensor:
        def reverse(x: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            q = posterior(model.schedule, s, t)
            return q.on_x * x + q.on_x0 * model(x, s).x0, q.variance

        x = ancestral(x, model.schedule.steps(nfe, "time"), reverse)
        alpha, sigma = (float(f(model.schedule.t_min)) for f in (model.schedule.alpha, model.schedule.sigma))
        # The likeliest level is the nearest; without levels p(x0 | x) is a normal.
        return x / alpha if model.levels else (x + sigma * torch.randn_like(x)) / alpha

    def nll(self, model: Denoiser, x: Tensor, nfe: int) -> dict[str, Tensor]:
        schedule, diffusion = model.schedule, x.new_zeros(len(x), dtype=torch.float64)
        for s, t in pairwise(schedule.steps(nfe, "time").flip(0)):
            if self.steps == "continuous":
                t = s + (t - s) * torch.rand(len(x), dtype=torch.float64)
                weight = slope(schedule.gamma, t) * (schedule.t_max - schedule.t_min) / nfe / 2
            else:
                weight = torch.expm1(schedule.gamma(t) - schedule.gamma(s)) / 2
            eps = torch.randn_like(x)
            diffusion += weight.to(x.device) * per_row((eps - model(model.noised(x, t, eps), t).eps) ** 2)
        told = reconstruction(model, x, torch.randn_like(x), model.levels)
        return {"prior": prior_kl(schedule, x), "diffusion": diffusion, "reconstruction": told}


def loss(model: Denoiser, x0: Tensor, generator: torch.Generator) -> Tensor:
    """The continuous bound of each row in nats, whose gradient at the schedule's interior is that of its
    square.
    """
    n, schedule = len(x0), model.schedule
    begin = torch.rand((), generator=generator, device=generator.device, dtype=torch.float64)
    place = (begin + torch.arange(n, device=generator.device) / n) % 1
    shape, rate = torch.func.jvp(schedule.shape, (place,), (torch.ones_like(place),))
    first, span = schedule.ends[0], schedule.ends[1] - schedule.ends[0]
    gamma = first + span * shape
    eps = noise_like(x0, generator)
    alpha, sigma = torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt()
    out = model.at(rowwise(alpha, x0) * x0 + rowwise(sigma, x0) * eps, alpha, sigma)
    diffusion = span * rate * per_row((eps - out.eps) ** 2) / 2
    # d(L^2) = 2 L dL, row by row; the mean of L is left out, for Adam's steps do not depend on it.
    factor = 2 * diffusion.detach() / diffusion.detach().mean()
    for part in (shape, rate):
        part.register_hook(lambda gradient: gradient * factor)
    told = reconstruction(model, x0[:TOLD], eps[:TOLD], model.levels).mean()
    return diffusion + prior_kl(schedule, x0) + told
