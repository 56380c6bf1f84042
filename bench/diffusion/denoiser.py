"""A network with its schedule and its form: what every plugin calls.

Every parametrisation is a pair (a, b) with out = a x0 + b eps. Together with x = alpha x0 + sigma eps it is
two equations in two unknowns, so the pair serves both ways: as the target of training and as the conversion
of the output.
"""

import copy
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor, nn

from bench.diffusion.counting import Counted
from bench.diffusion.networks import MLP, Headed, image_net
from bench.diffusion.schedule import EDM, Schedule

KNOWN = (-5.1, 7.0)  # the half log-SNRs our own networks are trained on


def form_f(alpha: Tensor, sigma: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
    """EDM's raw output F (Karras et al. 2022, table 1), D = c_skip x + c_out F, solved for x0 and eps."""
    r = sigma / alpha
    norm = torch.sqrt(r**2 + sigma_data**2)
    return r / (sigma_data * norm), -sigma_data / norm


def form_v(alpha: Tensor, sigma: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
    """v = alpha eps - sigma x0 (Salimans & Ho 2022), in the variance-preserving scaling of the same
    signal-to-noise ratio.
    """
    norm = torch.sqrt(alpha**2 + sigma**2)
    return -sigma / norm, alpha / norm


FORMS: dict[str, Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]] = {
    "x0": lambda alpha, sigma, sigma_data: (torch.ones_like(alpha), torch.zeros_like(alpha)),
    "eps": lambda alpha, sigma, sigma_data: (torch.zeros_like(alpha), torch.ones_like(alpha)),
    "v": form_v,
    "F": form_f,
    "u": lambda alpha, sigma, sigma_data: (-torch.ones_like(alpha), torch.ones_like(alpha)),
    "score": lambda alpha, sigma, sigma_data: (torch.zeros_like(alpha), -alpha / sigma),  # of the VE scaling
}


def rowwise(a: Tensor, x: Tensor) -> Tensor:
    """A coefficient shaped to multiply x: a scalar as it is, one per row with x's trailing dimensions; in
    x's dtype and place.
    """
    a = torch.as_tensor(a)
    return a.to(x.device, x.dtype).view(-1, *[1] * (x.ndim - 1)) if a.ndim else a.to(x.device, x.dtype)


def noise_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Unit noise of x's shape, from a generator wherever that lies."""
    return torch.randn(x.shape, generator=generator, device=generator.device).to(x)


def of_rows(labels: Tensor, n: int) -> Tensor:
    """The labels of n rows: the first n, or all of them again for what is asked of the samples twice."""
    if n <= len(labels):
        return labels[:n]
    if n % len(labels):
        raise ValueError(f"{n} rows cannot share {len(labels)} labels")
    return labels.repeat(n // len(labels), *[1] * (labels.ndim - 1))


class Prediction:
    """What the network says of x: x0, eps, the score and v, each computed when asked for, and its `extra`
    channels.
    """

    def __init__(
        self, x: Tensor, out: Tensor, form: tuple[Tensor, Tensor], alpha: Tensor, sigma: Tensor, extra=None
    ):
        self.x, self.out, self.form, self.alpha, self.sigma, self.extra = x, out, form, alpha, sigma, extra

    def solved(self, x_part: Tensor, out_part: Tensor) -> Tensor:
        a, b = self.form
        determinant = self.alpha * b - self.sigma * a
        return (
            rowwise(x_part / determinant, self.x) * self.x
            + rowwise(out_part / determinant, self.x) * self.out
        )

    @cached_property
    def x0(self) -> Tensor:
        """The posterior mean of the data, shape of x."""
        return self.solved(self.form[1], -self.sigma)

    @cached_property
    def eps(self) -> Tensor:
        """The posterior mean of the unit noise, shape of x."""
        return self.solved(-self.form[0], self.alpha)

    @property
    def score(self) -> Tensor:
        """The gradient of the log-density of x at its time: -eps / sigma."""
        return self.eps * rowwise(-1 / self.sigma, self.x)

    @property
    def v(self) -> Tensor:
        """alpha eps - sigma x0."""
        return rowwise(self.alpha, self.x) * self.eps - rowwise(self.sigma, self.x) * self.x0


class Denoiser(nn.Module):
    """A network with its schedule and its form; calling it at (x, t) gives a Prediction.

    `net(x_in, lam)` is fed unit-variance inputs x / alpha / sqrt(sigma_data^2 + (sigma/alpha)^2) and half
    log-SNRs of shape (N,), and returns a tensor of x's shape, or one with more channels, the rest being
    `Prediction.extra`. It may take labels as a third argument.
    """

    def __init__(
        self,
        net: nn.Module,
        schedule: Schedule,
        shape: tuple[int, ...],
        form: str = "F",
        sigma_data: float = 1.0,
        known: tuple[float, float] = KNOWN,
    ):
        super().__init__()
        if form not in FORMS:
            raise ValueError(f"no form {form!r}; there are {', '.join(FORMS)}")
        self.net = net if isinstance(net, Counted) else Counted(net)
        self.shape, self.form, self.sigma_data, self.known = tuple(shape), form, sigma_data, known
        self.schedule = schedule.narrowed(known)
        self.levels: int | None = None  # of the data; a bound's last term is then a bin's probability
        self.labels: Tensor | None = None
        self.shares: Tensor | None = None  # (K,) of the classes it can be told, in the data
        self.guidance: float | None = None
        self.guide: nn.Module | None = None  # (out, x_in, lam, labels, form) -> out

    def forward(self, x: Tensor, t: float | Tensor) -> Prediction:
        """The prediction at x (N, *shape) and time t, a scalar or one a row, inside [t_min, t_max]."""
        t = torch.as_tensor(t, dtype=torch.float64)
        self.refuse_outside(t)
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return self.at(x, alpha, sigma)

    def at(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Prediction:
        """The prediction at x = alpha x0 + sigma eps for scales given outright rather than by a time;
        float64, scalars or one a row.
        """
        alpha, sigma = (
            torch.as_tensor(alpha, dtype=torch.float64),
            torch.as_tensor(sigma, dtype=torch.float64),
        )
        lam = torch.log(alpha / sigma)
        scale = 1 / (alpha * torch.sqrt(self.sigma_data**2 + (sigma / alpha) ** 2))
        out = self.raw(rowwise(scale, x) * x, lam.to(x.device, x.dtype).expand(len(x)))
        channels = x.shape[1]
        extra = out[:, channels:] if out.shape[1] > channels else None
        a, b = FORMS[self.form](alpha, sigma, self.sigma_data)
        return Prediction(x, out[:, :channels], (a, b), alpha, sigma, extra)

    def raw(self, x_in: Tensor, lam: Tensor) -> Tensor:
        """The network's own output for a unit-variance input; with guidance, of its labelled and its
        unlabelled reading (two rows), with a guide, what that makes of it.
        """
        if self.labels is None:
            return self.net(x_in, lam)
        labels = of_rows(self.labels, len(x_in)).to(x_in.device)
        if self.guide is not None:
            return self.guide(self.net(x_in, lam), x_in, lam, labels, self.form)
        if self.guidance is None:
            return self.net(x_in, lam, labels)
        nothing = torch.full_like(labels, -1)  # -1 is the network's "no label"
        both = self.net(torch.cat([x_in, x_in]), torch.cat([lam, lam]), torch.cat([labels, nothing]))
        given, free = both.chunk(2)
        return free + self.guidance * (given - free)

    def refuse_outside(self, t: Tensor) -> None:
        low, high = float(t.min()), float(t.max())
        slack = 1e-6 * self.schedule.t_max
        if low < self.schedule.t_min * (1 - 1e-6) or high > self.schedule.t_max + slack:
            known = f"{self.schedule.t_min:.6g} to {self.schedule.t_max:.6g}"
            raise ValueError(f"the network was asked at t = {low:.6g} to {high:.6g}; it knows {known}")

    def under(self, schedule: Schedule) -> "Denoiser":
        """The same network seen under another schedule, narrowed to the half log-SNRs it knows."""
        other = copy.copy(self)
        other._modules = dict(self._modules)
        other.schedule = schedule.narrowed(self.known)
        return other

    def given(self, labels: Tensor, scale: float | None = None) -> "Denoiser":
        """This denoiser with labels (N,) bound and, with `scale`, classifier-free guidance: free + scale
        (given - free), cost two.
        """
        other = copy.copy(self)
        other._modules = dict(self._modules)
        other.labels, other.guidance = labels, scale
        return other

    def with_head(self, head: Callable[[int], nn.Module]) -> "Denoiser":
        """This denoiser, frozen, with a second head that reads the features before the last layer, in the
        same pass: what it gives is `Prediction.extra`. `head(width)` builds it for that many features;
        ValueError where the network tells no features.
        """
        net = self.net.net
        if not hasattr(net, "features"):
            raise ValueError(
                f"a {type(net).__name__} takes no second head: give it `width` and features(x, lam), which "
                "returns its output and what its last layer is fed."
            )
        other = copy.copy(self)
        other._modules = dict(self._modules) | {"net": Counted(Headed(net, head(net.width)), self.net.role)}
        return other

    def prior(
        self, n: int, generator: torch.Generator | None = None, device: str | torch.device = "cpu"
    ) -> Tensor:
        """n draws of x at t_max, (n, *shape): unit noise, drawn on the CPU in float32, times sigma(t_max)."""
        noise = torch.randn(n, *self.shape, generator=generator)
        return noise.to(device) * float(self.schedule.sigma(self.schedule.t_max))

    def noised(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x = alpha x0 + sigma eps at times t, a scalar or one a row."""
        return rowwise(self.schedule.alpha(t), x0) * x0 + rowwise(self.schedule.sigma(t), x0) * eps

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the network's raw output should be for x0 and eps at times t."""
        a, b = FORMS[self.form](self.schedule.alpha(t), self.schedule.sigma(t), self.sigma_data)
        return rowwise(a, x0) * x0 + rowwise(b, x0) * eps


def untrained(
    data, outputs: int = 1, form: str = "F", schedule: Schedule | None = None, widths=None
) -> Denoiser:
    """A new denoiser for `data`, all half log-SNRs in KNOWN: the project's network for its kind and size, its
    weights drawn from torch's generator.

    outputs: channels for each channel of the data; those beyond the first are `Prediction.extra`. form: of
    the first. widths: of the image network, instead of those of its resolution.
    """
    if data.kind == "image":
        net = image_net(data.shape, channels=outputs * data.shape[0], widths=widths)
    else:
        net = MLP(data.dim, out=outputs * data.dim)
    model = Denoiser(net, schedule or EDM(), data.shape, form, data.sigma_data)
    model.levels = data.levels
    return model
