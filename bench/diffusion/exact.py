"""Gaussian mixtures whose denoiser, score, density and samples are known in closed form at every noise level.

Each component is a probabilistic PCA (Tipping and Bishop 1999): mean m, covariance B diag(e) B^T + f I with
orthonormal B. Noise of scale r only raises f to s = f + r^2, so one fixed basis serves every r (Woodbury):

    (C + r^2 I)^-1 d = d / s - B diag(e / (s (e + s))) B^T d,        d = z - m

and, by Tweedie's formula, E[x0 | z] = z + r^2 score(z). Everything is written in z = x / alpha = x0 + r eps
with r = sigma / alpha, which makes it independent of the schedule.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

ROWS = 256  # rows worked on at once: more are no faster, and the intermediates leave the cache


class GaussianMixture(nn.Module):
    """A mixture of K Gaussians in D dimensions, of covariances `basis diag(excess) basis^T + floor I`.

    weights (K,) positive, means (K, D), basis (K, D, R) with orthonormal columns, excess (K, R) >= 0,
    floor (K,) >= 0; ValueError where their shapes do not agree. Rows z are (N, D) or (N, *shape); r is a
    number, a scalar tensor or (N,). The module computes in its own precision; `denoise` and `score` answer in
    that of z.
    """

    def __init__(self, weights: Tensor, means: Tensor, basis: Tensor, excess: Tensor, floor: Tensor):
        super().__init__()
        (k, d), rank = means.shape, excess.shape[-1]
        shapes = tuple(tuple(a.shape) for a in (weights, basis, excess, floor))
        if shapes != ((k,), (k, d, rank), (k, rank), (k,)):
            raise ValueError(f"with means {(k, d)}, weights, basis, excess and floor cannot be {shapes}")
        self.register_buffer("weights", weights / weights.sum())
        self.register_buffer("means", means)
        self.register_buffer("basis", basis)
        self.register_buffer("excess", excess)
        self.register_buffer("floor", floor)
        for name in ("centre", "stack", "offset", "squares"):
            self.register_buffer(name, None, persistent=False)
        _derive(self)

    def _load_from_state_dict(self, state, prefix, *rest) -> None:
        """Load, and derive anew what follows, but not from tensors that are there already: what was derived
        in float64 and then cast would round otherwise, and a model would depend on having been loaded.
        """
        known = all(
            torch.equal(state[prefix + name].to(own), own)
            for name, own in self.named_buffers()
            if prefix + name in state
        )
        super()._load_from_state_dict(state, prefix, *rest)
        if not known:
            _derive(self)

    @property
    def dim(self) -> int:
        return self.means.shape[1]

    def denoise(self, z: Tensor, r: Tensor | float) -> Tensor:
        """E[x0 | z = x0 + r eps], in the shape of z."""

        def piece(z: Tensor, r: Tensor) -> Tensor:
            logits, _, coefficients = self._posterior(z, r)
            share, s = logits.softmax(-1), self.floor + r**2
            kept = (share * self.floor / s).sum(
                -1, keepdim=True
            )  # 1 - r^2 sum(share / s), without the cancellation
            return self.centre + kept * z + r**2 * self._combine(share, s, coefficients)

        return self._by_pieces(piece, z, r).reshape(z.shape).to(z.dtype)

    def score(self, z: Tensor, r: Tensor | float = 0.0) -> Tensor:
        """The gradient of log_prob(z, r) in z, in the shape of z. It needs r > 0 where a floor is 0."""

        def piece(z: Tensor, r: Tensor) -> Tensor:
            logits, _, coefficients = self._posterior(z, r)
            share, s = logits.softmax(-1), self.floor + r**2
            return self._combine(share, s, coefficients) - (share / s).sum(-1, keepdim=True) * z

        return self._by_pieces(piece, z, r).reshape(z.shape).to(z.dtype)

    def log_prob(self, z: Tensor, r: Tensor | float = 0.0) -> Tensor:
        """(N,) nats: the log density of z under the mixture convolved with N(0, r^2 I)."""

        def piece(z: Tensor, r: Tensor) -> Tensor:
            logits, common, _ = self._posterior(z, r)
            return logits.logsumexp(-1) + common

        return self._by_pieces(piece, z, r)

    def responsibilities(self, z: Tensor, r: Tensor | float = 0.0) -> Tensor:
        """(N, K): the posterior probability of each component at z."""
        return self._by_pieces(lambda z, r: self._posterior(z, r)[0].softmax(-1), z, r)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """(n, D) exact draws; the noise comes from the CPU in float32, the same for both precisions."""
        dtype, device = self.means.dtype, self.means.device
        which = torch.multinomial(self.weights.double().cpu(), n, replacement=True, generator=generator)
        inner = torch.randn(n, self.excess.shape[1], generator=generator).to(device, dtype)
        x = torch.randn(n, self.dim, generator=generator).to(device, dtype)
        for k in which.unique().tolist():
            rows = (which == k).nonzero()[:, 0].to(device)
            outer = self.floor[k].sqrt() * x[rows]
            x[rows] = self.means[k] + outer + (self.excess[k].sqrt() * inner[rows]) @ self.basis[k].T
        return x

    def mean(self) -> Tensor:
        """(D,): the mean of the whole mixture."""
        return self.centre

    def cov(self) -> Tensor:
        """(D, D): the covariance of the whole mixture; ValueError where D > 256, where `project` serves."""
        if self.dim > 256:
            raise ValueError(
                f"cov() is for at most 256 dimensions, this mixture has {self.dim}: use project(directions)"
            )
        return self.project(torch.eye(self.dim, dtype=self.means.dtype, device=self.means.device))[1]

    def project(self, directions: Tensor) -> tuple[Tensor, Tensor]:
        """The mean (Q,) and covariance (Q, Q) of x @ directions, directions (D, Q); nothing is D x D."""
        directions = directions.to(self.means)
        columns = directions.T @ self.stack  # (Q, K R + K): the bases' columns, then the centred means
        shares = torch.cat([(self.weights[:, None] * self.excess).flatten(), self.weights])
        isotropic = (self.weights * self.floor).sum() * directions.T @ directions
        return self.centre @ directions, (columns * shares) @ columns.T + isotropic

    def variance(self) -> Tensor:
        """The total variance of the mixture (the trace of its covariance), a scalar."""
        inside = self.excess.sum(-1) + self.dim * self.floor
        return (self.weights * (inside + self.squares)).sum()

    def _by_pieces(self, f, z: Tensor, r: Tensor | float) -> Tensor:
        """f(z, r) over pieces of ROWS rows: z centred and flat in our precision, r (N, 1) or (1, 1)."""
        z = z.flatten(1).to(self.means.dtype) - self.centre
        r = torch.as_tensor(r, dtype=z.dtype, device=z.device).reshape(-1, 1)
        pieces = z.split(ROWS)
        noises = r.split(ROWS) if len(r) > 1 else [r] * len(pieces)
        results = [f(*pair) for pair in zip(pieces, noises, strict=True)]
        return results[0] if len(results) == 1 else torch.cat(results)

    def _posterior(self, z: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Joint log densities (N, K) less a common part, that part (N,), and e / (s (e + s)) B^T d (N, K, R).

        What is large and equal for all components, |z|^2 / s and D log s at the least floor, is kept apart:
        in float32 the responsibilities would otherwise be differences of large rounded numbers.
        """
        k, rank = self.excess.shape
        least = self.floor.min()
        s, s_least = self.floor + r**2, least + r**2
        above = (self.floor - least) / s_least  # s / s_least - 1, without the cancellation
        shrink = self.excess / (s[..., None] * (self.excess + s[..., None]))
        products = z @ self.stack
        inner = products[..., : k * rank].unflatten(-1, (k, rank)) - self.offset
        coefficients = inner * shrink
        square = z.square().sum(-1, keepdim=True)
        distance = (self.squares - 2 * products[..., k * rank :] - square * above) / s - (
            inner * coefficients
        ).sum(-1)
        volume = self.dim * above.log1p() + (self.excess / s[..., None]).log1p().sum(-1)
        logits = self.weights.log() - (volume + distance) / 2
        common = -(self.dim * (2 * math.pi * s_least).log() + square / s_least) / 2
        return logits, common[..., 0], coefficients

    def _combine(self, share: Tensor, s: Tensor, coefficients: Tensor) -> Tensor:
        """sum_k share_k (m_k / s_k + B_k coefficients_k) (N, D): the second of the two large products."""
        folded = (share[..., None] * coefficients).flatten(-2)
        return torch.cat([folded, share / s], -1) @ self.stack.T


