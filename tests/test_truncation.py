"""Methods that stop the diffusion early and start from another model."""

import pytest
import torch
from torch import Tensor, nn

from bench.data import load
from bench.diffusion.counting import Counted, counting
from bench.diffusion.schedule import VP
from bench.diffusion.training import seeded, session
from bench.models import recipes
from zoo.sampling_acceleration.ode_solver.ddim import DDIM
from zoo.sampling_acceleration.truncation.es_ddpm import ESDDPM
from zoo.sampling_acceleration.truncation.tdpm import TDPM

DATA = load("mixture2d")


class Truth(nn.Module):
    """A VAE without error of its own, or one that is off by `shift`."""

    def __init__(self, shift: float = 0.0):
        super().__init__()
        self.shift, self.decoder = shift, Counted(nn.Identity(), role="extra")

    def draw(self, n: int, generator: torch.Generator, device: str) -> Tensor:
        return self.decoder(DATA.exact.sample(n, generator).float() + self.shift)


def model(shift: float = 0.0) -> nn.ModuleDict:
    return nn.ModuleDict({"denoiser": recipes.exact_denoiser(DATA), "vae": Truth(shift)})


def of_vp(models: nn.ModuleDict) -> nn.ModuleDict:
    return nn.ModuleDict(dict(models.items()) | {"denoiser": models["denoiser"].under(VP())})


def surprise(samples: Tensor) -> float:
    """Mean nats over those of the data themselves."""
    own = DATA.exact.log_prob(DATA.exact.sample(4000, seeded(9))).mean()
    return float(own - DATA.exact.log_prob(samples.double()).mean())


def drawn(method, models, nfe: int, n: int = 500) -> Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        return method.sample(models, method.start(models, n, seeded(0)), nfe)


def test_a_start_near_the_data_beats_ddim_at_few_steps():
    models = of_vp(model())
    assert surprise(drawn(ESDDPM(), models, 3)) < surprise(drawn(DDIM(), models["denoiser"], 3)) / 2


def test_a_later_stop_mends_more_of_what_is_wrong_with_the_start():
    wrong = of_vp(model(shift=0.1))
    early, late = (surprise(drawn(ESDDPM(stop=stop), wrong, 25)) for stop in (0.05, 0.5))
    assert late < early / 2


@pytest.mark.parametrize("stop", [0.1, 0.4])
def test_the_start_is_the_other_models_sample_diffused_to_the_stop(stop):
    models = of_vp(model())
    schedule = models["denoiser"].schedule
    alpha, sigma = float(schedule.alpha(stop)), float(schedule.sigma(stop))
    x = ESDDPM(stop=stop).start(models, 4000, seeded(0))
    expected = alpha**2 * DATA.exact.sample(4000, seeded(1)).var() + sigma**2
    assert float(x.var()) == pytest.approx(float(expected), rel=0.06)


def test_the_other_models_pass_is_no_evaluation():
    models = of_vp(model())
    with counting(models, allowance=5 * 40) as tallies:
        drawn(ESDDPM(), models, 5, n=40)
    assert (tallies["nfe"].rows, tallies["extra"].rows) == (200, 40)


def test_tdpm_trains_a_copy_of_the_shared_gan():
    gan = recipes.seeded_build(recipes.RECIPES["gan"], DATA, 0).requires_grad_(False)
    base = of_vp(nn.ModuleDict({"denoiser": recipes.exact_denoiser(DATA), "gan": gan}))
    before = gan.state_dict()["decoder.net.enter.weight"].clone()
    built = TDPM().build(base, DATA, 5)
    with session(seed=0):
        TDPM().train(built, base, DATA, 320, 5)
    assert torch.equal(gan.state_dict()["decoder.net.enter.weight"], before)
    assert not torch.equal(built["generator"].decoder.net.enter.weight, before)
    assert drawn(TDPM(), built, 2, n=10).shape == (10, 2)
