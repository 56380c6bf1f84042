"""Forms, the counter, and the denoiser."""

import copy

import pytest
import torch
from torch import nn

from bench.diffusion.counting import Counted, OverBudget, counting
from bench.diffusion.denoiser import FORMS, Denoiser
from bench.diffusion.schedule import SCHEDULES


class Known(nn.Module):
    """A network that answers in any form for a fixed x0: whatever it is asked, the truth."""

    def __init__(self, x0, form, sigma_data):
        super().__init__()
        self.x0, self.form, self.sigma_data = x0, form, sigma_data

    def forward(self, x_in, lam):
        r = torch.exp(-lam)[:, None]
        z = x_in * torch.sqrt(self.sigma_data**2 + r**2)
        eps = (z - self.x0) / r
        a, b = FORMS[self.form](torch.ones_like(r), r, self.sigma_data)
        return a * self.x0 + b * eps


@pytest.mark.parametrize("form", sorted(FORMS))
@pytest.mark.parametrize("name", ["vp", "subvp", "ve", "edm", "flow"])
def test_every_form_says_the_same_of_x_under_every_schedule(form, name):
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    eps = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    denoiser = Denoiser(Known(x0, form, 0.6), SCHEDULES[name](), (3,), form, 0.6)
    for t in (denoiser.schedule.t_min, denoiser.schedule.t_max):
        for times in (torch.tensor(t), torch.full((6,), t, dtype=torch.float64)):
            out = denoiser(denoiser.noised(x0, times, eps), times)
            torch.testing.assert_close(out.x0, x0, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(out.eps, eps, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(out.score, -out.eps / denoiser.schedule.sigma(t))


def test_the_network_is_fed_unit_variance():
    seen = {}

    class Spy(nn.Module):
        def forward(self, x, lam):
            seen["std"] = float(x.std())
            return x

    generator = torch.Generator().manual_seed(0)
    for name in ("vp", "subvp", "ve", "edm", "flow"):
        denoiser = Denoiser(Spy(), SCHEDULES[name](), (3,), "F", 0.7)
        for t in denoiser.schedule.steps(3)[1:3]:
            x0 = 0.7 * torch.randn(20000, 3, generator=generator)
            denoiser(denoiser.noised(x0, t, torch.randn(20000, 3, generator=generator)), t)
            assert seen["std"] == pytest.approx(1.0, abs=0.02)


def counted(f, net=None, x=None):
    """The tally after f(network, x) for 8 rows of 3."""
    net = net or Counted(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)))
    with counting(net) as tallies:
        f(net, torch.randn(8, 3) if x is None else x)
    return tallies["nfe"]


def test_rows_are_counted_not_calls():
    tally = counted(lambda net, x: (net(x), net(torch.cat([x, x]))))
    assert (tally.rows, tally.calls) == (24, 2)


def test_derivatives_are_counted_apart_under_every_transform():
    jvp = counted(lambda net, x: torch.func.jvp(net, (x,), (x,)))
    assert (jvp.rows, jvp.jvps, jvp.vjps) == (8, 8, 0)
    vjp = counted(lambda net, x: torch.func.vjp(net, x)[1](x))
    assert (vjp.rows, vjp.vjps) == (8, 8)
    backward = counted(lambda net, x: net(x.requires_grad_()).sum().backward())
    assert (backward.rows, backward.vjps) == (8, 8)
    jacobian = counted(lambda net, x: torch.func.jacfwd(net)(x[:2]))
    assert (jacobian.rows, jacobian.jvps) == (2, 12)


def test_rows_inside_vmap_are_all_counted():
    assert counted(lambda net, x: torch.func.vmap(net)(x.view(4, 2, 3))).rows == 8
    nested = counted(lambda net, x: torch.func.vmap(torch.func.jacrev(net))(x.view(4, 2, 3)))
    assert (nested.rows, nested.vjps) == (8, 48)


def test_more_rows_than_allowed_are_refused_with_a_sentence():
    net = Counted(nn.Linear(3, 3))
    with counting(net, allowance=16):
        net(torch.randn(16, 3))
        with pytest.raises(OverBudget, match="17 rows were asked of the network and 16 are allowed"):
            net(torch.randn(1, 3))


def test_two_networks_share_one_allowance_and_an_extra_one_has_none():
    model = nn.ModuleList(
        [Counted(nn.Linear(3, 3)), Counted(nn.Linear(3, 3)), Counted(nn.Linear(3, 3), role="extra")]
    )
    x = torch.randn(8, 3)
    with counting(model, allowance=16) as tallies:
        for net in model:
            net(x)
        assert (tallies["nfe"].rows, tallies["extra"].rows) == (16, 8)
        with pytest.raises(OverBudget):
            model[0](x)


def test_a_copy_counts_for_itself():
    net = Counted(nn.Linear(3, 3))
    other = copy.deepcopy(net)
    with counting(net) as tallies:
        other(torch.randn(8, 3))
        assert tallies["nfe"].rows == 0


def test_micro_batches_change_neither_values_nor_the_count():
    net = Counted(nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 3)))
    lam = torch.linspace(0, 1, 20)
    wrapped = Counted(Joined(net.net))
    x = torch.randn(20, 3)
    with counting(wrapped) as whole:
        expected = wrapped(x, lam)
    with counting(wrapped, micro_batch=7) as split:
        torch.testing.assert_close(wrapped(x, lam), expected)
    assert whole["nfe"].rows == split["nfe"].rows == 20


class Joined(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, lam):
        return self.net(torch.cat([x, lam[:, None]], 1))


def test_guidance_costs_two_rows_a_sample():
    class Labelled(nn.Module):
        def forward(self, x, lam, labels):
            return x * labels[:, None]

    denoiser = Denoiser(Labelled(), SCHEDULES["edm"](), (3,), "x0", 0.5).given(
        torch.ones(4, dtype=torch.long), scale=3.0
    )
    with counting(denoiser) as tallies:
        out = denoiser(torch.ones(4, 3), 1.0).x0
    assert tallies["nfe"].rows == 8
    x_in = 1 / (0.25 + 1) ** 0.5
    torch.testing.assert_close(out, torch.full((4, 3), x_in * (-1 + 3 * (1 - -1))))


def test_asking_outside_what_the_network_knows_is_an_error():
    denoiser = Denoiser(nn.Identity(), SCHEDULES["edm"](), (3,), "x0", 0.5)
    with pytest.raises(ValueError, match=r"asked at t = 0 to 0; it knows 0.002 to 80"):
        denoiser(torch.zeros(2, 3), 0.0)