def _derive(mixture: GaussianMixture) -> None:
    """Recompute what follows from a mixture's tensors; `stack` has all bases, then all centred means."""
    centre = mixture.weights @ mixture.means
    centred = mixture.means - centre
    columns = mixture.basis.permute(1, 0, 2).flatten(1)
    mixture.centre, mixture.squares = centre, centred.square().sum(-1)
    mixture.stack = torch.cat([columns, centred.T], 1).contiguous()
    mixture.offset = torch.einsum("kd,kdr->kr", centred, mixture.basis)


class ExactNetwork(nn.Module):
    """The perfect network of a mixture: from the unit-variance input and lambda to the posterior mean of x0.

    forward(x_in, lam): x_in = z / sqrt(sigma_data^2 + r^2) is (N, *shape), lam = log(alpha / sigma) = -log r
    a scalar tensor or (N,); the answer has the shape and the precision of x_in.
    """

    def __init__(self, mixture: GaussianMixture, shape: tuple[int, ...], sigma_data: float):
        super().__init__()
        if math.prod(shape) != mixture.dim:
            raise ValueError(f"a mixture in {mixture.dim} dimensions cannot have the shape {tuple(shape)}")
        self.mixture = mixture
        self.shape = tuple(shape)
        self.register_buffer("sigma_data", torch.tensor(float(sigma_data), dtype=torch.float64))

    def forward(self, x_in: Tensor, lam: Tensor) -> Tensor:
        r = (-lam).exp().to(self.mixture.means.dtype)
        scale = (self.sigma_data.to(r.dtype) ** 2 + r**2).sqrt().reshape(-1, *[1] * len(self.shape))
        return self.mixture.denoise(x_in.to(r.dtype) * scale, r).to(x_in.dtype)

    @property
    def width(self) -> int:
        return 2 * self.shape[0] + 1

    def features(self, x_in: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
        """The answer, and what a second head reads: x0, eps and lambda / 4 as channels (N, width, ...)."""
        x0 = self(x_in, lam)
        lam = lam.expand(len(x_in)).reshape(-1, *[1] * len(self.shape))
        r = (-lam).exp().to(x_in.dtype)
        eps = (x_in * (self.sigma_data.to(r.dtype) ** 2 + r**2).sqrt() - x0) / r
        return x0, torch.cat([x0, eps, (lam / 4).to(x0).expand_as(x0[:, :1])], dim=1)


def fit_mixture(
    x: Tensor, components: int, rank: int, seed: int, floor: float = 0.05, rounds: int = 4
) -> GaussianMixture:
    """A mixture fitted to the rows of x (N, D): k-means, then `rounds` of classification EM.

    `floor` is the standard deviation left in every direction: small enough for clean samples, large enough
    for a smooth score. A component with no more than `rank` points is dropped; ValueError if all have so few.
    """
    from sklearn.cluster import KMeans

    means = KMeans(components, n_init=1, max_iter=30, random_state=seed).fit(x.numpy())
    labels = torch.as_tensor(means.labels_).long()
    mixture = _fit_clusters(x, labels, rank, seed, floor)
    for _ in range(rounds):
        labels = mixture.responsibilities(x).argmax(-1)
        mixture = _fit_clusters(x, labels, rank, seed, floor)
    return mixture


def _fit_clusters(x: Tensor, labels: Tensor, rank: int, seed: int, floor: float) -> GaussianMixture:
    """Each cluster's principal components, closed form given the floor; weights are the clusters' shares."""
    from sklearn.utils.extmath import randomized_svd

    clusters = [rows for k in labels.unique() if len(rows := x[labels == k]) > rank]
    if not clusters:
        raise ValueError(f"no cluster has more than {rank} points: ask for fewer components or a lower rank")
    parts = []
    for rows in clusters:
        centred = (rows - rows.mean(0)).numpy()
        _, singular, directions = randomized_svd(centred, rank, random_state=seed)
        excess = (torch.as_tensor(singular) ** 2 / len(rows) - floor**2).clamp(min=0)
        parts.append((rows.mean(0), torch.as_tensor(directions.T.copy()), excess.to(x.dtype)))
    weights = torch.tensor([len(rows) for rows in clusters], dtype=x.dtype)
    means, basis, excess = (torch.stack(part) for part in zip(*parts, strict=True))
    return GaussianMixture(weights, means, basis, excess, torch.full_like(weights, floor**2))
