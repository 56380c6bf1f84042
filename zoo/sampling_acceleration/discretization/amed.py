"""AMED-Solver: two evaluations a step, the second at a time and with a weight that a small predictor chooses.

Trajectories of the probability flow lie nearly in a plane, so that by the mean value theorem some direction
on the way takes a step almost exactly to its end. In z = x / alpha against r = sigma / alpha, from r_s to
r_t (eq. 9),

    r_m = r_t^p r_s^(1 - p),    z_m = z_s + (r_m - r_s) eps(z_s, r_s),
    z_t = z_s + c (r_t - r_s) eps(z_m, r_m),

and the predictor g makes p in (0, 1) and c of each sample from the bottleneck of the UNet in its evaluation
at z_s, averaged over channels, and from r_s and r_t. It is distilled step by step, from a teacher's points
to the teacher's next; the paper updates it after every step (eq. 14), here once for the steps' weighted sum.
p = 1/2 and c = 1, the predictor's start, is DPM-Solver-2. An odd budget has one evaluation less: the first
direction is then z / sqrt(1 + r^2), the analytical first step. Networks that have no bottleneck tell the
predictor their output instead.
"""

import copy
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from bench.diffusion import training
from bench.diffusion.counting import Counted, counting
from bench.diffusion.denoiser import Denoiser, noise_like, rowwise
from bench.diffusion.distillation import spent
from bench.diffusion.steps import heun
from bench.method import Method


