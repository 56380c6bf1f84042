"""What distilled samplers share: students, pairs of noise and what a teacher makes of it, and consistency.

The consistency function lives on EDM's process x = x0 + t eps, whatever schedule its network is seen under.
"""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench.diffusion import training
from bench.diffusion.counting import counting
from bench.diffusion.denoiser import FORMS, Denoiser, rowwise
from bench.diffusion.networks import MLP, image_net

CHUNK = 500  # starts that a teacher solves at once


class Students(nn.ModuleDict):
    """Trained denoisers by name, all with one start. What their outputs mean is the method's matter: they are
    no posterior means any more.
    """

    def prior(self, n: int, generator: torch.Generator | None = None, device="cpu") -> Tensor:
        return next(iter(self.values())).prior(n, generator, device)


def student_of(base: Denoiser, data, warm: bool = True) -> Denoiser:
    """A copy of the base to train. A new network of its place where it should not be `warm`, or where the
    base has no weights, as an exact one has none.
    """
    if warm and next(base.parameters(), None) is not None:
        return copy.deepcopy(base).requires_grad_(True)
    net = image_net(data.shape) if data.kind == "image" else MLP(data.dim)
    return Denoiser(net, base.schedule, base.shape, "F", base.sigma_data, base.known)


def spent(rows: int) -> None:
    """Put a teacher's evaluations, beside the images seen, on the bill of the training that is under way."""
    session = training.CURRENT.get()
    if session is not None:
        session.rows += rows


def pairs(teacher: Denoiser, solve: Callable[[Tensor], Tensor], count: int) -> tuple[Tensor, Tensor]:
    """`count` starts of the teacher and what `solve` makes of them, (count, *shape) each; the same for the
    same training seed. The rows that it takes go on the training's bill.
    """
    session = training.CURRENT.get() or training.Session()
    starts, ends = [], []
    with torch.no_grad(), counting(teacher) as tallies:
        for first in range(0, count, CHUNK):
            generator = training.seeded(session.seed, 0x9A125, first)
            starts.append(teacher.prior(min(CHUNK, count - first), generator, session.device))
            ends.append(solve(starts[-1]))
    spent(tallies["nfe"].rows)
    return torch.cat(starts), torch.cat(ends)


def drawn(pairs: tuple[Tensor, Tensor], n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """n of the pairs at random, with replacement."""
    index = torch.randint(len(pairs[0]), (n,), generator=generator, device=generator.device)
    index = index.to(pairs[0].device)
    return pairs[0][index], pairs[1][index]


def consistent(student: Denoiser, x: Tensor, t: Tensor) -> Tensor:
    """f(x, t), which takes a point of the flow at time t, a scalar or one a row, to its end at t_min (Song et
    al. 2023, arXiv:2303.01469, eq. 5 and appendix C): c_skip(t) x + c_out(t) F, the identity at t_min.
    """
    t, end, spread = torch.as_tensor(t, dtype=torch.float64), student.schedule.t_min, student.sigma_data
    ones = torch.ones_like(t)
    out = student.at(x, ones, t)
    a, b = FORMS["F"](ones, t, spread)
    raw = rowwise(a, x) * out.x0 + rowwise(b, x) * out.eps
    c_skip = spread**2 / ((t - end) ** 2 + spread**2)
    c_out = spread * (t - end) / torch.sqrt(t**2 + spread**2)
    return rowwise(c_skip, x) * x + rowwise(c_out, x) * raw


def multistep_consistency(student: Denoiser, x: Tensor, nfe: int, spacing: str) -> Tensor:
    """Multistep consistency sampling (Song et al. 2023, Algorithm 1): to the end, back to a smaller time with
    fresh noise, and to the end again.
    """
    end = student.schedule.t_min
    times = student.schedule.steps(nfe, spacing)[:-1]
    x = consistent(student, x, times[0])
    for t in times[1:]:
        noise = torch.sqrt(t**2 - end**2) * torch.randn_like(x)
        x = consistent(student, x + noise.to(x), t)
    return x


def consistency_loss(found: Tensor, aim: Tensor, s: Tensor, t: Tensor, improved: bool) -> Tensor:
    """(N,): how far f at times s is from what it is to be, f at the neighbouring times t.

    The mean square, or, `improved` (Song & Dhariwal 2023, arXiv:2310.14189), the pseudo-Huber distance
    sqrt(|.|^2 + c^2) - c with c = 0.00054 sqrt(D), times 1 / (s - t). The weight belongs to the distance: f
    hardly depends on its network at small times, which a distance without it leaves untrained.
    """
    square = ((found - aim) ** 2).flatten(1)
    if not improved:
        return square.mean(1)
    c = 0.00054 * math.sqrt(square.shape[1])
    return (torch.sqrt(square.sum(1) + c**2) - c) / (s - t).to(square)
