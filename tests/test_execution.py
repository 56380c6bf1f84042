"""How networks are run: precisions, compiling, micro-batches, and what they may not change."""

import json
from dataclasses import replace

import pytest
import torch
from running import bench
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench import protocol, store
from bench.commands.training import train
from bench.diffusion import execution
from bench.diffusion.counting import Counted, counting
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.execution import PRECISIONS, Execution
from bench.diffusion.networks import UNet
from bench.diffusion.schedule import VP
from bench.running.plan import Request
from bench.running.planning import planned
from bench.selection import Selection

BF16 = Execution("bf16")


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(UNet((1, 8, 8), (8, 16), 1).eval(), VP(), (1, 8, 8), "F", 0.5)


def asked(model: Denoiser, x: Tensor, how: Execution = execution.PLAIN) -> Tensor:
    with torch.no_grad(), counting(model, None, None, how):
        return model(x, 0.5).x0


def test_bf16_is_near_fp32_and_not_it(denoiser):
    x = torch.randn(4, 1, 8, 8)
    plain, mixed = asked(denoiser, x), asked(denoiser, x, BF16)
    assert mixed.dtype is torch.float32
    assert 0 < float((plain - mixed).abs().max()) < 0.05


def test_the_form_of_evaluation_ends_with_the_counting(denoiser):
    x = torch.randn(4, 1, 8, 8)
    before = asked(denoiser, x)
    asked(denoiser, x, BF16)
    assert torch.equal(asked(denoiser, x), before)


def test_forward_derivatives_are_those_of_fp32_in_any_precision(denoiser):
    x = torch.randn(2, 1, 8, 8)
    found = []
    for how in (execution.PLAIN, BF16):
        math = sdpa_kernel(SDPBackend.MATH)
        with torch.no_grad(), math, counting(denoiser, None, None, how) as tallies:
            found.append(torch.func.jvp(lambda z: denoiser(z, 0.5).x0, (x,), (torch.ones_like(x),))[1])
        assert (tallies["nfe"].rows, tallies["nfe"].jvps) == (2, 2)
    assert torch.equal(*found)


def test_what_an_old_torch_needs_changes_no_derivative_and_does_not_stay(denoiser, monkeypatch):
    x = torch.randn(2, 1, 8, 8)
    slope = lambda: torch.func.jvp(lambda z: denoiser(z, 0.5).x0, (x,), (torch.ones_like(x),))[1]
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        expected = slope()
        monkeypatch.setattr(execution, "OLD", True)
        torch.testing.assert_close(slope(), expected)
    assert not any(module._forward_pre_hooks for module in denoiser.modules())


def test_gradients_pass_through_bf16(denoiser):
    x = torch.randn(2, 1, 8, 8, requires_grad=True)
    with counting(denoiser, None, None, BF16) as tallies:
        (slope,) = torch.autograd.grad(denoiser(x, 0.5).x0.sum(), x)
    assert slope.dtype is torch.float32 and tallies["nfe"].vjps == 2


class Sizes(nn.Module):
    """Remembers how many rows it was given at a time."""

    def __init__(self):
        super().__init__()
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return x


def test_micro_batches_are_of_nearly_one_size():
    net = Counted(Sizes())
    with counting(net, None, 83) as tallies:
        net(torch.zeros(500, 1))
    assert net.net.seen == [72] * 6 + [68]
    assert tallies["nfe"].rows == 500


def test_the_compiled_network_serves_evaluations_without_derivatives_and_no_others(denoiser, monkeypatch):
    compiled = []

    def stand_in(net: nn.Module, device: str):
        compiled.append(device)
        return lambda *inputs: net(*inputs) + 1

    monkeypatch.setattr("bench.diffusion.counting.compiled", stand_in)
    net = Counted(nn.Linear(3, 3))
    names = set(net.state_dict())
    x = torch.randn(4, 3)
    with counting(net, None, 2, Execution(compiled=True)) as tallies:
        assert torch.equal(net(x), net.net(x))  # a gradient may follow
        with torch.no_grad():
            assert torch.equal(net(x), net.net(x) + 1)
            value, _ = torch.func.jvp(net, (x,), (x,))
            assert torch.equal(value, net.net(x))
    assert compiled == ["cpu"] and tallies["nfe"].rows == 12
    assert set(net.state_dict()) == names


