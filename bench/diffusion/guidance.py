"""Classes: denoisers that are told one, labels bound for a while, and guidance towards them.

Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598) extrapolates from a network's unlabelled
reading to its labelled one, two rows a call. A classifier's guidance (Dhariwal & Nichol 2021,
arXiv:2105.05233) adds to the score a scale times the gradient of a noisy-data classifier's log p(y | x):

    eps - sigma * scale * grad_x log p(y | x),

one row of the network, one row and one cotangent of the classifier.
"""

from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.diffusion.counting import Counted
from bench.diffusion.denoiser import FORMS, KNOWN, Denoiser, noise_like, rowwise
from bench.diffusion.exact import GaussianMixture
from bench.diffusion.networks import MLP
from bench.diffusion.training import denoising_loss

DROPPED = 0.1  # of the labels in training, so that the network learns to do without


def labelled(model: nn.Module) -> list[Denoiser]:
    """The denoisers of a model that can be told a class."""
    return [m for m in model.modules() if isinstance(m, Denoiser) and m.shares is not None]


@contextmanager
def told(model: nn.Module, labels: Callable[[Tensor], Tensor | None]):
    """Inside the block the denoisers of a model answer for the labels (N,) that `labels` gives, from the
    shares of the classes (K,); where there is none with classes, it is not called.
    """
    denoisers = labelled(model)
    given = labels(denoisers[0].shares) if denoisers else None
    for denoiser in denoisers:
        denoiser.labels = given
    try:
        yield
    finally:
        for denoiser in denoisers:
            denoiser.labels = None


