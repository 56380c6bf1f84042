"""Reflected diffusion in the box, held against a truncated mixture whose reflected flow is known."""

import math

import pytest
import torch
from running import bench, ran

from bench import registry, store
from bench.data import Data, load
from bench.data.boxes import square
from bench.diffusion import reflection
from bench.diffusion.counting import counting
from bench.diffusion.reflection import fold, kernel_score
from bench.diffusion.training import seeded, session


def model_of(data, images=0, **fields):
    method = registry.find("reflected", registry.plugins()).make(fields)
    torch.manual_seed(0)
    model = method.build(None, data, 10)
    if images:
        with session(seed=0):
            method.train(model, None, data, images, 10)
    return method, model.eval()


def excess(method, model, data, nfe, rows=400):
    x = data.test[:rows]
    with torch.no_grad():
        gap = method.nll(model, x, nfe) + data.exact.log_prob(x.double())
    return float(gap.mean())


def sampled(method, model, n, nfe):
    torch.manual_seed(0)
    with torch.no_grad(), counting(model, nfe * n):
        return method.sample(model, method.start(model, n, seeded(0)), nfe)


def test_folding_mirrors_at_the_walls_however_far_outside():
    x = torch.tensor([0.3, 1.2, -1.2, 2.9, 3.1, -5.5, 41.0])
    inside, sign = fold(x)
    assert torch.allclose(inside, torch.tensor([0.3, 0.8, -0.8, -0.9, -0.9, -0.5, 1.0]), atol=1e-5)
    assert sign.tolist()[:5] == [1, -1, -1, -1, 1]


def test_the_two_forms_of_the_boxs_kernel_agree(monkeypatch):
    a, b = (2 * torch.rand(200, 3, generator=seeded(i)).double() - 1 for i in (0, 1))
    monkeypatch.setattr(reflection, "WIDE", 5.0)
    by_images = kernel_score(a, b, 0.95)
    monkeypatch.setattr(reflection, "WIDE", 0.1)
    assert torch.allclose(by_images, kernel_score(a, b, 0.95), atol=1e-9)


def test_the_kernel_of_each_row_has_its_own_sigma():
    a, b = (2 * torch.rand(4, 1, 2, 2, generator=seeded(i)) - 1 for i in (0, 1))
    sigma = torch.tensor([0.05, 0.5, 2.0, 9.0])
    together = kernel_score(a, b, sigma)
    alone = torch.cat([kernel_score(a[i : i + 1], b[i : i + 1], sigma[i]) for i in range(4)])
    assert torch.allclose(together, alone)


@pytest.mark.parametrize("sigma", [0.05, 0.4, 2.0])
def test_the_exact_score_is_the_mean_of_the_kernels_over_the_posterior(sigma):
    mixture = square()
    grid = (torch.arange(600, dtype=torch.float64) + 0.5) / 300 - 1
    x0 = torch.cartesian_prod(grid, grid)
    density = mixture.log_prob(x0).exp()
    for x in (torch.tensor([[-0.93, 0.88]]).double(), torch.tensor([[0.4, -0.2]]).double()):
        place = x.expand_as(x0)
        images = [
            torch.cat([place - x0 + 4 * n, place + x0 - 2 + 4 * n], 1).view(-1, 2, 2) for n in range(-4, 5)
        ]
        log_kernel = torch.cat([-(gap**2) / (2 * sigma**2) for gap in images], 1).logsumexp(1).sum(1)
        share = (log_kernel.exp() * density)[:, None]
        mean = (share * kernel_score(x0, place, sigma)).sum(0) / share.sum()
        assert torch.allclose(mixture.reflected_score(x, sigma)[0], mean, rtol=0.02, atol=0.02)


def test_the_truncated_mixtures_samples_have_its_moments_and_its_posterior_means():
    mixture = square()
    x = mixture.sample(100_000, seeded(0))
    assert float(x.abs().max()) <= 1
    assert torch.allclose(x.mean(0), mixture.mean(), atol=0.01)
    assert float(x.var(0).sum()) == pytest.approx(float(mixture.variance()), abs=0.01)
    z = torch.tensor([[0.9, 0.5], [2.0, -1.0]]).double()
    share = (-((z[:, None] - x) ** 2).sum(-1) / (2 * 0.5**2)).softmax(1)
    assert torch.allclose(mixture.denoise(z, 0.5), share @ x, atol=0.03)
    assert mixture.denoise(torch.tensor([[1.0, -1.0], [300.0, 9.0]]), 0.01).abs().max() <= 1


