"""The exact mixtures, against brute force with explicit covariances, and those that are shipped as data."""

import math

import click
import pytest
import torch
from click.testing import CliRunner

from bench.data import exact as shipped
from bench.data import load, names
from bench.diffusion import exact
from bench.diffusion.exact import ExactNetwork, GaussianMixture, fit_mixture


def mixture(k: int = 3, d: int = 5, rank: int = 2, seed: int = 0, spread: float = 1.0) -> GaussianMixture:
    """A random mixture in float64 whose components differ in everything, floors included."""
    g = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.rand(*shape, generator=g, dtype=torch.float64)
    basis = torch.linalg.qr(rand(k, d, rank) - 0.5).Q
    means = spread * (2 * rand(k, d) - 1)
    return GaussianMixture(0.2 + rand(k), means, basis, 0.1 + rand(k, rank), 0.01 + 0.1 * rand(k))


def noisy(m: GaussianMixture, r, n: int = 64, seed: int = 1) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    x = m.sample(n, g)
    return x + torch.as_tensor(r, dtype=x.dtype).reshape(-1, 1) * torch.randn(
        x.shape, generator=g, dtype=x.dtype
    )


def brute_force(m: GaussianMixture, z: torch.Tensor, r: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Posterior mean and log density from explicit covariances and torch's own multivariate normal."""
    eye = torch.eye(m.dim, dtype=torch.float64)
    logs, means = [], []
    for k in range(len(m.weights)):
        cov = m.basis[k] @ m.excess[k].diag() @ m.basis[k].T + m.floor[k] * eye
        normal = torch.distributions.MultivariateNormal(m.means[k], cov + r**2 * eye)
        logs.append(m.weights[k].log() + normal.log_prob(z))
        gain = cov @ torch.linalg.inv(cov + r**2 * eye)
        means.append(m.means[k] + (z - m.means[k]) @ gain.T)
    joint = torch.stack(logs, 1)
    return torch.einsum("nk,knd->nd", joint.softmax(1), torch.stack(means)), joint.logsumexp(1)


@pytest.mark.parametrize("r", [0.01, 0.3, 1.0, 20.0])
def test_denoiser_and_density_equal_brute_force_with_explicit_covariances(r):
    m = mixture()
    z = noisy(m, r)
    x0, log_prob = brute_force(m, z, r)
    torch.testing.assert_close(m.denoise(z, r), x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(m.log_prob(z, r), log_prob, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("r", [0.0, 0.2, 5.0])
def test_score_is_the_gradient_of_the_log_density(r):
    m = mixture()
    z = noisy(m, r).requires_grad_()
    (gradient,) = torch.autograd.grad(m.log_prob(z, r).sum(), z)
    torch.testing.assert_close(m.score(z.detach(), r), gradient, rtol=1e-9, atol=1e-9)


def test_density_integrates_to_one_on_a_grid():
    m = mixture(d=2, rank=1)
    axis = torch.linspace(-6, 6, 400, dtype=torch.float64)
    area = (axis[1] - axis[0]) ** 2
    for r in (0.0, 0.5):
        total = m.log_prob(torch.cartesian_prod(axis, axis), r).exp().sum() * area
        assert total.item() == pytest.approx(1, abs=1e-5)


def test_samples_have_the_mean_and_covariance_of_the_mixture():
    m, n = mixture(), 200_000
    x = m.sample(n, torch.Generator().manual_seed(0))
    error = (m.cov().diagonal() / n).sqrt()  # of the mean; of a covariance entry about 2 variances / sqrt(n)
    assert ((x.mean(0) - m.mean()).abs() < 5 * error).all()
    assert (x.T.cov() - m.cov()).abs().max() < 10 * m.cov().diagonal().max() / math.sqrt(n)


def test_covariance_equals_the_sum_over_explicit_components():
    m = mixture()
    explicit = -torch.outer(m.mean(), m.mean())
    for k in range(3):
        cov = m.basis[k] @ m.excess[k].diag() @ m.basis[k].T + m.floor[k] * torch.eye(5)
        explicit = explicit + m.weights[k] * (cov + torch.outer(m.means[k], m.means[k]))
    torch.testing.assert_close((m.cov(), m.variance()), (explicit, explicit.trace()))
    torch.testing.assert_close(m.mean(), m.weights @ m.means)


def test_projection_has_the_projected_mean_and_covariance():
    m = mixture()
    directions = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, cov = m.project(directions)
    torch.testing.assert_close(mean, m.mean() @ directions)
    torch.testing.assert_close(cov, directions.T @ m.cov() @ directions)


def test_what_cannot_be_done_is_refused():
    m = mixture(k=2, d=257)
    with pytest.raises(ValueError, match=r"use project\(directions\)"):
        m.cov()
    with pytest.raises(ValueError, match="cannot be"):
        GaussianMixture(m.weights, m.means, m.basis, m.excess, m.floor[:1])
    with pytest.raises(ValueError, match="cannot have the shape"):
        ExactNetwork(m, (1, 3, 3), 0.5)
    with pytest.raises(ValueError, match="fewer components or a lower rank"):
        fit_mixture(torch.randn(6, 4), components=6, rank=2, seed=0)


@pytest.mark.parametrize("r", [0.001, 0.05, 1.0, 150.0])
def test_float32_agrees_with_float64_in_many_dimensions(r):
    m = mixture(k=8, d=768, rank=16, spread=0.4)
    z = noisy(m, r, n=32).float()
    single = mixture(k=8, d=768, rank=16, spread=0.4).float()
    assert single.denoise(z, r).dtype == torch.float32
    assert (single.denoise(z, r) - m.denoise(z.double(), r)).abs().max() < 2e-5
    assert (single.log_prob(z, r) - m.log_prob(z.double(), r)).abs().max() < 0.05
    torch.testing.assert_close(
        single.score(z, r).double(), m.score(z.double(), r), rtol=1e-3, atol=1e-3 / max(r, 0.1)
    )


def test_float32_responsibilities_are_right_where_components_overlap_under_large_noise():
    m = mixture(k=8, d=768, rank=16, spread=0.4)
    z = noisy(m, 3.0, n=32).float()
    exactly = m.responsibilities(z, 3.0)
    assert ((exactly > 0.01) & (exactly < 0.99)).any()  # else there is nothing to see
    single = mixture(k=8, d=768, rank=16, spread=0.4).float().responsibilities(z, 3.0)
    torch.testing.assert_close(single.double(), exactly, rtol=0, atol=1e-3)


def test_jvp_and_vjp_agree_with_each_other_and_with_differences():
    m = mixture()
    z, u, v = noisy(m, 0.4, n=3 * 16).split(16)
    f = lambda z: m.denoise(z, 0.4)
    _, forward = torch.func.jvp(f, (z,), (v,))
    _, pull = torch.func.vjp(f, z)
    torch.testing.assert_close((u * forward).sum(), (pull(u)[0] * v).sum())
    torch.testing.assert_close(forward, (f(z + 1e-5 * v) - f(z - 1e-5 * v)) / 2e-5, rtol=1e-6, atol=1e-6)


def test_vmap_over_tangents_gives_the_whole_jacobian():
    m = mixture()
    z = noisy(m, 0.4, n=1)
    push = lambda v: torch.func.jvp(lambda z: m.denoise(z, 0.4), (z,), (v[None],))[1][0]
    jacobian = torch.func.vmap(push)(torch.eye(5, dtype=torch.float64)).T
    reference = torch.autograd.functional.jacobian(lambda z: m.denoise(z[None], 0.4)[0], z[0])
    torch.testing.assert_close(jacobian, reference)


def test_vmap_over_rows_and_noises_equals_the_batch():
    m = mixture()
    r = torch.linspace(0.1, 2, 8, dtype=torch.float64)
    z = noisy(m, r, n=8)
    each = torch.func.vmap(lambda z, r: m.denoise(z[None], r)[0])(z, r)
    torch.testing.assert_close(each, m.denoise(z, r))


def test_rows_are_independent_of_how_they_are_cut_into_pieces(monkeypatch):
    m = mixture()
    r = torch.linspace(0.1, 2, 50, dtype=torch.float64)
    z = noisy(m, r, n=50)
    whole = m.denoise(z, r), m.log_prob(z, r), m.score(z, 0.3)
    monkeypatch.setattr(exact, "ROWS", 7)
    for cut, uncut in zip((m.denoise(z, r), m.log_prob(z, r), m.score(z, 0.3)), whole, strict=True):
        torch.testing.assert_close(cut, uncut)


def test_images_keep_their_shape_and_no_rows_give_no_rows():
    m = mixture(d=12)
    z = noisy(m, 0.5)
    flat = m.denoise(z, 0.5)
    torch.testing.assert_close(m.denoise(z.reshape(-1, 3, 2, 2), 0.5), flat.reshape(-1, 3, 2, 2))
    assert m.denoise(z[:0].reshape(0, 3, 2, 2), 0.5).shape == (0, 3, 2, 2)


def test_without_noise_the_denoiser_returns_its_input():
    m = mixture()
    z = m.sample(10)
    torch.testing.assert_close(m.denoise(z, 0.0), z)


def test_loading_weights_replaces_the_whole_mixture():
    one, other = mixture(seed=0), mixture(seed=7)
    one.load_state_dict(other.state_dict())
    z = noisy(other, 0.3)
    torch.testing.assert_close(one.denoise(z, 0.3), other.denoise(z, 0.3))


def test_loading_the_weights_that_a_mixture_has_changes_no_bit_of_its_answers():
    m = mixture().float()
    z = noisy(m, 0.3)
    before = m.denoise(z, 0.3)
    m.load_state_dict(m.state_dict())
    assert torch.equal(m.denoise(z, 0.3), before)


def test_same_seed_draws_the_same_points_in_both_precisions():
    draws = [m.sample(20, torch.Generator().manual_seed(5)) for m in (mixture(), mixture().float())]
    torch.testing.assert_close(draws[1].double(), draws[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("lam", [torch.tensor(0.7), torch.linspace(-5, 6.9, 64)])
def test_network_undoes_its_input_scale_and_reads_lambda(lam):
    m = mixture(d=4)
    r = (-lam.double()).exp()
    z = noisy(m, r)
    x_in = (z / (0.5**2 + r.reshape(-1, 1) ** 2).sqrt()).reshape(-1, 1, 2, 2)
    out = ExactNetwork(m, (1, 2, 2), 0.5)(x_in, lam.double())
    torch.testing.assert_close(out.flatten(1), m.denoise(z, r))


def test_network_answers_in_the_precision_of_its_input():
    net = ExactNetwork(mixture(d=4), (4,), 0.5)
    assert net(torch.zeros(2, 4), torch.tensor(0.0)).dtype == torch.float32


def test_fit_finds_the_mixture_the_data_came_from():
    truth = mixture(k=3, d=8, rank=2, spread=4.0)
    truth.floor.fill_(0.1**2)
    x = truth.sample(6000, torch.Generator().manual_seed(0)).float()
    fitted = fit_mixture(x, components=3, rank=2, seed=0, floor=0.1).double()
    held_out = truth.sample(2000, torch.Generator().manual_seed(1))
    lost = (truth.log_prob(held_out) - fitted.log_prob(held_out)).mean()  # Kullback-Leibler divergence, nats
    assert -0.02 < lost < 0.05
    torch.testing.assert_close(fitted.weights.sort().values, truth.weights.sort().values, rtol=0, atol=0.03)


EXACT = [name for name in names() if name.startswith("mixture")]


@pytest.mark.parametrize("name", EXACT)
def test_an_exact_data_set_is_normalised_and_has_its_shape(name):
    data = load(name)
    mixture = data.exact
    assert (mixture.means.dtype, mixture.dim, data.levels) == (torch.float64, data.dim, None)
    assert mixture.weights.sum().item() == pytest.approx(1, abs=1e-12)
    gram = mixture.basis.mT @ mixture.basis
    torch.testing.assert_close(gram, torch.eye(gram.shape[-1]).expand_as(gram).double(), rtol=0, atol=1e-12)
    assert (mixture.excess >= 0).all()
    assert (mixture.floor >= 0.0499**2).all()  # in float16


def test_shipped_mixtures_are_small():
    sizes = [file.stat().st_size for file in shipped.SHIPPED.glob("*.safetensors")]
    assert len(sizes) == 3 and max(sizes) < 5e6


def test_rounding_to_float16_moves_no_basis_vector_far(tmp_path):
    stored = fit_mixture(load("digits").scale(load("digits").train).flatten(1), 4, 6, seed=0, rounds=0)
    shipped.write(stored, (1, 8, 8), tmp_path / "m.safetensors")
    basis = load(f"mixture:{tmp_path}/m.safetensors").exact.basis
    assert (basis - stored.basis).abs().max() < 2e-3


@pytest.mark.parametrize("name", ["mixture2d", "mixture-digits"])
def test_exact_samples_are_drawn_when_asked_for_and_always_the_same(name):
    data = shipped.load(name)
    assert not {"train", "test"} & vars(data).keys()
    assert (data.train.shape, data.test.shape) == ((10_000, *data.shape), (2_000, *data.shape))
    assert data.train is data.train
    assert not torch.equal(data.train[:2000], data.test)
    assert torch.equal(shipped.load(name).test, data.test) and data.test.dtype == torch.float32


@pytest.mark.parametrize("name", ["mixture2d", "mixture-digits"])
def test_sigma_data_of_a_mixture_is_that_of_its_samples(name):
    data = load(name)
    assert data.sigma_data == pytest.approx(data.train.std(correction=0).item(), rel=0.01)


def test_the_ring_is_a_ring_of_eight_tilted_gaussians():
    mixture = load("mixture2d").exact
    deviations = torch.stack([mixture.floor, mixture.floor + mixture.excess[:, 0]]).sqrt()
    torch.testing.assert_close(mixture.means.norm(dim=1), torch.ones(8, dtype=torch.float64))
    assert [deviations.min().item(), deviations.max().item()] == pytest.approx([0.07, 0.2])
    assert (mixture.basis.abs() > 0.05).all()  # none along an axis
    assert mixture.weights.max() > 3 * mixture.weights.min()


def test_digits_drawn_from_the_mixture_are_nearer_to_digits_than_noise_is():
    real, drawn = load("digits"), load("mixture-digits")
    held_out = real.scale(real.test).flatten(1)
    nearest = lambda x: torch.cdist(x.flatten(1), held_out).min(1).values.mean()
    noise = drawn.test.flatten()[torch.randperm(2000 * 64)].reshape(2000, 64)  # the same values, in any place
    assert nearest(drawn.test) < 0.6 * nearest(noise)


def test_fingerprints_of_mixtures_differ_and_need_no_samples():
    data = [shipped.load(name) for name in EXACT]
    assert len({each.fingerprint for each in data}) == len(EXACT)
    assert not any("train" in vars(each) for each in data)


def test_the_command_fits_a_mixture_that_can_be_loaded(tmp_path):
    result = CliRunner().invoke(shipped.main, f"digits --components 3 --rank 2 --out {tmp_path}/m")
    assert result.exit_code == 0, result.output
    data = load(f"mixture:{tmp_path}/m")
    assert (data.kind, data.shape, data.exact.excess.shape) == ("image", (1, 8, 8), (3, 2))


def test_a_file_that_is_no_mixture_is_refused(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(click.ClickException, match="is not a mixture"):
        load(f"mixture:{tmp_path}/m.safetensors")
    with pytest.raises(click.ClickException, match="there is no file"):
        load(f"mixture:{tmp_path}/none.safetensors")
