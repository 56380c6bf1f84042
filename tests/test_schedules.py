"""The processes against the closed forms printed in the papers."""

import math

import pytest
import torch

from bench.diffusion.denoiser import KNOWN
from bench.diffusion.schedule import SCHEDULES, Table, ddpm_betas, ddpm_table

ALL = sorted(SCHEDULES)


@pytest.mark.parametrize("name", ALL)
def test_time_is_the_inverse_of_lambda(name):
    schedule = SCHEDULES[name]().narrowed(KNOWN)
    t = schedule.steps(23, "lambda")
    torch.testing.assert_close(schedule.time(schedule.lam(t)), t, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("spacing", ["lambda", "time", "quadratic", "karras"])
@pytest.mark.parametrize("end", ["t_min", "zero"])
def test_a_grid_falls_strictly_from_t_max_to_its_end(name, spacing, end):
    schedule = SCHEDULES[name]().narrowed(KNOWN)
    for n in (1, 2, 5, 50):
        t = schedule.steps(n, spacing, end)
        assert len(t) == n + 1 and bool((t.diff() < 0).all())
        assert float(t[0]) == schedule.t_max
        assert float(t[-1]) == (0 if end == "zero" else schedule.t_min)


@pytest.mark.parametrize("name", ALL)
def test_the_sde_has_the_marginals_it_was_made_from(name):
    """d(sigma^2)/dt = 2 f sigma^2 + g^2, the variance equation of dx = f x dt + g dw."""
    schedule = SCHEDULES[name]().narrowed(KNOWN)
    t = schedule.steps(9, "lambda")[1:-1]
    if isinstance(schedule, Table):  # its slope jumps at the table's entries
        t = (torch.floor(t * schedule.n) + 0.5) / schedule.n
    h = t * 1e-6
    slope = (schedule.sigma(t + h) ** 2 - schedule.sigma(t - h) ** 2) / (2 * h)
    expected = 2 * schedule.drift(t) * schedule.sigma(t) ** 2 + schedule.diffusion(t) ** 2
    torch.testing.assert_close(slope, expected, rtol=1e-4, atol=1e-8)


def test_linear_vp_has_the_drift_and_diffusion_of_the_paper():
    t = torch.tensor([0.01, 0.3, 0.9], dtype=torch.float64)
    beta = 0.1 + t * 19.9
    vp, subvp = SCHEDULES["vp"](), SCHEDULES["subvp"]()
    torch.testing.assert_close(vp.drift(t), -beta / 2)
    torch.testing.assert_close(vp.diffusion(t), beta.sqrt())
    discount = 1 - torch.exp(-2 * 0.1 * t - 19.9 * t**2)
    torch.testing.assert_close(subvp.diffusion(t), (beta * discount).sqrt())


def test_ve_has_the_diffusion_of_the_paper():
    t = torch.tensor([0.01, 0.3, 0.9], dtype=torch.float64)
    sigma = 0.01 * 5000**t
    torch.testing.assert_close(SCHEDULES["ve"]().diffusion(t), sigma * math.sqrt(2 * math.log(5000)))


def test_the_cosine_schedule_is_the_paper_s():
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    f = lambda t: torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    cosine = SCHEDULES["vp_cosine"]()
    torch.testing.assert_close(cosine.alpha(t) ** 2, f(t) / f(torch.zeros(())))
    torch.testing.assert_close(cosine.alpha(t) ** 2 + cosine.sigma(t) ** 2, torch.ones_like(t))


def test_ddpm_s_table_is_the_product_of_its_betas():
    table = ddpm_table()
    bar = torch.cumprod(1 - ddpm_betas(), 0)
    steps = torch.tensor([1, 2, 500, 1000], dtype=torch.float64)
    torch.testing.assert_close(table.alpha(steps / 1000) ** 2, bar[steps.long() - 1])
    assert float(table.sigma(0.0)) == 0.0
    torch.testing.assert_close(
        table.steps(1000, "time", end="zero"), torch.arange(1000, -1, -1) / 1000.0, check_dtype=False
    )


def test_a_schedule_is_narrowed_to_what_the_network_knows_and_no_further():
    flow = SCHEDULES["flow"]().narrowed(KNOWN)
    assert float(flow.lam(flow.t_max)) == pytest.approx(-5.1, abs=1e-6)
    assert 0 < float(flow.alpha(flow.t_max)) < 0.01
    edm = SCHEDULES["edm"]()
    assert edm.narrowed(KNOWN) is edm


def test_karras_spacing_is_the_paper_s():
    n = 18
    i = torch.arange(n, dtype=torch.float64)
    paper = (80 ** (1 / 7) + i / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(SCHEDULES["edm"]().steps(n, "karras", end="zero")[:-1], paper)


def test_a_tensor_of_lambdas_is_a_spacing():
    edm = SCHEDULES["edm"]()
    knots = torch.tensor([-4.3820266, 0.0, 6.2146081], dtype=torch.float64)
    assert float(edm.steps(2, knots)[1]) == pytest.approx(1.0)
    assert float(edm.steps(4, knots)[2]) == pytest.approx(1.0)


def test_unknown_spacings_and_empty_grids_are_refused():
    with pytest.raises(ValueError, match="no spacing 'cubic'"):
        SCHEDULES["edm"]().steps(4, "cubic")
    with pytest.raises(ValueError, match="at least one step"):
        SCHEDULES["edm"]().steps(0)