def test_a_network_that_cannot_be_compiled_runs_as_it_is(monkeypatch):
    def broken(net: nn.Module, **_):
        def run(*inputs):
            raise torch._dynamo.exc.TorchDynamoException("there is no compiler\nat all")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    net, x = nn.Linear(3, 3), torch.randn(4, 3)
    run = execution.compiled(net, "cpu")
    with pytest.warns(UserWarning, match="cannot be compiled: there is no compiler$"):
        assert torch.equal(run(x), net(x))
    assert torch.equal(run(x), net(x))


def test_a_network_is_compiled_for_few_numbers_of_rows_and_runs_as_it_is_for_others(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda net, **_: lambda x: net(x) + 1)
    net = nn.Linear(3, 3)
    run = execution.compiled(net, "cpu")
    for rows, more in ((5, 1), (4, 1), (3, 0), (5, 1)):
        x = torch.randn(rows, 3)
        assert torch.equal(run(x), net(x) + more)


@pytest.mark.parametrize("rows", [500, 1000])
def test_a_compiled_network_is_given_parts_of_one_size(monkeypatch, rows):
    monkeypatch.setattr("bench.diffusion.counting.compiled", lambda net, device: net)
    net = Counted(Sizes())
    with torch.no_grad(), counting(net, None, 83, Execution(compiled=True)) as tallies:
        net(torch.zeros(rows, 1))
    assert set(net.net.seen) == {50} and tallies["nfe"].rows == rows


def test_networks_are_compiled_where_all_of_a_plan_repays_it_however_much_of_it_is_done(
    monkeypatch, tmp_path
):
    monkeypatch.setattr("bench.running.sites.WORTH_COMPILING", 3 * 40 * 5 * 64)
    monkeypatch.setattr("bench.running.sites.can_compile", lambda device: True)
    request = Request(
        Selection(("ddim",)), base="denoiser@256", samples=40, metrics=("fid",), results=tmp_path
    )
    small, large = replace(request, nfe=(5, 10)), replace(request, nfe=(5, 20))
    assert not planned(small).site.execution.compiled
    assert planned(large).site.execution.compiled
    assert not planned(replace(large, compile=False)).site.execution.compiled
    words = ("run", "ddim", "--base", "denoiser@256", "--samples", 40, "--metric", "fid", "--nfe", 20)
    assert bench(*words, results=tmp_path).exit_code == 0
    plan = planned(large)
    assert len(plan.todo) == 1 and plan.site.execution.compiled
    monkeypatch.setattr("bench.running.sites.can_compile", lambda device: False)
    assert not planned(large).site.execution.compiled


@pytest.mark.slow
def test_a_network_compiles_to_the_same_values(denoiser):
    x = torch.randn(4, 1, 8, 8)
    plain, fast = asked(denoiser, x), asked(denoiser, x, Execution(compiled=True))
    assert "cpu" in denoiser.net.fast
    assert torch.allclose(plain, fast, atol=1e-4)
    with torch.no_grad():
        seen = denoiser.net.net.features(x, torch.zeros(4))  # hooks into the network it was compiled from
    assert len(seen) == 2


def test_fp32_leaves_a_protocol_as_it_was_and_other_precisions_do_not():
    facts = {"precision": "float32", "samples": 2000}
    assert facts | protocol.precise("fp32") == facts
    assert {(facts | protocol.precise(name))["precision"] for name in PRECISIONS} == {
        "float32",
        "tf32",
        "bf16",
    }


def test_a_precision_is_part_of_what_was_asked(tmp_path):
    def plan(**settings):
        request = Request(
            Selection(("ddim",)), "mixture2d", nfe=(3,), samples=40, results=tmp_path, **settings
        )
        return planned(request, train=False)

    plain, named, mixed = plan(), plan(precision="fp32"), plan(precision="bf16")
    assert plain.cells[0].key == named.cells[0].key != mixed.cells[0].key
    assert mixed.site.execution == BF16


def test_a_dequantisation_is_one_protocol_whoever_adds_it(tmp_path):
    selection = Selection(("probability_flow", "score_flow", "score_flow:dequantisation=variational"))
    request = Request(selection, nfe=(50,), samples=40, metrics=("nll",), results=tmp_path)
    cells = planned(request, train=False).cells
    ours, its, variational = (cell.protocol for cell in cells if cell.ask == "nll")
    assert ours == its != variational


