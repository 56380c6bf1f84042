"""Reflected diffusion: noise that bounces off the walls of the cube, so that no sample ever leaves it.

The forward process is reflected Brownian motion, dx = g(t) dB + dL with L pushing back at the walls, sigma
geometric in t; its end is uniform. Its reversal is reflected as well,

    dx = -g^2 score(x, t) dt + g dB + dL,

and is simulated by steps of Euler and Maruyama, each folded back into the cube. The score is learned by
denoising score matching with the heat kernel of the cube: mirror images at small noise, eigenfunctions at
large noise. The probability flow needs no term for the walls, for there the score has no part across. The
authors bring their network's to zero there by a bump of fixed width; here it is as wide as the noise, and
part of the network. Settings are those of their code, louaaron/Reflected-Diffusion. Data on levels fill the
cube: level k of L has the cell from 2k/L - 1 to 2(k + 1)/L - 1.
"""

import copy
import math
from itertools import pairwise

import torch
from torch import Tensor

from bench.diffusion.denoiser import rowwise
from bench.diffusion.likelihood import divergence, transported
from bench.diffusion.networks import MLP, image_net
from bench.diffusion.reflection import BoxScore, ExactReflection, fold, kernel_score
from bench.diffusion.training import fit, stratified
from bench.method import Method

SIDE = 2.0  # of the cube; the paper's is 1


class Reflected(Method):
    """Reflected diffusion"""

    paper = "arXiv:2304.04740"
    base = None
    kinds = {"box"}
    schedules = ()
    least = 4
    likelihood = "ode"
    share = 0.5

    sigma_min: float = 0.01  # in sides of the cube, as sigma_max
    sigma_max: float = 5.0
    end: float = 1e-3  # of sampling, in time from 1 to 0
    predictor: str = "euler_maruyama"  # or "reverse_diffusion", whose noise is what the forward process adds
    snr: float = 0.0  # of a Langevin step before each of the predictor's; 0 is none, the authors' is 0.01
    draws: int = 8  # noise levels for each point of a batch; images have one
    trace: str = "hutchinson"  # "exact" costs one derivative per dimension
    learned: bool = False  # a network where the exact score is known

    def build(self, base: None, data, nfe: int) -> BoxScore:
        if self.predictor not in ("euler_maruyama", "reverse_diffusion"):
            raise ValueError(f"the predictor is euler_maruyama or reverse_diffusion, not {self.predictor!r}")
        if data.exact is not None and not self.learned:
            model = BoxScore(ExactReflection(copy.deepcopy(data.exact)), data.shape)
        else:
            model = BoxScore(image_net(data.shape) if len(data.shape) == 3 else MLP(data.dim), data.shape)
        # what data on levels, with a bin round each, are multiplied by to fill the cube
        model.shrink = (data.levels - 1) / data.levels if data.levels else 1.0
        model.half_bin = 1 / (data.levels - 1) if data.levels else 0.0
        return model

    def sigma(self, t: Tensor | float) -> Tensor:
        t = torch.as_tensor(t, dtype=torch.float64)
        return SIDE * self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def train(self, model: BoxScore, base: None, data, images: int, nfe: int) -> None:
        def loss(x0: Tensor, generator: torch.Generator) -> Tensor:
            if len(model.shape) == 1:  # a point costs little
                x0 = x0.repeat(self.draws, 1)
            x0 = model.shrink * (x0 + model.half_bin * (2 * torch.rand_like(x0) - 1))
            sigma = self.sigma(1e-5 + (1 - 1e-5) * stratified(x0)).to(x0.dtype)
            x, _ = fold(x0 + rowwise(sigma, x0) * torch.randn_like(x0))
            error = rowwise(sigma, x) * (model(x, sigma) - kernel_score(x0, x, sigma))
            # by sigma^2, which under a geometric sigma is the weight g^2 of the likelihood up to a constant
            return error.square().flatten(1).mean(1)

        if not model.exact:
            fit(loss, model, data, images, lr=2e-3)

    def sample(self, model: BoxScore, x: Tensor, nfe: int) -> Tensor:
        steps = nfe // 2 if self.snr else nfe
        times = torch.linspace(1, self.end, steps + 1, dtype=torch.float64)
        for s, t in pairwise(times):
            if self.snr:
                x = self.langevin(model, x, self.sigma(s))
            if self.predictor == "euler_maruyama":
                variance = 2 * self.sigma(s) ** 2 * math.log(self.sigma_max / self.sigma_min) * (s - t)
            else:
                variance = self.sigma(s) ** 2 - self.sigma(t) ** 2
            variance = float(variance)
            x = x + variance * model(x, self.sigma(s)) + math.sqrt(variance) * torch.randn_like(x)
            x, _ = fold(x)
        return (x / model.shrink).clamp(-1, 1)  # a level's cell keeps its level

    def langevin(self, model: BoxScore, x: Tensor, sigma: Tensor) -> Tensor:
        """A Langevin step of the density at sigma; its size is each sample's own, where the authors' is the
        batch's.
        """
        score, noise = model(x, sigma), torch.randn_like(x)
        lengths = [a.flatten(1).norm(dim=1).clamp(min=1e-9) for a in (noise, score)]
        step = rowwise(2 * (self.snr * lengths[0] / lengths[1]) ** 2, x)
        return fold(x + step * score + (2 * step).sqrt() * noise)[0]

    def nll(self, model: BoxScore, x: Tensor, nfe: int) -> Tensor:
        start, stop = (float(self.sigma(t).log()) for t in (1e-5, 1.0))
        grid = torch.linspace(start, stop, nfe // 4 + 1, dtype=torch.float64)
        probe = torch.randint(0, 2, x.shape).to(x) * 2 - 1 if self.trace == "hutchinson" else None

        def slope(y: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
            sigma = u.exp()
            return divergence(lambda z: -(sigma.to(z.dtype) ** 2) * model(z, sigma), y, self.trace, probe)

        change = transported(slope, model.shrink * x, grid)[1]
        return x[0].numel() * math.log(SIDE / model.shrink) - change
