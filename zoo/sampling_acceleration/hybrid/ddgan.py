"""Denoising diffusion GAN: few large denoising steps, each drawn from a multimodal distribution that a
conditional GAN has learned.

A step from s to t draws x0 from an implicit generator and x_t from the posterior of the process

    x_t ~ q(x_t | x_s, x0 = G(x_s, z, s)),    z ~ N(0, I),

and G is trained so that a critic D(x_t, x_s, s) cannot tell x_t from what the process itself does
(non-saturating, with R1). The chain has T steps, even in time, each chain its own generator; 4 is the
paper's choice. Its networks, rates and averaging are for large images and long training; here they are small
ones, and those of `contest`, and a step nearer the data is practised more often than the one before it.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from bench.diffusion.adversarial import Round, contest
from bench.diffusion.counting import Counted
from bench.diffusion.denoiser import noise_like, rowwise
from bench.diffusion.generators import Encoder, Translator
from bench.diffusion.schedule import SCHEDULES, Schedule
from bench.diffusion.steps import posterior
from bench.method import Method

CHAINS = (4, 2, 1)
BATCH = 256  # with few images a step the players circle ever wider, and averaging does not make up for it


class DDGAN(Method):
    """Denoising Diffusion GAN"""

    paper = "arXiv:2112.07804"
    base = None
    schedules = ("vp", "vp_cosine")
    share = 3.5  # a chain of 2 on digits: FID 12 after 200,000 images, 5 after the 560,000 it gets of this
    version = 3

    steps: int = 0  # of the chain; 0 trains chains of 4, 2 and 1 and takes the longest that the budget holds
    latent: int = 100
    r1: float = 1.0  # the paper has 0.05; with so few images the critic would learn them by heart

    def build(self, base: None, data, nfe: int) -> nn.Module:
        """A generator for each chain, by its length."""
        chains = (self.steps,) if self.steps else CHAINS
        bounded = data.levels is not None
        model = nn.ModuleDict({str(n): Counted(Translator(data.shape, self.latent, bounded)) for n in chains})
        model.shape = data.shape
        return model

    def train(self, model: nn.Module, base: None, data, images: int, nfe: int) -> None:
        """Fit every chain; that of 1, which few samplers rival, has half the images of the others."""
        parts = {int(length): min(int(length), 2) for length in model}
        for length, part in parts.items():
            self.fit_chain(model[str(length)], length, data, images * part // sum(parts.values()))

    def fit_chain(self, generator: nn.Module, length: int, data, images: int) -> None:
        schedule, times = self.process(), self.times(length)
        # The first steps turn noise into noise, and are soon learned; what is wrong with samples is the last.
        often = 2.0 ** torch.arange(length)

        def play(x0: Tensor, noise: torch.Generator) -> Round:
            step = torch.multinomial(often.to(noise.device), len(x0), True, generator=noise).cpu()
            s, t = times[step], times[step + 1]
            q = posterior(schedule, s, t)
            x_t = rowwise(schedule.alpha(t), x0) * x0 + rowwise(schedule.sigma(t), x0) * noise_like(x0, noise)
            ratio = rowwise(schedule.alpha(s) / schedule.alpha(t), x0)
            x_s = ratio * x_t + rowwise(q.forward.sqrt(), x0) * noise_like(x0, noise)
            lam = schedule.lam(s).to(x0)
            guess = generator(x_s, lam, noise_like(x0.new_empty(len(x0), self.latent), noise))
            mean = rowwise(q.on_x, x0) * x_s + rowwise(q.on_x0, x0) * guess
            return Round(
                x_t, mean + rowwise(q.variance.sqrt(), x0) * noise_like(x0, noise), (lam[:, None], x_s)
            )

        critic = lambda: Encoder(data.shape, 1, count=2, levels=1, critic=True)
        contest(play, generator, critic, data, images, batch=BATCH, r1=self.r1)

    def start(self, model: nn.Module, n: int, generator: torch.Generator, device: str = "cpu") -> Tensor:
        noise = torch.randn(n, *model.shape, generator=generator)
        schedule = self.process()
        return noise.to(device) * float(schedule.sigma(schedule.t_max))

    def sample(self, model: nn.Module, x: Tensor, nfe: int) -> Tensor:
        held = [length for length in map(int, model) if length <= nfe]
        if not held:
            raise ValueError(f"a chain of {self.steps} needs as many evaluations; ask for ddgan:steps={nfe}")
        generator, schedule = model[str(max(held))], self.process()
        for s, t in pairwise(self.times(max(held))):
            z = torch.randn(len(x), self.latent, device=x.device, dtype=x.dtype)
            x0 = generator(x, schedule.lam(s).to(x).expand(len(x)), z)
            q = posterior(schedule, s, t)
            x = q.on_x.to(x) * x + q.on_x0.to(x) * x0
            if t > 0:
                x = x + q.variance.sqrt().to(x) * torch.randn_like(x)
        return x

    def process(self) -> Schedule:
        return SCHEDULES[self.schedule or self.schedules[0]]()

    def times(self, length: int) -> Tensor:
        """length + 1 times even between t_max and t_min, which counts as 0."""
        times = self.process().steps(length, "time")
        times[-1] = 0
        return times