def drawn(n: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """For `told`: n labels, each class in its share."""
    return lambda shares: torch.multinomial(shares, n, replacement=True, generator=generator)


def labelled_loss(model: Denoiser, x0: Tensor, generator: torch.Generator, labels: Tensor) -> Tensor:
    """The denoising loss of a network that is told the labels (N,), but for a share of them DROPPED."""
    kept = torch.rand(len(x0), generator=generator, device=generator.device).to(labels.device) >= DROPPED
    return denoising_loss(model.given(torch.where(kept, labels, -1)), x0, generator)


class NoisyClassifier(nn.Module):
    """Logits (N, K) of noisy images: four convolutions, scaled and shifted by Fourier features of the half
    log-SNR, the later ones at half the resolution of those before.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, widths: tuple[int, ...] = (32, 48, 64, 64)):
        super().__init__()
        self.register_buffer("frequencies", torch.exp(torch.linspace(-2.0, 2.0, 16)))
        self.told = nn.Sequential(nn.Linear(32, 64), nn.SiLU())
        before = (shape[0], *widths)
        stride = [1] + [2 if shape[1] >= 4 * 2**i else 1 for i in range(1, len(widths))]
        self.convolutions = nn.ModuleList(nn.Conv2d(c, w, 3, s, 1) for c, w, s in zip(before, widths, stride))
        self.norms = nn.ModuleList(nn.GroupNorm(8, w) for w in widths)
        self.modulations = nn.ModuleList(nn.Linear(64, 2 * w) for w in widths)
        self.leave = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor, lam: Tensor) -> Tensor:
        angle = lam[:, None] * self.frequencies
        told = self.told(torch.cat([angle.sin(), angle.cos()], 1))
        for convolution, norm, modulation in zip(self.convolutions, self.norms, self.modulations):
            scale, shift = modulation(told)[..., None, None].chunk(2, 1)
            x = F.silu(norm(convolution(x)) * (1 + scale) + shift)
        return self.leave(x.mean((2, 3)))


class Classifier(nn.Module):
    """A classifier of noisy data, and the scaling of what it is fed: unit-variance inputs, as a
    Denoiser's net. Its rows and cotangents count as a guide's.
    """

    def __init__(self, net: nn.Module, sigma_data: float, shares: Tensor):
        super().__init__()
        self.net, self.sigma_data, self.shares = Counted(net, "guide"), sigma_data, shares

    def log_prob(self, x_in: Tensor, lam: Tensor) -> Tensor:
        """(N, K): log p(y | x) for the unit-variance input at half log-SNRs (N,)."""
        return F.log_softmax(self.net(x_in, lam), 1)

    def slope(self, x_in: Tensor, lam: Tensor, labels: Tensor) -> Tensor:
        """The gradient of log p(label | x) by z = x / alpha, of the shape of x_in."""
        with torch.enable_grad():
            x_in = x_in.detach().requires_grad_()
            chosen = self.log_prob(x_in, lam).gather(1, labels[:, None])
            slope = torch.autograd.grad(chosen.sum(), x_in)[0]
        return slope / rowwise(torch.sqrt(self.sigma_data**2 + torch.exp(-2 * lam)), x_in)


def untrained_classifier(data, shares: Tensor) -> Classifier:
    """The untrained classifier of a data set's classes."""
    classes = len(shares)
    net = NoisyClassifier(data.shape, classes) if data.kind == "image" else MLP(data.dim, out=classes)
    return Classifier(net, data.sigma_data, shares)


def classifying_loss(model: Classifier, x0: Tensor, generator: torch.Generator, labels: Tensor) -> Tensor:
    """The cross-entropy of the labels (N,), one number a row, at noise drawn evenly in lambda."""
    low, high = KNOWN
    lam = low + (high - low) * torch.rand(len(x0), generator=generator, device=generator.device).to(x0)
    r = torch.exp(-lam)
    z = x0 + rowwise(r, x0) * noise_like(x0, generator)
    logits = model.net(z / rowwise(torch.sqrt(model.sigma_data**2 + r**2), x0), lam)
    return F.cross_entropy(logits, labels, reduction="none")


class Guide(nn.Module):
    """What a classifier makes of a denoiser's output, of whatever form: that of the guided eps."""

    def __init__(self, classifier: Classifier, scale: float):
        super().__init__()
        self.classifier, self.scale = classifier, scale

    def forward(self, out: Tensor, x_in: Tensor, lam: Tensor, labels: Tensor, form: str) -> Tensor:
        r = torch.exp(-lam)
        more = rowwise(-r * self.scale, x_in) * self.classifier.slope(x_in, lam, labels)  # on eps
        a, b = FORMS[form](torch.ones_like(r), r, self.classifier.sigma_data)
        more = rowwise(b - a * r, x_in) * more  # x0 loses r times what eps gains: x stays what it is
        return torch.cat([out[:, : x_in.shape[1]] + more, out[:, x_in.shape[1] :]], 1)


def guided(denoiser: Denoiser, classifier: Classifier, scale: float) -> Denoiser:
    """The denoiser under a classifier's guidance, once it is told labels; both are fed the same."""
    if denoiser.sigma_data != classifier.sigma_data:
        raise ValueError("a classifier guides a denoiser that is fed as it is: of one sigma_data")
    other = denoiser.under(denoiser.schedule)
    other.guide, other.shares = Guide(classifier, scale), classifier.shares
    return other


class Components(nn.Module):
    """The perfect network of a mixture whose classes are its components: (x_in, lam, labels) -> x0.

    It is fed as ExactNetwork is; labels of -1 are for the whole mixture.
    """

    def __init__(self, mixture: GaussianMixture, shape: tuple[int, ...], sigma_data: float):
        super().__init__()
        self.mixture, self.shape, self.sigma_data = mixture, tuple(shape), sigma_data
        self.parts = nn.ModuleList(component(mixture, k) for k in range(len(mixture.weights)))
        self.classes, self.unlabelled = len(mixture.weights), True

    def position(self, x_in: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
        """z = x / alpha and r = sigma / alpha in the mixture's precision."""
        r = torch.exp(-lam).to(self.mixture.means.dtype)
        return x_in.to(r.dtype) * rowwise(torch.sqrt(self.sigma_data**2 + r**2), x_in.to(r.dtype)), r

    def forward(self, x_in: Tensor, lam: Tensor, labels: Tensor | None = None) -> Tensor:
        z, r = self.position(x_in, lam)
        if labels is None:
            return self.mixture.denoise(z, r).to(x_in)
        out = torch.empty_like(z)
        for k in labels.unique().tolist():
            rows = labels == k
            out[rows] = (self.mixture if k < 0 else self.parts[k]).denoise(z[rows], r[rows])
        return out.to(x_in)


class ComponentClassifier(Components):
    """The perfect classifier of a mixture's components: (x_in, lam) -> the logarithms of p(y, x)."""

    def forward(self, x_in: Tensor, lam: Tensor) -> Tensor:
        z, r = self.position(x_in, lam)
        joint = [part.log_prob(z, r) + w.log() for part, w in zip(self.parts, self.mixture.weights)]
        return torch.stack(joint, 1).to(x_in)


def component(mixture: GaussianMixture, k: int) -> GaussianMixture:
    """One of a mixture's Gaussians, as a mixture of one."""
    one = slice(k, k + 1)
    return GaussianMixture(
        mixture.weights[one], mixture.means[one], mixture.basis[one], mixture.excess[one], mixture.floor[one]
    )
