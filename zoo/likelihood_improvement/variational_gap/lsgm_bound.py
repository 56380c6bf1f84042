"""LSGM's bound in two stages: the variational autoencoder is trained first, and the diffusion prior then, on
its frozen latents.

The bound of -log p(x) is that of LSGM (its section 3),

    E[-log p(x | z)] - H(q(z | x)) + CE(q(z | x) || p(z)),

of the same networks under the same training budget; only the autoencoder has never seen the prior that it
will have. What joint training gains is their difference. Samples are DDIM's in the latent space, decoded.
"""

from torch import Tensor

from bench.diffusion.latents import LatentDiffusion, elbo, joint_loss, latent_bound, variational
from bench.diffusion.schedule import SCHEDULES
from bench.diffusion.training import fit
from bench.method import Method


class LSGMBound(Method):
    """LSGM, in two stages"""

    paper = "arXiv:2106.05931"
    entry = "lsgm"
    base = None
    schedules = ("vp", "vp_cosine", "flow")
    likelihood = "elbo"
    dequantise = "none"

    alone: float = 0.4  # share of the training that is the autoencoder's
    eta: float = 0.0  # 1 is DDPM with the posterior variance
    spacing: str = "time"

    def build(self, base: None, data, nfe: int) -> LatentDiffusion:
        return variational(data, SCHEDULES[self.schedule or self.schedules[0]]())

    def train(self, model: LatentDiffusion, base: None, data, images: int, nfe: int) -> None:
        first = round(self.alone * images)
        fit(lambda x, g: elbo(model, x, g), model.autoencoder, data, first, batch=64, clip=10.0)
        model.autoencoder.requires_grad_(False)
        fit(lambda x, g: joint_loss(model, x, g), model.denoiser, data, images - first, clip=10.0)

    def sample(self, model: LatentDiffusion, x: Tensor, nfe: int) -> Tensor:
        return model.sampled(x, nfe, self.eta, self.spacing)

    def nll(self, model: LatentDiffusion, x: Tensor, nfe: int) -> dict[str, Tensor]:
        return latent_bound(model, x, nfe)
