"""Progressive distillation: a student learns to do in one DDIM step what its teacher does in two, becomes the
teacher, and so on, until one step is left.

From x at t = i/N two steps of the teacher lead over t - 1/(2N) to x'' at t'' = t - 1/N. One DDIM step leads
there if the student's x0 is (Algorithm 2)

    x~ = (x'' - (sigma''/sigma) x) / (alpha'' - (sigma''/sigma) alpha),

so it is trained on w(t) |x~ - x0(x)|^2 with the truncated-SNR weight w = max(alpha^2/sigma^2, 1) or with SNR
+ 1 (section 4). The students of all powers of two are kept; a budget is spent by the largest that it holds.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from bench.diffusion import training
from bench.diffusion.denoiser import Denoiser, noise_like, rowwise
from bench.diffusion.distillation import Students, spent, student_of
from bench.diffusion.steps import ddim
from bench.method import Method

WEIGHTS = {"truncated": lambda snr: snr.clamp(min=1), "plus_one": lambda snr: snr + 1}


class ProgressiveDistillation(Method):
    """Progressive distillation"""

    paper = "arXiv:2202.00512"
    entry = "pd"
    schedules = ("vp_cosine", "vp")
    share = 0.5

    halvings: int = 6  # the first teacher takes 2^halvings steps; the paper starts from 8192 on CIFAR-10
    weight: str = "truncated"  # | "plus_one"

    def counts(self) -> list[int]:
        """The students' steps, in the order in which they are trained."""
        return [2**k for k in reversed(range(self.halvings))]

    def build(self, base: Denoiser, data, nfe: int) -> nn.Module:
        return Students({str(count): student_of(base, data) for count in self.counts()})

    def train(self, model: Students, base: Denoiser, data, images: int, nfe: int) -> None:
        # The paper doubles the updates of the last two students.
        parts = {count: 2 if count <= 2 else 1 for count in self.counts()}
        teacher = base
        for count, part in parts.items():
            student = model[str(count)]
            if teacher is not base:
                student.load_state_dict(teacher.state_dict())
            self.halve(teacher, student, count, data, max(1, images * part // sum(parts.values())))
            teacher = student.requires_grad_(False)
        model.requires_grad_(True)

    def halve(self, teacher: Denoiser, student: Denoiser, count: int, data, images: int) -> None:
        """Teach the student to do in `count` steps what the teacher does in twice as many."""
        schedule = student.schedule

        def loss(x0: Tensor, generator: torch.Generator) -> Tensor:
            i = torch.randint(1, count + 1, (len(x0),), generator=generator, device=generator.device).cpu()
            t, middle, end = ((i.double() - back) * schedule.t_max / count for back in (0, 0.5, 1))
            x = student.noised(x0, t, noise_like(x0, generator))
            with torch.no_grad():
                aim = target(teacher, x, t, middle, end)
            weight = WEIGHTS[self.weight](torch.exp(2 * schedule.lam(t))).to(x)
            return weight * ((student(x, t).x0 - aim) ** 2).flatten(1).mean(1)

        training.fit(loss, student, data, images, lr=1e-3, decay=1.0)
        spent(2 * images)

    def sample(self, model: Students, x: Tensor, nfe: int) -> Tensor:
        count = max(count for count in self.counts() if count <= nfe)
        student = model[str(count)]
        schedule = student.schedule
        times = torch.linspace(1, 0, count + 1, dtype=torch.float64) * schedule.t_max
        for s, t in pairwise(times):
            out = student(x, s)
            x = ddim(schedule, out.x0, out.eps, t)
        return x


def target(teacher: Denoiser, x: Tensor, t: Tensor, middle: Tensor, end: Tensor) -> Tensor:
    """The x0 by which one DDIM step from t to `end` arrives where two of the teacher's do; one time a row."""
    first = teacher(x, t)
    second = teacher(teacher.noised(first.x0, middle, first.eps), middle)
    arrived = teacher.noised(second.x0, end, second.eps)
    alpha, sigma = teacher.schedule.alpha, teacher.schedule.sigma
    ratio = sigma(end) / sigma(t)
    return (arrived - rowwise(ratio, x) * x) * rowwise(1 / (alpha(end) - ratio * alpha(t)), x)
