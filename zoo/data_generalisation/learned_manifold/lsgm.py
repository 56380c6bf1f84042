"""LSGM: a variational autoencoder whose prior is a diffusion in its latent space, trained with it.

The bound of -log p(x) is (section 3)

    E[-log p(x | z)] - H(q(z | x)) + CE(q(z | x) || p(z)),

whose cross entropy is the diffusion's own bound: in half log-SNR lambda the integral of E|eps - eps(z_t)|^2,
and a constant (Theorem 1). Encoder, decoder and prior descend it together, the prior likelihood-weighted,
after the autoencoder alone has been trained with a normal prior. The prior's network is mixed with what is
right for normal latents (section 3.2), so that it begins where the autoencoder was. `nll` is the bound;
samples are DDIM's in the latent space, decoded.
"""

from torch import Tensor

from bench.diffusion.latents import LatentDiffusion, elbo, joint_loss, latent_bound, variational
from bench.diffusion.schedule import SCHEDULES
from bench.diffusion.training import fit
from bench.method import Method


class LSGM(Method):
    """LSGM"""

    paper = "arXiv:2106.05931"
    base = None
    schedules = ("vp", "vp_cosine", "flow")
    likelihood = "elbo"
    dequantise = "none"

    alone: float = 0.4  # share of the training in which the autoencoder's prior is normal
    eta: float = 0.0  # 1 is DDPM with the posterior variance
    spacing: str = "time"

    def build(self, base: None, data, nfe: int) -> LatentDiffusion:
        return variational(data, SCHEDULES[self.schedule or self.schedules[0]]())

    def train(self, model: LatentDiffusion, base: None, data, images: int, nfe: int) -> None:
        first = round(self.alone * images)
        fit(lambda x, g: elbo(model, x, g), model.autoencoder, data, first, batch=64, clip=10.0)
        fit(lambda x, g: joint_loss(model, x, g), model, data, images - first, clip=10.0)

    def sample(self, model: LatentDiffusion, x: Tensor, nfe: int) -> Tensor:
        return model.sampled(x, nfe, self.eta, self.spacing)

    def nll(self, model: LatentDiffusion, x: Tensor, nfe: int) -> dict[str, Tensor]:
        return latent_bound(model, x, nfe)
