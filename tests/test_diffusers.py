"""Our samplers against diffusers' schedulers, on one network, grid and start.

The schedulers that work in sigma / alpha are given our grid in its place, those with a discrete process our
`ddpm` table. They compute in float32 in part, which bounds how well the two agree.
"""

import importlib.util
from functools import cache
from itertools import pairwise
from pathlib import Path

import diffusers
import pytest
import torch
from torch import Tensor

from bench.data import load
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.exact import ExactNetwork
from bench.diffusion.schedule import SCHEDULES, Schedule, Table, ddpm_betas
from bench.method import Method

ZOO = Path(__file__).parent.parent / "zoo"
FOLDERS = {"ddpm": "foundations"}
CLOSE = {"rtol": 0, "atol": 1e-5}


@cache
def plugin(name: str) -> type[Method]:
    path = ZOO / FOLDERS.get(name, "sampling_acceleration/ode_solver") / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return next(
        c for c in vars(module).values() if isinstance(c, type) and issubclass(c, Method) and c is not Method
    )


def denoiser(schedule: Schedule) -> Denoiser:
    data = load("mixture2d")
    network = ExactNetwork(data.exact, data.shape, data.sigma_data)
    return Denoiser(network, schedule, data.shape, "x0", data.sigma_data)


def start(base: Denoiser) -> Tensor:
    return base.prior(5, torch.Generator().manual_seed(0)).double()


def ours(name: str, base: Denoiser, nfe: int, **fields) -> Tensor:
    with torch.no_grad():
        return plugin(name)(**fields).sample(base, start(base), nfe)


def theirs(scheduler, base: Denoiser, times: Tensor, solver_types: list[str] | None = None) -> Tensor:
    """What a scheduler in sigma / alpha makes of our n + 1 times; its x is variance preserving."""
    steps, z = len(times) - 1, start(base) / base.schedule.alpha(times[0])
    scheduler.set_timesteps(steps)
    scheduler.sigmas = base.schedule.sigma(times) / base.schedule.alpha(times)
    scheduler.timesteps = torch.arange(steps, 0, -1) * 10
    preserving = (1 + scheduler.sigmas**2).rsqrt()
    x = preserving[0] * z
    for i, label in enumerate(scheduler.timesteps):
        if solver_types:
            scheduler.register_to_config(solver_type=solver_types[i])
        with torch.no_grad():
            eps = base(x / preserving[i] * base.schedule.alpha(times[i]), times[i]).eps
        x = scheduler.step(eps, label, x).prev_sample
    return x / preserving[-1] * base.schedule.alpha(times[-1])


def with_inner(base: Denoiser, orders: list[int]) -> Tensor:
    """Steps even in lambda, each cut evenly by its order: where a singlestep solver evaluates."""
    lam = base.schedule.lam(base.schedule.steps(len(orders)))
    knots = [
        s + (t - s) * i / order
        for order, (s, t) in zip(orders, pairwise(lam), strict=True)
        for i in range(order)
    ]
    times = base.schedule.time(torch.stack([*knots, lam[-1]]))
    times[0], times[-1] = base.schedule.t_max, base.schedule.t_min
    return times


@pytest.mark.parametrize("nfe", [5, 9, 20])
@pytest.mark.parametrize("schedule", ["vp", "vp_cosine"])
def test_dpmpp_2m_is_diffusers(nfe, schedule):
    base = denoiser(SCHEDULES[schedule]())
    scheduler = diffusers.DPMSolverMultistepScheduler(final_sigmas_type="sigma_min")
    torch.testing.assert_close(
        ours("dpmpp_2m", base, nfe), theirs(scheduler, base, base.schedule.steps(nfe)), **CLOSE
    )


@pytest.mark.parametrize("nfe", [5, 9, 20])
def test_dpmpp_3m_with_half_its_curvature_is_diffusers(nfe):
    """The paper's expansion (eq. 9) has x0''; the authors' code and diffusers take half of it."""
    base = denoiser(SCHEDULES["vp"]())
    scheduler = diffusers.DPMSolverMultistepScheduler(solver_order=3, final_sigmas_type="sigma_min")
    expected = theirs(scheduler, base, base.schedule.steps(nfe))
    torch.testing.assert_close(ours("dpmpp_3m", base, nfe, curvature=0.5), expected, **CLOSE)


