"""Likelihoods on a pipeline of diffusers are those of its unet and betas, written here from these alone."""

import math

import numpy as np
import pytest
import torch
from pipelines import DIGITS, ddim, opened
from running import bench, facts

from bench.diffusion.likelihood import flow_nll, probes_for
from bench.diffusion.training import seeded


def test_the_bound_through_the_harness_is_that_of_a_direct_evaluation(tmp_path):
    """DDPM's bound over 10 of 1000 steps, written from the unet and the betas alone."""
    pipeline = ddim(tmp_path / "pipeline")
    words = ["run", "ddpm", "--base", f"diffusers:{tmp_path / 'pipeline'}", "--nfe", "10", "--metric", "nll"]
    small = ["--held-out", "40", "--threads", "1", "--workers", "1", "--quiet"]
    result = bench(*words, *small, results=tmp_path / "runs")
    assert result.exit_code == 0, result.output
    [row] = facts(tmp_path / "runs")

    x0 = DIGITS.scale(DIGITS.test[:40])
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    torch.manual_seed(seeded(0, 0, 1).initial_seed())
    last = alpha_bar[999]
    nats = (last * x0.double() ** 2 / (1 - last)).flatten(1).sum(1) / 2
    steps = list(range(999, -1, -111))
    for s, t in zip(steps, [*steps[1:], None]):
        a = alpha_bar[s]
        x = a.sqrt() * x0.double() + (1 - a).sqrt() * torch.randn(x0.shape)
        with torch.no_grad():
            eps = pipeline.unet(x.float(), s).sample.double()
        guess = (x - (1 - a).sqrt() * eps) / a.sqrt()
        if t is None:
            normal = torch.distributions.Normal(guess, (1 - a).sqrt())
            upper = torch.where(x0 > 0.99, 1.0, normal.cdf(x0 + 1 / 16))
            lower = torch.where(x0 < -0.99, 0.0, normal.cdf(x0 - 1 / 16))
            nats = nats - (upper - lower).log().flatten(1).sum(1)
        else:
            forward = 1 - a / alpha_bar[t]
            variance = forward * (1 - alpha_bar[t]) / (1 - a)
            gap = (alpha_bar[t].sqrt() * forward / (1 - a) * (x0 - guess)) ** 2
            kl = (gap / forward + variance / forward - 1 - (variance / forward).log()) / 2
            nats = nats + kl.flatten(1).sum(1)
    assert row["value"] == pytest.approx(float(nats.mean()) / (64 * math.log(2)), rel=1e-5)


def test_the_flows_likelihood_is_that_of_a_direct_evaluation(tmp_path):
    """The instantaneous change of variables in z = x / alpha, where dz = r eps du, by the unet alone."""
    net = ddim(tmp_path).unet
    base, x = opened(tmp_path), DIGITS.scale(DIGITS.test[:3])
    times = base.schedule.steps(5, "lambda").flip(0)
    found = flow_nll(base, x, times, generator=torch.Generator().manual_seed(1))
    [probe] = probes_for(x, "hutchinson", 1, torch.Generator().manual_seed(1))
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)

    def slope(z: torch.Tensor, u: float) -> tuple[torch.Tensor, torch.Tensor]:
        r = math.exp(u)
        step = np.interp(math.log1p(r**2), -alpha_bar.log().numpy(), np.arange(1000))
        z = z.detach().requires_grad_()
        eps = net((z / (1 + r**2) ** 0.5).float(), torch.tensor(step, dtype=torch.float32)).sample
        drift = r * eps.double()
        pulled = torch.autograd.grad(drift, z, probe.double())[0]
        return drift.detach(), (pulled * probe).flatten(1).sum(1)

    z, change = x.double(), torch.zeros(3, dtype=torch.float64)
    ends = [math.log(1 / float(alpha_bar[i]) - 1) / 2 for i in (0, 999)]
    h = (ends[1] - ends[0]) / 5
    for i in range(5):
        u = ends[0] + i * h
        k1, d1 = slope(z, u)
        k2, d2 = slope(z + h / 2 * k1, u + h / 2)
        k3, d3 = slope(z + h / 2 * k2, u + h / 2)
        k4, d4 = slope(z + h * k3, u + h)
        z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        change = change + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
    last = float(alpha_bar[-1])
    log_prior = -(last * z**2 / (1 - last)).flatten(1).sum(1) / 2 - 32 * math.log(2 * math.pi * (1 - last))
    torch.testing.assert_close(found, -(log_prior + 32 * math.log(last) + change), rtol=1e-4, atol=1e-3)
