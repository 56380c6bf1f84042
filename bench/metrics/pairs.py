"""Metrics of pairs of feature rows: the kernel distance (KID), and precision and recall of nearest-neighbour
balls.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from bench.metrics.jackknife import blocks_of

NEIGHBOURS = 3
PIECE, MANY = 1000, 10_000  # rows on either side of a table of pairs


def kid(x: Tensor, y: Tensor, blocks: int) -> tuple[float, tuple[float, ...]]:
    """The unbiased squared MMD of features x (N, F) and y (M, F) with the kernel (x.y / F + 1)^3, and
    replicates (Bińkowski et al. 2018).
    """
    return squared_mmd(x.double(), y.double(), blocks, _kernel, _self_kernel)


def squared_mmd(
    x: Tensor,
    y: Tensor,
    blocks: int,
    kernel: Callable[[Tensor, Tensor], Tensor],
    self_kernel: Callable[[Tensor], Tensor],
) -> tuple[float, tuple[float, ...]]:
    """The unbiased squared MMD of rows x (N, ...) and y (M, ...) (Gretton et al. 2012), and replicates.

    kernel: (n, ...), (m, ...) -> (n, m); self_kernel: its value at each row with itself. All pairs are used
    once; the replicates come from the kernel's sums by blocks of x.
    """
    block = blocks_of(len(x), blocks)
    member = torch.nn.functional.one_hot(block, blocks).double()
    size = member.sum(0)
    within, diagonal, across = (
        torch.zeros(blocks, blocks).double(),
        member.new_zeros(blocks),
        member.new_zeros(blocks),
    )
    for piece, where in zip(x.split(PIECE), block.split(PIECE)):
        for others, theirs in zip(x.split(MANY), member.split(MANY)):
            within.index_add_(0, where, kernel(piece, others).double() @ theirs)
        diagonal.index_add_(0, where, self_kernel(piece).double())
        across.index_add_(0, where, kernel(piece, y).double().sum(1))
    real = sum(kernel(piece, y).double().sum() for piece in y.split(PIECE)) - self_kernel(y).double().sum()

    def distance(pairs: Tensor, cross: Tensor, n: Tensor) -> Tensor:
        return pairs / (n * (n - 1)) + real / (len(y) * (len(y) - 1)) - 2 * cross / (n * len(y))

    off = within.sum() - diagonal.sum()
    off_without = off - within.sum(0) - within.sum(1) + within.diagonal() + diagonal
    value = distance(off, across.sum(), size.sum())
    return value.item(), tuple(distance(off_without, across.sum() - across, size.sum() - size).tolist())


def precision_recall(x: Tensor, y: Tensor, blocks: int) -> dict[str, tuple[float, tuple[float, ...]]]:
    """The share of x (N, F) within reach of y (M, F), of y within reach of x, and their replicates.

    (Kynkäänniemi et al. 2019.) A row's reach is the distance to its third neighbour among its own. Without
    block b the reach of every remaining row of x is that among the remaining ones. ValueError for too few
    rows.
    """
    if min(len(x) - -(-len(x) // blocks), len(y)) <= NEIGHBOURS:
        raise ValueError(
            f"Precision and recall need more than {NEIGHBOURS} rows on either side of every replicate."
        )
    block = blocks_of(len(x), blocks)
    reach = torch.cat([torch.cdist(piece, y).kthvalue(NEIGHBOURS + 1).values for piece in y.split(PIECE)])
    precise = torch.cat([(torch.cdist(piece, y) <= reach).any(1) for piece in x.split(PIECE)]).double()
    reaches = torch.cat(
        [_reaches(torch.cdist(piece, x), blocks) for piece in x.split(PIECE)]
    )  # (N, 1 + blocks)
    for b in range(blocks):
        reaches[block == b, 1 + b] = -torch.inf
    recalled = torch.zeros(1 + blocks).double()
    for piece in y.split(PIECE):
        distances = torch.cdist(piece, x)
        recalled += torch.stack([(distances <= column).any(1).sum() for column in reaches.T])
    recall = (recalled / len(y)).tolist()
    without = tuple(precise[block != b].mean().item() for b in range(blocks))
    return {"precision": (precise.mean().item(), without), "recall": (recall[0], tuple(recall[1:]))}


def _reaches(distances: Tensor, blocks: int) -> Tensor:
    """(n, 1 + blocks) distance to the third neighbour, itself apart, among all columns and without each
    block.
    """
    rows, count = distances.shape
    depth = -(-count // blocks)
    padded = torch.nn.functional.pad(distances, (0, depth * blocks - count), value=torch.inf)
    by_block = padded.view(rows, depth, blocks).topk(min(NEIGHBOURS + 1, depth), dim=1, largest=False).values
    columns = [distances.kthvalue(NEIGHBOURS + 1).values]
    for b in range(blocks):
        others = torch.cat([by_block[..., :b], by_block[..., b + 1 :]], -1).flatten(1)
        columns.append(others.kthvalue(NEIGHBOURS + 1).values)
    return torch.stack(columns, 1)


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _self_kernel(x: Tensor) -> Tensor:
    return (x.square().mean(1) + 1) ** 3