@pytest.mark.parametrize("nfe", [6, 7, 20])
def test_dpmpp_2s_is_diffusers(nfe):
    base = denoiser(SCHEDULES["vp"]())
    # With an even budget diffusers' lower_order_final would make two steps of the last one.
    scheduler = diffusers.DPMSolverSinglestepScheduler(
        lower_order_final=nfe % 2 == 1, final_sigmas_type="sigma_min"
    )
    times = with_inner(base, [2] * (nfe // 2) + [1] * (nfe % 2))
    torch.testing.assert_close(ours("dpmpp_2s", base, nfe), theirs(scheduler, base, times), **CLOSE)


@pytest.mark.parametrize("nfe", [6, 7])
def test_dpm_solver_2_is_diffusers(nfe):
    base = denoiser(SCHEDULES["vp"]())
    scheduler = diffusers.DPMSolverSinglestepScheduler(
        algorithm_type="dpmsolver", lower_order_final=nfe % 2 == 1, final_sigmas_type="sigma_min"
    )
    times = with_inner(base, [2] * (nfe // 2) + [1] * (nfe % 2))
    torch.testing.assert_close(ours("dpm_solver_2", base, nfe), theirs(scheduler, base, times), **CLOSE)


@pytest.mark.parametrize(
    ("nfe", "orders"), [(9, [3, 3, 2, 1]), (10, [3, 3, 3, 1]), (11, [3, 3, 3, 2]), (3, [2, 1])]
)
def test_dpm_solver_3_is_diffusers_with_the_second_stage_of_the_paper(nfe, orders):
    """Algorithm 2 has the expansion's own factor in the second stage, which diffusers calls "heun", and the
    midpoint's in DPM-Solver-2 and at the end of a step: its solver_type is one for all.
    """
    base = denoiser(SCHEDULES["vp"]())
    scheduler = diffusers.DPMSolverSinglestepScheduler(
        solver_order=3, algorithm_type="dpmsolver", lower_order_final=True, final_sigmas_type="sigma_min"
    )
    types = [
        "heun" if order == 3 and stage == 2 else "midpoint"
        for order in orders
        for stage in range(1, order + 1)
    ]
    expected = theirs(scheduler, base, with_inner(base, orders), types)
    torch.testing.assert_close(ours("dpm_solver_3", base, nfe), expected, **CLOSE)


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("nfe", [5, 10, 20])
def test_unipc_is_diffusers(nfe, variant):
    base = denoiser(SCHEDULES["vp"]())
    scheduler = diffusers.UniPCMultistepScheduler(
        solver_order=3, solver_type=variant, final_sigmas_type="sigma_min"
    )
    expected = theirs(scheduler, base, base.schedule.steps(nfe))
    torch.testing.assert_close(
        ours("unipc", base, nfe, variant={"bh1": "B1", "bh2": "B2"}[variant]), expected, **CLOSE
    )


@pytest.mark.parametrize("r", [0, 1, 2])
def test_deis_in_a_time_that_is_log_sigma_is_diffusers(r):
    """The paper's polynomial is in t, diffusers' in log(sigma / alpha): under "ve" the two are one."""
    base = denoiser(SCHEDULES["ve"]())
    scheduler = diffusers.DEISMultistepScheduler(solver_order=r + 1)
    times = base.schedule.steps(20, "time")
    torch.testing.assert_close(
        ours("deis_tab", base, 20, r=r, spacing="time"), theirs(scheduler, base, times), **CLOSE
    )


def test_ipndm_is_diffusers():
    """diffusers' scheduler has a grid of its own (t = 2/pi asin sigma); here it has ours. It is told v."""
    base = denoiser(SCHEDULES["vp"]())
    times = base.schedule.steps(10, "time")
    scheduler = diffusers.IPNDMScheduler()
    scheduler.set_timesteps(10)
    scheduler.alphas, scheduler.betas = base.schedule.alpha(times), base.schedule.sigma(times)
    scheduler.timesteps = torch.arange(10, 0, -1)
    x = start(base)
    for t, label in zip(times, scheduler.timesteps):
        with torch.no_grad():
            x = scheduler.step(base(x, t).v, label, x).prev_sample
    torch.testing.assert_close(ours("ipndm", base, 10), x, **CLOSE)


def alpha_bar(n: int = 1000) -> Tensor:
    return torch.cumprod(1 - ddpm_betas(), 0)[:n]


def test_f_pndm_is_diffusers_without_its_empty_last_step():
    """diffusers' grid 900, 800, ..., 0 ends with a step from 0 to 0; ours has the first 901 noise levels."""
    base = denoiser(Table(alpha_bar(901)))
    scheduler = diffusers.PNDMScheduler()
    scheduler.alphas_cumprod = alpha_bar()
    scheduler.set_timesteps(10)
    x = start(base)
    for n in scheduler.timesteps[:-1]:
        with torch.no_grad():
            eps = base(x, (n + 1) / 901).eps
        x = scheduler.step(eps, int(n), x).prev_sample
    torch.testing.assert_close(ours("pndm", base, 18), x, **CLOSE)


def test_ddim_is_diffusers():
    base = denoiser(Table(alpha_bar()))
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    scheduler.alphas_cumprod = alpha_bar()
    scheduler.set_timesteps(27)  # 28 times from step 999 to step 0, 37 apart
    x = start(base)
    for n in range(999, -1, -37):
        with torch.no_grad():
            eps = base(x, torch.tensor((n + 1) / 1000)).eps
        x = scheduler.step(eps, n, x).prev_sample
    torch.testing.assert_close(ours("ddim", base, 28), x, **CLOSE)


@pytest.mark.parametrize(("s", "t"), [(999, 962), (500, 463), (37, 0)])
def test_the_mean_and_variance_of_a_ddpm_step_are_diffusers(s, t):
    base = denoiser(Table(alpha_bar()))
    scheduler = diffusers.DDPMScheduler(clip_sample=False, variance_type="fixed_small")
    scheduler.alphas_cumprod = alpha_bar()
    scheduler.set_timesteps(timesteps=[s, t])
    times = [torch.tensor((n + 1) / 1000).double() for n in (s, t)]
    with torch.no_grad():
        x, method = start(base), plugin("ddpm")(variance="posterior")
        mean, variance = method.reverse(base, x, *times)
        assert float(scheduler._get_variance(s)) == pytest.approx(float(variance), rel=1e-5)
        scheduler._get_variance = lambda *_, **__: torch.zeros(())
        torch.testing.assert_close(scheduler.step(base(x, times[0]).eps, s, x).prev_sample, mean, **CLOSE)


def test_edm_heun_is_diffusers():
    base = denoiser(SCHEDULES["edm"]())
    times = base.schedule.steps(10, "karras", end="zero")
    scheduler = diffusers.HeunDiscreteScheduler()
    scheduler.set_timesteps(10)
    twice = times[:-1].repeat_interleave(2)[1:]  # each but the first is arrived at and left
    scheduler.sigmas, scheduler.timesteps = torch.cat([times[:1], twice[1:], times[-1:]]), twice
    x = start(base)
    for t in twice:
        with torch.no_grad():
            x = scheduler.step(base(x, t).eps, t, x).prev_sample
    torch.testing.assert_close(ours("edm_heun", base, 19), x, **CLOSE)


def test_ddim_on_edms_grid_is_diffusers_edm_euler():
    base = denoiser(SCHEDULES["edm"]())
    scheduler = diffusers.EDMEulerScheduler(prediction_type="epsilon")
    scheduler.set_timesteps(10)
    x = start(base)
    times = base.schedule.steps(10, "karras", end="zero")
    scheduler.sigmas, scheduler.is_scale_input_called = times, True
    for t, label in zip(times, scheduler.timesteps):
        with torch.no_grad():
            x = scheduler.step(x, label, x, pred_original_sample=base(x, t).x0).prev_sample
    torch.testing.assert_close(ours("ddim", base, 10, spacing="karras"), x, rtol=1e-5, atol=1e-5)
