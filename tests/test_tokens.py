"""Tokens as data, what is measured of them, and the networks that learn them."""

import click
import pytest
import torch
from running import ran

from bench import registry, store
from bench.data import Data, load
from bench.diffusion import training
from bench.diffusion.categorical import Gaussian, Spectral
from bench.diffusion.exact_bits import bits_of, codes, tokens_of
from bench.diffusion.quantised import Codebook
from bench.diffusion.schedule import ddpm_betas
from bench.diffusion.token_nets import CodeTokens, ImageTokens, logistic
from bench.metrics.fidelity import measure

TEXT = "It was the best of times, it was the worst of times; 1859.\n"


def text(tmp_path, copies: int) -> str:
    path = tmp_path / "tale.txt"
    path.write_text(TEXT * copies)
    return f"text:{path}"


def test_markov_is_the_same_everywhere_and_its_entropy_is_that_of_its_samples():
    data = load("markov")
    assert data.kind == "tokens" and data.shape == (32,) and data.levels == 27
    assert data.fingerprint.startswith("8c3d8abeb87a95b1")
    measured = -data.exact.log_prob(data.scale(data.test)) / 32
    assert float(measured.mean()) == pytest.approx(
        data.exact.entropy, abs=4 * float(measured.std()) / 2000**0.5
    )


def test_a_text_is_its_letters_and_single_spaces(tmp_path):
    data = load(text(tmp_path, 100))
    letters = "".join(" abcdefghijklmnopqrstuvwxyz"[k] for k in data.train[:2].flatten())
    assert letters == "it was the best of times it was the worst of times it was the be"
    assert len(data.test) == round(0.1 * (len(data.train) + len(data.test)))
    assert data.levels == 27 and data.exact is None


def test_a_text_that_is_too_short_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(click.ClickException, match="3,200 or more"):
        load(text(tmp_path, 2))
    with pytest.raises(click.ClickException, match="there is no file"):
        load(f"text:{tmp_path / 'none.txt'}")


def test_the_total_variation_of_runs_is_small_for_the_data_and_large_for_noise():
    data = load("markov")
    names = ["tv1", "tv2", "tv3"]
    own = measure(names, [data.exact.sample(500, torch.Generator().manual_seed(5)).to(torch.uint8)], data)
    noise = torch.randint(27, (500, 32), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    far = measure(names, [noise], data)
    for name in names:
        assert own[name].value < 2 * own[name].extra["held_out"]
        assert far[name].value > 4 * own[name].value and len(own[name].replicates) == 20


def test_a_method_of_tokens_runs_on_text_in_bits_a_token(tmp_path):
    said = ran("mdlm", "--data", text(tmp_path, 300), "--images", "256", results=tmp_path / "runs")
    rows = store.read(tmp_path / "runs")
    assert {row.metric for row in rows} >= {"tv1", "tv2", "tv3", "nll[elbo]"}
    assert "bits/token" in said
    assert not [row.error for row in rows if row.error]


@pytest.mark.parametrize(
    "name", ["d3pm_uniform", "d3pm_absorbing", "d3pm_gaussian", "multinomial", "tauldr", "mdlm", "ardm"]
)
def test_a_network_learns_something_of_digits_in_a_short_training(name):
    data = load("digits").view("tokens")
    method = registry.find(name, registry.plugins()).make({})
    torch.manual_seed(0)
    model = method.build(None, data, 10)
    x = data.scale(data.test[:32])

    def bits() -> float:
        torch.manual_seed(1)
        with torch.no_grad():
            found = method.nll(model.eval(), x, 20)
        total = sum(found.values()) if isinstance(found, dict) else found
        return float(total.mean()) / 64 / 0.6931

    before = bits()
    with training.session():
        method.train(model, None, data, 1024, 20)
    assert bits() < min(0.9 * before, 4.1)  # the even guess is 4.09


def test_images_of_256_levels_fit():
    data = Data("grey", "tokens", (1, 28, 28), *torch.randint(256, (2, 64, 1, 28, 28)).byte(), levels=256)
    method = registry.find("d3pm_gaussian", registry.plugins()).make({"steps": 20})
    model = method.build(None, data, 2)
    with training.session() as session:
        method.train(model, None, data, 16, 2)
    with torch.no_grad():
        nats = sum(method.nll(model, data.scale(data.test[:4]), 2).values())
    assert session.images == 16 and nats.shape == (4,) and bool(nats.isfinite().all())


def test_gaussian_noise_ends_even_and_goes_to_near_levels_first():
    kernel = Gaussian(17, ddpm_betas(200) * 5)
    early, late = kernel.between(0.0, 0.3).matrix[8], kernel.between(0.0, 1.0).matrix[8]
    assert torch.allclose(late, torch.full((17,), 1 / 17).double(), atol=0.01)
    assert bool((early[8:].diff() <= 1e-12).all()) and torch.allclose(early, early.flip(0))


def test_a_spectral_kernel_is_the_exponential_of_its_rates():
    rates = torch.tensor([[-2.0, 2.0, 0.0], [1.0, -2.0, 1.0], [0.0, 2.0, -2.0]])
    kernel = Spectral(rates, torch.tensor([0.25, 0.5, 0.25]), lambda t: 3 * t)
    assert torch.allclose(kernel.between(0.1, 0.6).matrix, torch.matrix_exp(1.5 * rates.double()))


def test_the_logistic_prediction_is_a_distribution_about_its_place():
    p = logistic(torch.tensor([-1.0, 0.0, 0.9]), torch.tensor([-2.0, 0.0, -1.0]), 17).softmax(-1)
    assert p.argmax(-1).tolist() == [0, 8, 15]
    assert p[0, 0] > p[1, 8]  # the narrower the surer
    assert bool(logistic(torch.tensor([1.0]), torch.tensor([-9.0]), 256).isfinite().all())


def test_a_network_of_pixels_does_not_confuse_a_mask_with_a_level():
    torch.manual_seed(0)
    net = ImageTokens((1, 8, 8), 17, masks=True, logistic=False)
    x = torch.full((2, 1, 8, 8), 8)
    x[1] = 17  # the mask, which is shown as the same grey
    out = net(x, torch.zeros(2))
    assert out.shape == (2, 1, 8, 8, 17) and not torch.allclose(out[0], out[1])


def test_bits_name_every_token_and_come_back():
    for shape in ((3, 2, 4, 4), (3, 6)):
        table = codes(27)
        x = torch.randint(27, shape, generator=torch.Generator().manual_seed(0))
        bits = bits_of(x, table)
        assert set(bits.unique().tolist()) == {-1.0, 1.0}
        assert bits.shape[1] == 5 * (shape[1] if len(shape) == 4 else 1)
        assert torch.equal(tokens_of(0.1 * bits, table), x)


@pytest.mark.parametrize("side", [4, 7, 9])
def test_a_grid_of_codes_may_have_any_side(side):
    x = torch.randint(5, (2, side, side))
    assert CodeTokens(side, 5, masks=True)(x, torch.rand(2)).shape == (2, side, side, 5)


def test_a_codebook_gives_back_the_images_it_has_learned():
    data = load("digits")
    torch.manual_seed(0)
    codebook = Codebook(data.shape, 32)
    with training.session():
        training.fit(codebook.loss, codebook, data, 6000, batch=64, lr=2e-3)
    x = data.scale(data.test[:100])
    with torch.no_grad():
        codes = codebook.encoded(x)
        error = (codebook(codes) - x).square().mean()
    assert codes.shape == (100, 4, 4) and len(codes.unique()) > 8
    assert float(error) < 0.6 * float((x - x.mean(0)).square().mean())