def test_with_the_exact_score_the_likelihood_is_the_exact_one():
    data = load("box2d")
    method, model = model_of(data, trace="exact")
    assert abs(excess(method, model, data, 48)) < 0.005


def test_with_the_exact_score_samples_come_to_the_data():
    data = load("box2d")
    method, model = model_of(data)
    samples = sampled(method, model, 1000, 64).double()
    assert torch.allclose(samples.mean(0), data.exact.mean(), atol=0.1)
    assert float(samples.var(0).sum()) == pytest.approx(float(data.exact.variance()), rel=0.15)


@pytest.mark.parametrize("fields", [{}, {"predictor": "reverse_diffusion"}, {"snr": 0.2}])
@pytest.mark.parametrize("nfe", [4, 9])
def test_no_sample_ever_leaves_the_box(fields, nfe):
    data = load("box2d")
    for learned in (False, True):
        method, model = model_of(data, learned=learned, **fields)
        assert float(sampled(method, model, 200, nfe).abs().max()) <= 1


def test_a_networks_score_has_no_part_across_a_wall():
    _, model = model_of(load("box2d"), learned=True)
    x = torch.tensor([[1.0, 0.3], [-1.0, -0.2], [0.5, 1.0]])
    for sigma in (0.02, 0.5, 8.0):
        score = model(x, sigma).detach()
        assert float(torch.stack([score[0, 0], score[1, 0], score[2, 1]]).abs().max()) < 1e-4 / sigma


def test_a_networks_density_is_one():
    data = load("box2d")
    method, model = model_of(data, 3_000, learned=True, trace="exact")
    side = torch.linspace(-1, 1, 42)[:-1] + 1 / 41
    with torch.no_grad():
        density = (-method.nll(model, torch.cartesian_prod(side, side), 96)).exp()
    assert 4 * float(density.mean()) == pytest.approx(1, abs=0.02)


@pytest.mark.slow
def test_more_training_comes_nearer_the_exact_density():
    data = load("box2d")
    few, many = (
        excess(*model_of(data, images, learned=True, trace="exact"), data, 48) for images in (6_000, 40_000)
    )
    assert many < 0.7 * few and many < 0.4


def on_levels(levels=4):
    """Pairs of levels, all as likely."""
    stored = torch.randint(levels, (512, 2), generator=seeded(3)).to(torch.uint8)
    return Data("pairs", "box", (2,), train=stored, test=stored[:64], levels=levels)


def test_levels_fill_the_box_and_a_sample_is_of_the_level_of_its_cell(monkeypatch):
    data = on_levels()
    method, model = model_of(data)
    monkeypatch.setattr(type(model), "forward", lambda self, x, sigma: 0 * x)
    samples = sampled(method, model, 400, 4)
    # uniform numbers stay uniform, so that every level comes as often
    counts = torch.bincount(data.quantise(samples).flatten(), minlength=4)
    assert float(samples.abs().max()) <= 1
    assert int(counts.min()) > 150 and int(counts.max()) < 250


def test_the_likelihood_of_even_levels_is_a_density_per_unit_of_x(monkeypatch):
    data = on_levels()
    method, model = model_of(data)
    monkeypatch.setattr(type(model), "forward", lambda self, x, sigma: 0 * x)  # every level as likely
    nats = method.nll(model, data.scale(data.test), 8)
    assert nats.tolist() == pytest.approx([2 * math.log(4 * 2 / 3)] * 64)  # log 4 a level, by a bin of 2/3


def test_a_gaussian_method_is_measured_on_the_box_beside_it(tmp_path):
    said = ran("reflected", "ddim", "--data", "box2d", "--metric", "sliced_wasserstein", results=tmp_path)
    methods = {row.method for row in store.read(tmp_path) if row.metric == "sliced_wasserstein"}
    assert {"reflected", "ddim"} <= methods and "Reflected diffusion" in said


def test_an_unknown_predictor_is_refused_by_one_sentence(tmp_path):
    words = ("run", "reflected:predictor=leap", "--data", "box2d", "--nfe", "4", "--samples", "80")
    result = bench(*words, "--threads", "1", results=tmp_path)
    assert "euler_maruyama or reverse_diffusion" in result.output and "Traceback" not in result.output
