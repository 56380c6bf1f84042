"""A small autoencoder with a codebook (van den Oord et al. 2017): images as grids of whole numbers."""

import torch
from torch import Tensor, nn
from torch.nn import functional

SMALLEST = 4  # codes a side, at the least


class Codebook(nn.Module):
    """An encoder that halves the side once or twice, a codebook, and a decoder; called with codes (N, side,
    side) it gives images (N, *shape).
    """

    def __init__(self, shape: tuple[int, int, int], codes: int, width: int = 64, depth: int = 16):
        super().__init__()
        self.shape = tuple(shape)
        halvings = 1 if shape[1] < 4 * SMALLEST else 2
        self.side = shape[1] // 2**halvings
        down = [nn.Conv2d(shape[0], width, 3, padding=1)]
        up = [nn.Conv2d(depth, width, 3, padding=1), Residual(width)]
        for _ in range(halvings):
            down += [Residual(width), nn.Conv2d(width, width, 4, stride=2, padding=1)]
            up += [Residual(width), nn.ConvTranspose2d(width, width, 4, stride=2, padding=1)]
        self.encoder = nn.Sequential(*down, Residual(width), nn.SiLU(), nn.Conv2d(width, depth, 1))
        self.decoder = nn.Sequential(
            *up, Residual(width), nn.SiLU(), nn.Conv2d(width, shape[0], 3, padding=1)
        )
        self.vectors = nn.Parameter(torch.randn(codes, depth))

    def forward(self, codes: Tensor) -> Tensor:
        return self.decoder(self.vectors[codes].movedim(-1, 1))

    def encoded(self, x: Tensor) -> Tensor:
        """(N, side, side) the nearest codes of images (N, *shape)."""
        return self.nearest(self.encoder(x))

    def nearest(self, z: Tensor) -> Tensor:
        return torch.cdist(z.movedim(1, -1).flatten(0, 2), self.vectors).argmin(1).view(-1, *z.shape[2:])

    def loss(self, x0: Tensor, generator: torch.Generator) -> Tensor:
        """(N,): the squared error of the image, the codes' distance to the encoder's output and, a quarter as
        strong, the other way round. Codes that none of the batch is near are put where some of it lies.
        """
        z = self.encoder(x0)
        codes = self.nearest(z)
        with torch.no_grad():
            rows = z.movedim(1, -1).flatten(0, 2)
            unused = torch.bincount(codes.flatten(), minlength=len(self.vectors)) == 0
            chance = torch.rand(len(self.vectors), device=x0.device) < 0.02
            moved = unused & chance if self.training else torch.zeros_like(unused)
            self.vectors[moved] = rows[torch.randint(len(rows), (int(moved.sum()),), device=x0.device)]
            codes = self.nearest(z)
        near = self.vectors[codes].movedim(-1, 1)
        out = self.decoder(z + (near - z).detach())
        error = (out - x0).square().flatten(1).mean(1)
        quantised = functional.mse_loss(near, z.detach(), reduction="none").flatten(1).mean(1)
        committed = functional.mse_loss(z, near.detach(), reduction="none").flatten(1).mean(1)
        return error + 0.1 * (quantised + 0.25 * committed)


class Residual(nn.Module):
    """Two convolutions round which the input is carried."""

    def __init__(self, width: int):
        super().__init__()
        self.inner = nn.Sequential(
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, h: Tensor) -> Tensor:
        return h + self.inner(h)


class Codes:
    """A data set seen through a codebook, for training: each batch is encoded as it is drawn."""

    def __init__(self, codebook: Codebook, data):
        self.codebook, self.data, self.train = codebook, data, data.train

    @torch.no_grad()
    def scale(self, stored: Tensor) -> Tensor:
        return self.codebook.encoded(self.data.scale(stored))