def test_a_run_in_bf16_is_measured_under_a_protocol_of_its_own(tmp_path):
    words = ["--data", "mixture2d", "--nfe", "3", "--samples", "40", "--threads", "1", "--quiet"]
    for more in ([], ["--precision", "bf16"]):
        assert bench("run", "ddim", *words, *more, results=tmp_path).exit_code == 0
    protocols = {row.protocol for row in store.read(tmp_path) if row.ask == "sample" and row.nfe}
    assert len(protocols) == 2
    facts = [json.loads((tmp_path / "protocols" / f"{name}.json").read_text()) for name in protocols]
    assert {one["precision"] for one in facts} == {"float32", "bf16"}


def test_tf32_is_refused_on_a_cpu_in_one_sentence(tmp_path):
    result = bench("run", "ddim", "--data", "mixture2d", "--precision", "tf32", results=tmp_path)
    assert result.exit_code == 2 and "give fp32 or bf16" in result.output


def test_every_command_knows_every_precision():
    from bench.cli import run

    for command in (run, train):
        option = next(p for p in command.params if p.name == "precision")
        assert tuple(option.type.choices) == PRECISIONS


@pytest.mark.parametrize("knows", [True, False])
def test_a_precision_that_is_imitated_is_said(tmp_path, monkeypatch, knows):
    able = {"architecture": "x86_64", "avx512_bf16": knows, "amx_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    words = ["--data", "mixture2d", "--samples", "40", "--nfe", "2", "--metric", "fid", "--precision", "bf16"]
    result = bench("run", "ddim", *words, results=tmp_path)
    assert result.exit_code == 0 and ("imitates bf16" in result.stderr) is not knows


@pytest.mark.gpu
def test_only_tf32_has_tf32_on_a_gpu():
    with execution.arithmetic("tf32", "cuda"):
        assert torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32
        with execution.arithmetic("fp32", "cuda"):
            assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.gpu
@pytest.mark.parametrize(
    "how", [Execution(name, compiled) for name in PRECISIONS for compiled in (False, True)]
)
def test_a_gpu_gives_what_the_cpu_gives_in_every_form(denoiser, how):
    import copy

    model = execution.placed(copy.deepcopy(denoiser), "cuda")
    x = torch.randn(8, 1, 8, 8)
    with execution.arithmetic(how.precision, "cuda"):
        first = asked(model, x.cuda(), how)
        again = asked(model, x.cuda() + 1, how)  # must not write over the first
    limit = {"fp32": 1e-4, "tf32": 1e-2, "bf16": 5e-2}[how.precision]
    assert float((first.cpu() - asked(denoiser, x)).abs().max()) < limit
    assert float((again.cpu() - asked(denoiser, x + 1)).abs().max()) < limit


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_run_on_a_gpu_ends_with_a_table(tmp_path, precision):
    words = ["--data", "digits", "--base", "denoiser@256", "--nfe", "3", "--samples", "40", "--quiet"]
    words += ["--device", "cuda", "--precision", precision, "--compile"]
    result = bench("run", "ddim", *words, results=tmp_path)
    assert result.exit_code == 0, result.output
    assert [row.value for row in store.read(tmp_path) if row.method == "ddim"]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
def test_training_on_a_gpu_resumes_in_every_precision(precision):
    words = ["digits", "--images", "1280", "--device", "cuda", "--precision", precision]
    words += ["--seed", str(90 + PRECISIONS.index(precision))]
    assert "Not finished" in bench("train", *words, "--minutes", "0.0001").output
    result = bench("train", *words)
    assert result.exit_code == 0 and "images: 1280" in result.output


@pytest.mark.gpu
def test_a_likelihood_of_pixels_as_tokens_is_measured_on_a_gpu(tmp_path):
    words = ["--data", "digits", "--images", "256", "--nfe", "3", "--samples", "40", "--held-out", "40"]
    result = bench("run", "d3pm_uniform", *words, "--device", "cuda", "--quiet", results=tmp_path)
    assert result.exit_code == 0, result.output
    assert {row.ask for row in store.read(tmp_path) if row.value is not None} == {"sample", "nll"}