class AMED(Method):
    """AMED-Solver"""

    paper = "arXiv:2312.00094"
    schedules = ("edm", "vp", "vp_cosine", "subvp", "ve", "flow")
    per_nfe = True
    share = 0.025  # images are here the student's steps; its authors' code takes 10,000 trajectories

    spacing: str = "karras"  # the paper has steps even in DDPM's time for CIFAR-10, FFHQ and ImageNet
    teacher: int = 1  # points of the teacher, Heun's method, between two of the student (the paper's M)
    bound: float = 0.01  # c is within 1 - bound and 1 + bound
    time_bound: float = 0.0  # how far the time told to the network at z_m may be from r_m, likewise; 0 is not
    lr: float = 5e-3

    def build(self, base: Denoiser, data, nfe: int) -> nn.Module:
        return Predicted(base)

    def train(self, model: nn.Module, base: Denoiser, data, images: int, nfe: int) -> None:
        schedule, steps = base.schedule, (nfe + 1) // 2
        fine = schedule.steps(steps * (self.teacher + 1), self.spacing)
        r = torch.exp(-schedule.lam(fine[:: self.teacher + 1]))

        def loss(x0: Tensor, generator: torch.Generator) -> Tensor:
            z, error = r[0].item() * noise_like(x0, generator), 0.0
            for i in range(steps):
                eps, chosen = self.chosen(model, z, r[i], r[i + 1], free=i == 0 and nfe % 2 == 1)
                own = chosen.detach().requires_grad_()
                reached = self.step(model, z, eps, own, r[i], r[i + 1])
                with torch.no_grad():
                    for s, t in pairwise(fine[i * (self.teacher + 1) : (i + 1) * (self.teacher + 1) + 1]):
                        z = heun(model.base, z, s, t)
                # in units of the spread at r_t: of what an error there comes to in the end
                far = ((reached - z) ** 2).flatten(1).mean(1) / (base.sigma_data**2 + r[i + 1].item() ** 2)
                # the step's gradient at once, so that no more than one network's activations are held
                (slope,) = torch.autograd.grad(far.sum(), own)
                error = error + far.detach() + (slope * (chosen - own.detach())).sum(1)
            return error

        with counting(model) as tallies:
            training.fit(loss, model.predictor, data, max(1, images // steps), batch=64, lr=self.lr)
        spent(tallies["nfe"].rows)

    def sample(self, model: nn.Module, x: Tensor, nfe: int) -> Tensor:
        schedule = model.base.schedule
        times = schedule.steps((nfe + 1) // 2, self.spacing)
        z = x / schedule.alpha(times[0])
        for i, (s, t) in enumerate(pairwise(torch.exp(-schedule.lam(times)))):
            eps, chosen = self.chosen(model, z, s, t, free=i == 0 and nfe % 2 == 1)
            z = self.step(model, z, eps, chosen, s, t)
        return schedule.alpha(times[-1]) * z

    def chosen(self, model: nn.Module, z: Tensor, s: Tensor, t: Tensor, free: bool) -> tuple[Tensor, Tensor]:
        """The direction at z (N, *shape), where r = s, and what the predictor says (N, 3) of the step to r =
        t; `free`: with the analytical first direction.
        """
        if free:
            eps, seen = z / (1 + s**2).sqrt(), z.new_zeros(len(z), model.predictor.net.width)
        else:
            with torch.no_grad():
                out = model.base.at(z, 1.0, s)
                eps, seen = out.eps, out.extra
        return eps, model.predictor(seen, s, t).double()

    def step(self, model: nn.Module, z: Tensor, eps: Tensor, chosen: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """z at r = t from z at r = s, and the direction there."""
        place, weight, late = chosen.unbind(1)
        middle = torch.exp(place.sigmoid() * (t.log() - s.log()) + s.log())
        weight, late = 1 + self.bound * weight.tanh(), 1 + self.time_bound * late.tanh()
        ahead = z + rowwise(middle - s, z) * eps
        slope = model.base.at(ahead, 1.0, late * middle).eps * rowwise(late, z)
        return z + rowwise(weight * (t - s), z) * slope


class Predicted(nn.Module):
    """A frozen copy of a denoiser whose predictions carry its features, and their predictor, which the paper
    does not count as an evaluation: a column of its own.
    """

    def __init__(self, base: Denoiser):
        super().__init__()
        net = copy.deepcopy(base.net.net).requires_grad_(False)
        self.base = Denoiser(Watched(net), base.schedule, base.shape, base.form, base.sigma_data, base.known)
        self.predictor = Counted(Predictor(64 if len(base.shape) == 3 else base.shape[0]), role="extra")

    def prior(self, n: int, generator: torch.Generator | None = None, device="cpu") -> Tensor:
        return self.base.prior(n, generator, device)


class Watched(nn.Module):
    """A network that puts features of its one pass behind its output: of images one channel, of vectors as
    many again.
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, lam: Tensor) -> Tensor:
        seen = []
        middle = getattr(getattr(self.net, "unet", None), "mid_block", None)
        hook = middle.register_forward_hook(lambda module, inputs, out: seen.append(out)) if middle else None
        out = self.net(x, lam)
        if hook:
            hook.remove()
        features = seen[0] if seen else out
        if x.ndim == 4:
            features = interpolate(features.mean(1, keepdim=True), x.shape[2:])
        return torch.cat([out, features], 1)


class Predictor(nn.Module):
    """g: from features, (N, 1, H, W) or (N, width), 0 where there was no evaluation to have them from, and
    scalars r_s, r_t to (N, 3): the logit of p, and what moves c and the time within their bounds.
    """

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.register_buffer("frequencies", torch.exp(torch.linspace(-2.0, 1.0, 4)))
        self.time = nn.Sequential(nn.Linear(8, 8), nn.SiLU())
        self.encode = nn.Sequential(nn.Linear(width, 128), nn.SiLU(), nn.Linear(128, 4))
        self.leave = nn.Linear(20, 3)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, features: Tensor, s: Tensor, t: Tensor) -> Tensor:
        if features.ndim == 4:
            features = adaptive_avg_pool2d(features, 8).flatten(1)
        times = torch.stack([s, t]).log().to(self.frequencies)
        angle = times[:, None] * self.frequencies
        times = self.time(torch.cat([angle.sin(), angle.cos()], 1)).flatten().expand(len(features), -1)
        return self.leave(torch.cat([self.encode(features), times], 1))
