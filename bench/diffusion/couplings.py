"""Normalising flows of affine couplings, for vectors and small images: invertible, with triangular Jacobians.

A coupling leaves half of the coordinates alone, and from them and a context scales and shifts the others
(Dinh et al. 2017, "Density estimation using Real NVP", eq. 7-9):

    y_a = x_a,    y_b = x_b e^{s(x_a)} + t(x_a),    log |dy/dx| = sum of s.
"""

import torch
from torch import Tensor, nn

from bench.diffusion.counting import Counted

MOST = 2.0  # of |s|: a factor of e^2 in each coupling, both ways, keeps the inverse accurate in float32


def alternate(shape: tuple[int, ...], parity: int) -> Tensor:
    """(1, *shape) of 0 and 1: every other coordinate of a vector, a checkerboard of an image."""
    place = sum(
        torch.arange(n).view(-1, *[1] * (len(shape) - i - 1)) for i, n in enumerate(shape) if n > 1
    )  # coordinates of extent 1 do not tell two places apart
    return ((torch.as_tensor(place) + parity) % 2).float().expand(1, *shape).contiguous()


class Coupling(nn.Module):
    """One coupling of data of `shape`; `context`: channels, or numbers of a vector, that it is told besides.

    The identity before training.
    """

    def __init__(self, shape: tuple[int, ...], parity: int, width: int = 64, context: int = 0):
        super().__init__()
        if max(shape) < 2:
            raise ValueError(f"a coupling needs two coordinates to couple, and data of shape {shape} has one")
        self.register_buffer("kept", alternate(shape, parity))
        size = shape[0]
        if len(shape) == 3:
            enter, middle = nn.Conv2d(size + context, width, 3, padding=1), nn.Conv2d(width, width, 1)
            leave = nn.Conv2d(width, 2 * size, 3, padding=1)
        else:
            enter, middle = nn.Linear(size + context, width), nn.Linear(width, width)
            leave = nn.Linear(width, 2 * size)
        nn.init.zeros_(leave.weight)
        nn.init.zeros_(leave.bias)
        self.net = nn.Sequential(enter, nn.SiLU(), middle, nn.SiLU(), leave)

    def forward(self, x: Tensor, context: Tensor | None = None, back: bool = False) -> tuple[Tensor, Tensor]:
        """x (N, *shape), context (N, context, ...) -> y and log |dy/dx| (N,); `back`: x of a y, and its."""
        seen = x * self.kept
        s, t = self.net(seen if context is None else torch.cat([seen, context], 1)).chunk(2, 1)
        s = MOST * torch.tanh(s / MOST) * (1 - self.kept)
        moved = (x - t) * torch.exp(-s) if back else x * torch.exp(s) + t
        logdet = s.flatten(1).sum(1)
        return seen + (1 - self.kept) * moved, -logdet if back else logdet


class Chain(nn.Module):
    """Couplings in a row whose log-determinant follows the sample as one more number, so that one tensor
    passes the counter.
    """

    def __init__(self, couplings: list[Coupling]):
        super().__init__()
        self.couplings = nn.ModuleList(couplings)

    def forward(self, x: Tensor, context: Tensor | None = None, back: bool = False) -> Tensor:
        """(N, dim + 1)."""
        total = x.new_zeros(len(x))
        for coupling in reversed(self.couplings) if back else self.couplings:
            x, logdet = coupling(x, context, back)
            total = total + logdet
        return torch.cat([x.flatten(1), total[:, None]], 1)


class Flow(nn.Module):
    """`count` couplings that keep alternate halves. It runs once a sample at either end: no NFE."""

    def __init__(self, shape: tuple[int, ...], count: int = 4, width: int = 64, context: int = 0):
        super().__init__()
        self.shape = tuple(shape)
        couplings = [Coupling(self.shape, i % 2, width, context) for i in range(count)]
        self.chain = Counted(Chain(couplings), role="extra")

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (N, *shape), context (N, context, ...) -> y of x's shape and log |dy/dx| (N,)."""
        return self.split(self.chain(x, context, False))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The x whose image is y, and log |dx/dy| (N,), the negative of forward's."""
        return self.split(self.chain(y, context, True))

    def split(self, packed: Tensor) -> tuple[Tensor, Tensor]:
        return packed[:, :-1].reshape(-1, *self.shape), packed[:, -1]
