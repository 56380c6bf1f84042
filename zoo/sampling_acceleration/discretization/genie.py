"""GENIE: a second-order Taylor method on the probability flow, its second derivative learned by a small head.

In z = x / alpha against g = sigma / alpha the flow is dz/dg = eps, and a step from g_s to g_t is (eq. 9)

    z_t = z_s + (g_t - g_s) eps + (g_t - g_s)^2 / 2  d eps/dg,    d eps/dg = (d eps/dz) eps + the partial one.

The total derivative is one Jacobian-vector product; distilled into a second head on the frozen network it is
had in the network's own pass. The head makes three parts of it, the mixed parametrisation (eq. 14),

    d eps/dg = -k1 / g + g k2 / (1 + g^2) + k3 / (g (1 + g^2)),

and is fitted to the product with the weight g^2. It sees the features before the last layer; the
paper's sees x and eps beside them. Untrained it is 0, and the method DDIM.
"""

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.diffusion.counting import counting
from bench.diffusion.denoiser import Denoiser, Prediction, noise_like, rowwise
from bench.diffusion.distillation import spent
from bench.diffusion.networks import second_head
from bench.diffusion.training import fit
from bench.method import Method


class GENIE(Method):
    """GENIE"""

    paper = "arXiv:2210.05475"
    schedules = ("vp", "vp_cosine", "subvp", "flow")
    share = 0.1

    spacing: str = "quadratic"  # "time" is its authors' code's default
    afs: bool = False  # the first step along z / sqrt(1 + g^2) instead of eps, which needs no evaluation
    denoise: bool = False  # spend the last evaluation on the mean at t_min
    hidden: int = 64  # width of the head
    lr: float = 1e-3  # its authors' 5e-5, with a head of 128 channels

    def build(self, base: Denoiser, data, nfe: int) -> Denoiser:
        outputs = (3 * base.shape[0], *base.shape[1:])
        return base.with_head(lambda width: second_head(width, outputs, self.hidden))

    def train(self, model: Denoiser, base: Denoiser, data, images: int, nfe: int) -> None:
        schedule = base.schedule
        noise = lambda z, g: base.at(z, torch.ones_like(g), g).eps

        def loss(x0: Tensor, generator: torch.Generator) -> Tensor:
            t = torch.rand(len(x0), generator=generator, device=generator.device, dtype=torch.float64)
            g = torch.exp(-schedule.lam(schedule.t_min + t * (schedule.t_max - schedule.t_min))).to(x0.device)
            z = x0 + rowwise(g, x0) * noise_like(x0, generator)
            out = model.at(z, torch.ones_like(g), g)
            with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward mode
                _, truth = torch.func.jvp(noise, (z, g), (out.eps.detach(), torch.ones_like(g)))
            return (rowwise(g, z) * (derivative(out, g) - truth)).square().flatten(1).mean(1)

        with counting(base) as tallies:
            fit(loss, model, data, images, lr=self.lr)
        spent(tallies["nfe"].rows)

    def sample(self, model: Denoiser, x: Tensor, nfe: int) -> Tensor:
        schedule = model.schedule
        times = schedule.steps(nfe + self.afs - self.denoise, self.spacing)
        g, z = torch.exp(-schedule.lam(times)), x / schedule.alpha(times[0])
        for i, h in enumerate(g.diff()):
            if i == 0 and self.afs:
                z = z + h * z / (1 + g[0] ** 2).sqrt()
                continue
            out = model.at(z, torch.ones_like(g[i]), g[i])
            z = z + h * out.eps + h**2 / 2 * derivative(out, g[i])
        if self.denoise:
            return model.at(z, torch.ones_like(g[-1]), g[-1]).x0
        return schedule.alpha(times[-1]) * z


def derivative(out: Prediction, g: Tensor) -> Tensor:
    """d eps/dg from the head's three outputs at g, a scalar or one a row."""
    k1, k2, k3 = out.extra.chunk(3, dim=1)
    damped = 1 + g**2
    return rowwise(-1 / g, k1) * k1 + rowwise(g / damped, k2) * k2 + rowwise(1 / (g * damped), k3) * k3
