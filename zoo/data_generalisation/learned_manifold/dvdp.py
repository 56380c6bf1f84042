"""DVDP: data are parted into nested subspaces, whose finer parts fade faster than noise alone hides them, and
are left out once they have faded: the diffusion loses dimensions step by step, and regains them in reverse.

With v_0 the coarsest part of x0 and v_i what each finer subspace adds, the attenuated process is

    x_t = alpha_t (v_0 + sum_i c_i(t) v_i) + sigma_t eps,    c_i(t) = max(0, 1 - (t / T_i)^2),

the noise being the usual one in every dimension. From its turning point T_i on part i is noise alone, which
goes without loss (in the paper it falls to a small value there), and the process is that of the coarser
subspace. Each has a network of its own, fed x_t in the subspace's coordinates, that says what x0 is in it; a
step of the reverse is DDIM's in each part with that part's signal, so that dimensions which begin at a
turning point begin as the noise that they were. Images are halved at each, vectors keep half of their
principal components.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from bench.diffusion.covariance import unit
from bench.diffusion.denoiser import Denoiser, noise_like, rowwise
from bench.diffusion.latents import MOST, Subspace, net_of
from bench.diffusion.networks import image_net
from bench.diffusion.schedule import SCHEDULES
from bench.diffusion.training import fit
from bench.method import Method


class Levels(nn.Module):
    """Nested subspaces, each entered where the finer part has faded, and a denoiser of every one."""

    def __init__(self, whole: Denoiser, spaces: list[Subspace], small: list[Denoiser], turns: list[float]):
        super().__init__()
        self.spaces, self.nets = nn.ModuleList(spaces), nn.ModuleList([whole, *small])
        self.register_buffer("turns", torch.tensor(turns, dtype=torch.float64) * whole.schedule.t_max)

    def prior(self, n: int, generator: torch.Generator | None = None, device="cpu") -> Tensor:
        return self.nets[0].prior(n, generator, device)

    def faded(self, x0: Tensor, t: Tensor) -> Tensor:
        """The signal (N, *shape) that is left of x0 at times t, one or one a row, before alpha."""
        left, finer = x0, x0
        for space, turn in zip(self.spaces, self.turns.to(t)):
            coarser = space.up(space.down(x0))
            left = left - rowwise(((t / turn) ** 2).clamp(max=1), x0) * (finer - coarser)
            finer = coarser
        return left

    def denoised(self, x: Tensor, t: Tensor) -> Tensor:
        """x0 (N, *shape) by the network of the dimension at time t; where it has none, the data's mean."""
        level = int((self.turns.to(t) <= t).sum())
        net = self.nets[level]
        if level == 0:
            return net(x, t).x0
        space = self.spaces[level - 1]
        return space.up(net(space.down(x), t).x0) + space.offset


class DVDP(Method):
    """DVDP"""

    paper = "arXiv:2211.16032"
    base = None
    schedules = ("ddpm", "vp", "vp_cosine", "flow")

    halvings: int = 1
    turn: float = 0.5  # T_1 as a share of the time; the others are even between it and the end
    spacing: str = "time"
    lr: float = 2e-3

    def build(self, base: None, data, nfe: int) -> Levels:
        schedule, image = SCHEDULES[self.schedule or self.schedules[0]](), data.kind == "image"
        keeps = [(0.25 if image else 0.5) ** (i + 1) for i in range(self.halvings)]
        spaces, x = [Subspace(data, keep) for keep in keeps], data.scale(data.train[:MOST])
        net = image_net(data.shape) if image else net_of(data.shape)
        whole = Denoiser(net, schedule, data.shape, "F", data.sigma_data)
        small = [Denoiser(net_of(s.sub), schedule, s.sub, "F", float(s.down(x).std())) for s in spaces]
        turns = [self.turn + (1 - self.turn) * i / self.halvings for i in range(self.halvings)]
        return Levels(whole, spaces, small, turns)

    def train(self, model: Levels, base: None, data, images: int, nfe: int) -> None:
        schedule = model.nets[0].schedule
        turns = [schedule.t_min, *model.turns.tolist(), schedule.t_max]
        lams = [float(schedule.lam(t)) for t in turns]
        for level, (high, low) in enumerate(pairwise(lams)):
            share = (high - low) / (lams[0] - lams[-1])
            self.teach(model, level, low, high, data, round(share * images))

    def teach(self, model: Levels, level: int, low: float, high: float, data, images: int) -> None:
        """Fit the network of a level at half log-SNRs even between `low` and `high`, where it is the one."""
        net = model.nets[level]
        down = model.spaces[level - 1].down if level else nn.Identity()

        def loss(x0: Tensor, generator: torch.Generator) -> Tensor:
            place = torch.rand(len(x0), generator=generator, device=generator.device).cpu().double()
            t = net.schedule.time(low + place * (high - low))
            x = net.noised(down(model.faded(x0, t)), t, noise_like(down(x0), generator))
            error = (net(x, t).x0 - down(x0)).square().flatten(1).mean(1)
            return error / unit(torch.exp(-net.schedule.lam(t)), net.sigma_data).to(error)

        fit(loss, net, data, images, batch=128, lr=self.lr)

    def sample(self, model: Levels, x: Tensor, nfe: int) -> Tensor:
        schedule = model.nets[0].schedule
        for s, t in pairwise(schedule.steps(nfe, self.spacing, end="zero")):
            x0 = model.denoised(x, s)
            noise = x - schedule.alpha(s) * model.faded(x0, s)
            x = schedule.alpha(t) * model.faded(x0, t) + schedule.sigma(t) / schedule.sigma(s) * noise
        return x.float()
