"""GITS: the grid of few steps along which Euler's method errs least, found by dynamic programming.

Trajectories of the probability flow have all much the same shape, so that a few of them tell where steps
must be short. Along the trajectories z_0 .. z_N of a fine grid, in z = x / alpha against r = sigma / alpha,
the step from point i straight to point j arrives at z_i + (r_j - r_i) eps_i, and its cost is how much
farther than z_j that lies from the straight line through z_0 and z_N. The grid of K steps is the path from
0 to N that minimises the sum over its steps n of gamma^n cost_n; one programme finds all K.
The solver is iPNDM, as in the paper's best results; p = 1 is DDIM.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

from bench.diffusion.denoiser import Denoiser
from bench.diffusion.dynamic import cheapest_paths
from bench.diffusion.steps import adams_bashforth, by_eps
from bench.diffusion.training import CURRENT
from bench.method import Method


class GITS(Method):
    """GITS"""

    paper = "arXiv:2405.11326"
    schedules = ("edm", "vp", "vp_cosine", "subvp", "ve", "flow")

    p: int = 4  # noise predictions that iPNDM combines at most
    spacing: str = "karras"  # of the fine grid, and of budgets that it has no points for
    points: int = 61  # of the fine grid
    warmup: int = 256  # trajectories
    gamma: float = 1.15  # above 1, a step's error weighs more the later it is made
    metric: str = "dev"  # a step's error: "dev", as above, "l1" or "l2", its distance from the trajectory

    def build(self, base: Denoiser, data, nfe: int) -> nn.Module:
        return Grids(base, base.schedule.steps(self.points - 1, self.spacing))

    @torch.no_grad()
    def train(self, model: nn.Module, base: Denoiser, data, images: int, nfe: int) -> None:
        schedule, session = base.schedule, CURRENT.get()
        generator = torch.Generator().manual_seed(session.seed if session else 0)
        x = base.prior(self.warmup, generator, session.device if session else "cpu")
        path, slopes = zip(*ipndm(base, x, model.fine.cpu(), self.p))
        if session:
            session.rows += self.warmup * (self.points - 1)
        scale = lambda a: a.to(x).view(-1, *[1] * x.ndim)
        z = torch.stack(path) / scale(schedule.alpha(model.fine))
        r = scale(torch.exp(-schedule.lam(model.fine)))
        cost = torch.full((self.points, self.points), torch.inf, dtype=torch.float64)
        for i in range(self.points - 1):
            arrived = z[i] + (r[i + 1 :] - r[i]) * slopes[i]
            cost[i, i + 1 :] = error(self.metric, arrived, z, i + 1).cpu()
        model.paths.copy_(cheapest_paths(cost, self.points - 1, self.gamma)[1])

    def sample(self, model: nn.Module, x: Tensor, nfe: int) -> Tensor:
        known = nfe < self.points
        times = model.grid(nfe) if known else model.base.schedule.steps(nfe, self.spacing)
        for state, _ in ipndm(model.base, x, times, self.p):
            x = state
        return x


class Grids(nn.Module):
    """A denoiser with the times of a fine grid (N + 1,) and, for each K up to N, K + 1 of its points, the
    rest of the row repeating the last. Untrained, the points are spread evenly.
    """

    def __init__(self, base: Denoiser, fine: Tensor):
        super().__init__()
        self.base = base
        last = len(fine) - 1
        even = [torch.linspace(0, last, k + 1).round().long() for k in range(1, last + 1)]
        padded = [torch.cat([row, row.new_full((last + 1 - len(row),), last)]) for row in even]
        self.register_buffer("fine", fine)
        self.register_buffer("paths", torch.stack(padded))

    def prior(self, n: int, generator: torch.Generator | None = None, device="cpu") -> Tensor:
        return self.base.prior(n, generator, device)

    def grid(self, k: int) -> Tensor:
        """The k + 1 times of the grid of k steps, on the CPU."""
        return self.fine[self.paths[k - 1, : k + 1]].cpu()


def ipndm(denoiser: Denoiser, x: Tensor, times: Tensor, p: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The states of iPNDM at the times, each with its noise prediction, the last without."""
    known = []
    for s, t in pairwise(times):
        known = [*known, denoiser(x, s).eps][-p:]
        yield x, known[-1]
        x = by_eps(denoiser.schedule, x, s, t, adams_bashforth(known))
    yield x, None


def error(metric: str, arrived: Tensor, z: Tensor, first: int) -> Tensor:
    """The mean cost (N + 1 - first,) of arriving at `arrived` (N + 1 - first, n, *shape) instead of at the
    points z[first:] of the trajectories z (N + 1, n, *shape). ValueError for a metric there is not.
    """
    if metric in ("l1", "l2"):
        return (arrived - z[first:]).flatten(2).norm(p=int(metric[1]), dim=2).mean(1)
    if metric != "dev":
        raise ValueError(f"gits knows the metrics dev, l1 and l2, not {metric!r}")
    start, end = z[0].flatten(1), z[-1].flatten(1)
    line = torch.nn.functional.normalize(end - start, dim=1)
    deviation = lambda a: (a - (a * line).sum(-1, keepdim=True) * line).norm(dim=2).mean(1)
    return deviation(arrived.flatten(2) - end) - deviation(z[first:].flatten(2) - end)
