"""The vision transformer of DINOv2, whose tensors go by the names that its checkpoints have.

(Oquab et al. 2023.) torch-fidelity runs DINOv2 by code that it downloads, and takes no file of weights.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PATCH, SIDE = 14, 224
HEAD = 64  # dimensions of an attention head, in every size
OFFSET = 0.1  # by which DINOv2 stretches its grid of positions when it resizes them


class Scale(nn.Module):
    """A factor for each dimension."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dims))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Attention(nn.Module):
    """Self-attention of tokens (N, T, dims)."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(dims, 3 * dims), nn.Linear(dims, dims)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, HEAD)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Perceptron(nn.Module):
    """Two layers with a GELU between them."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dims, 4 * dims), nn.Linear(4 * dims, dims)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Attention and perceptron, each on normalised tokens, scaled and added."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.norm1, self.attn, self.ls1 = nn.LayerNorm(dims, 1e-6), Attention(dims), Scale(dims)
        self.norm2, self.mlp, self.ls2 = nn.LayerNorm(dims, 1e-6), Perceptron(dims), Scale(dims)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class DINOv2(nn.Module):
    """Normalised images (N, 3, 224, 224) to the class token's features (N, dims)."""

    def __init__(self, dims: int, depth: int, grid: int = 37) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, dims, PATCH, PATCH)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dims))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid**2, dims))
        self.mask_token = nn.Parameter(torch.zeros(1, dims))  # of its training only
        self.blocks = nn.ModuleList(Block(dims) for _ in range(depth))
        self.norm = nn.LayerNorm(dims, 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), patches], 1) + self.positions()
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)[:, 0]

    def positions(self) -> Tensor:
        """(1, T, dims) the trained grid of positions, brought to that of a 224 x 224 image."""
        first, grid = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        side = round(grid.shape[1] ** 0.5)
        factor = (SIDE // PATCH + OFFSET) / side
        grid = grid.unflatten(1, (side, side)).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, scale_factor=(factor, factor), mode="bicubic")
        return torch.cat([first, grid.flatten(2).transpose(1, 2)], 1)


def from_tensors(tensors: dict[str, Tensor]) -> DINOv2:
    """The network of a checkpoint; ValueError where it holds another one."""
    try:
        dims = len(tensors["norm.weight"])
        depth = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
        net = DINOv2(dims, depth, round((tensors["pos_embed"].shape[1] - 1) ** 0.5))
        net.load_state_dict(tensors)
    except (KeyError, ValueError, IndexError, RuntimeError) as error:
        raise ValueError(str(error).splitlines()[0]) from None
    return net
