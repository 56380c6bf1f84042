"""The dynamic programme that picks few grid points among many: the cheapest path of exactly k steps."""

import torch
from torch import Tensor


def cheapest_paths(cost: Tensor, most: int, growth: float = 1.0) -> tuple[Tensor, Tensor]:
    """For every k from 1 to `most`, the cheapest path of exactly k steps from the first point to the last.

    cost (N + 1, N + 1): cost[i, j] is that of the step from point i straight to point j > i, inf where it is
    not allowed; what is on and below the diagonal is not read. The n-th step of a path, counted from 0, costs
    growth^n times its entry. Returns the totals (most,), inf where there is no path, and the paths
    (most, most + 1) of point numbers: row k - 1 has its k + 1 points, then repeats the last. ValueError where
    `most` is not between 1 and N. (Watson et al. 2021, arXiv:2106.03802.)
    """
    n = len(cost) - 1
    if cost.shape != (n + 1, n + 1) or not 1 <= most <= n:
        raise ValueError(f"no paths of 1 to {most} steps through a cost matrix of shape {tuple(cost.shape)}")
    allowed = torch.ones_like(cost, dtype=torch.bool).triu(1)
    cost = torch.where(allowed, cost, torch.inf)
    reached = torch.full_like(cost[0], torch.inf)  # the cheapest way to each point in so many steps
    reached[0] = 0
    totals, before = [], []
    for taken in range(most):
        reached, last = (reached[:, None] + growth**taken * cost).min(0)
        totals.append(reached[n])
        before.append(last)
    paths = torch.full((most, most + 1), n, device=cost.device)
    for k in range(1, most + 1):
        for step in range(k, 0, -1):
            paths[k - 1, step - 1] = before[step - 1][paths[k - 1, step]]
    return torch.stack(totals), paths
