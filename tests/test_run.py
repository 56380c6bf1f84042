"""The harness end to end, on exact data: what a run measures, keeps, resumes and refuses."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from running import ROOT, SMALL, bench, facts, ran

from bench import registry, store
from bench.cache import cache_dir
from bench.data import load
from bench.models import recipes
from bench.reporting.numbers import command_of, metrics_of
from bench.running import worker


@pytest.fixture(autouse=True)
def outside_the_checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_run_answers_every_cell_and_running_it_again_draws_nothing(tmp_path, monkeypatch):
    first = ran("ddim", "ddpm", "--data", "mixture2d", results=tmp_path / "a")
    assert "DDIM" in first and "NFE 9" in first and "real data" in first
    monkeypatch.setattr(worker, "ask", lambda *a: pytest.fail("something was drawn again"))
    assert ran("ddim", "ddpm", "--data", "mixture2d", results=tmp_path / "a") == first


def test_the_same_seed_gives_the_same_rows_and_another_seed_others(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        ran("ddpm", "--data", "mixture2d", "--seeds", seed, results=tmp_path / name)
    assert facts(tmp_path / "a") == facts(tmp_path / "b")
    values = lambda name: [row["value"] for row in facts(tmp_path / name) if row["method"] == "ddpm"]
    assert not set(values("a")) & set(values("c"))


def test_every_row_stays_within_its_budget_and_says_what_it_cost(tmp_path):
    ran("ddim", "edm_heun", "ddpm", "--data", "mixture2d", results=tmp_path)
    bench(
        "run",
        "probability_flow",
        "--data",
        "mixture2d",
        *SMALL[:2],
        "--nfe",
        40,
        *SMALL[4:],
        results=tmp_path,
    )
    rows = [row for row in store.read(tmp_path) if row.method != "real data"]
    assert rows and all(row.nfe <= row.budget for row in rows)
    heun = {row.nfe for row in rows if row.method == "edm_heun"}
    assert heun == {3, 9}
    flow = {row.ask: row for row in rows if row.method == "probability_flow"}
    assert flow["nll"].vjps == flow["nll"].nfe == 40
    assert 20 < flow["sample"].nfe <= 40 and flow["sample"].train_rows > 0  # what finding the tolerance took


def test_likelihoods_may_be_asked_of_some_held_out_rows_only(tmp_path):
    ran("ddpm", "--data", "mixture2d", "--metric", "nll", "--held-out", 100, results=tmp_path)
    assert {row.samples for row in store.read(tmp_path)} == {100}
    refused = bench("run", "ddpm", "--data", "mixture2d", "--held-out", 30, results=tmp_path)
    assert refused.exit_code == 2 and "too few" in refused.output


def test_an_estimated_trace_says_what_it_adds_to_the_error_of_its_row(tmp_path):
    asked = ("--data", "mixture2d", "--metric", "nll", "--held-out", 400, "--nfe", 40)
    bench("run", "probability_flow:probes=4", *asked, results=tmp_path)
    [row] = [row for row in store.read(tmp_path) if row.metric.startswith("nll[")]
    assert 0 < row.details["estimate_stderr"] < 0.05


def test_micro_batches_do_not_change_the_samples(tmp_path):
    data = load("mixture-digits")
    denoiser = recipes.exact_denoiser(data)
    plugin_rows = {}
    for size in (7, 500):
        ran(
            "ddim",
            "--data",
            "mixture-digits",
            "--micro-batch",
            size,
            "--keep",
            80,
            results=tmp_path / str(size),
        )
        plugin_rows[size] = facts(tmp_path / str(size))
    for a, b in zip(plugin_rows[7], plugin_rows[500], strict=True):
        assert a["value"] == pytest.approx(b["value"], rel=1e-4, abs=1e-4)
    assert denoiser.known == (-5.1, 7.0)


def test_workers_and_this_process_give_the_same_rows(tmp_path):
    ran("ddim", "--data", "mixture2d", results=tmp_path / "one")
    ran("ddim", "--data", "mixture2d", "--workers", 2, results=tmp_path / "two")
    assert facts(tmp_path / "one") == facts(tmp_path / "two")


PLUGIN = '''
from bench.method import Method

class Mine(Method):
    """My sampler"""

    paper = "arXiv:2010.02502"
    leaf = "ode_solver"
    {declarations}

    def sample(self, denoiser, x, nfe):
        {body}
'''
GOOD = """t = denoiser.schedule.steps(nfe, "lambda")
        for s, t in zip(t[:-1], t[1:]):
            out = denoiser(x, s)
            x = denoiser.schedule.alpha(t) * out.x0 + denoiser.schedule.sigma(t) * out.eps
        return x"""


def plugin(folder: Path, body: str, name: str = "mine", declarations: str = "") -> Path:
    path = folder / f"{name}.py"
    path.write_text(PLUGIN.format(body=body, declarations=declarations))
    return path


def test_a_plugin_outside_the_repository_runs(tmp_path):
    path = plugin(tmp_path, GOOD)
    assert "My sampler" in ran("mine", "--plugin", path, "--data", "mixture2d", results=tmp_path / "r")


REFUSING = """for _ in range(4):
            x = denoiser(x, 1.0).x0
        if self.tolerance < 1000:
            denoiser(x[:1], 1.0)
        return x"""


def test_an_adaptive_method_has_a_step_refused_by_no_tolerance_at_its_least_budget(tmp_path):
    path = plugin(tmp_path, REFUSING, declarations="adaptive = True\n    tolerance: float = 0.1")
    ran("mine", "--plugin", path, "--data", "mixture2d", results=tmp_path / "r")
    assert {row.nfe for row in store.read(tmp_path / "r") if row.method == "mine"} == {4, 4.0125}


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("for _ in range(nfe + 1): x = denoiser(x, 1.0).x0\n        return x", "over budget"),
        ("raise RuntimeError('my own mistake')", "my own mistake"),
        ("return denoiser(x, 1.0).x0 * float('nan')", "80 of 80 samples are not finite"),
        ("return denoiser(x, 1.0).x0[:, :1]", r"shape \(80, 1\) instead of \(80, 2\)"),
    ],
)
def test_a_method_that_fails_is_a_row_that_says_why_and_the_others_go_on(tmp_path, body, why):
    import re

    path = plugin(tmp_path, body)
    result = bench(
        "run", "mine", "ddim", "--plugin", path, "--data", "mixture2d", *SMALL, results=tmp_path / "r"
    )
    assert result.exit_code == 1
    failed = [row for row in store.read(tmp_path / "r") if row.error]
    assert failed and all(re.search(why, row.error) for row in failed)
    assert any(row.method == "ddim" and row.value is not None for row in store.read(tmp_path / "r"))
    plugin(tmp_path, GOOD)  # mended: the failure was not kept as an answer
    script = [
        sys.executable,
        "-m",
        "bench.cli",
        "run",
        "mine",
        "--plugin",
        str(path),
        "--data",
        "mixture2d",
        *SMALL,
    ]
    again = subprocess.run(
        [*script, "--results", str(tmp_path / "r")], capture_output=True, text=True, cwd=ROOT
    )
    assert again.returncode == 0, again.stderr
    assert not [row for row in store.read(tmp_path / "r") if row.error]


def test_a_strangers_network_is_a_base(tmp_path):
    (tmp_path / "mynet.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.w = torch.nn.Parameter(torch.full((1,), 0.1))\n"
        "    def forward(self, x, lam):\n"
        "        return self.w * x\n"
        "def make(data):\n"
        "    return Net()\n"
    )
    ran("ddim", "--data", "mixture2d", "--base", f"{tmp_path}/mynet.py:make", results=tmp_path / "r")
    assert {row.base_id for row in store.read(tmp_path / "r") if row.method == "ddim"} != {"exact"}
    assert (
        "no function missing" in bench("run", "ddim", "--base", f"{tmp_path}/mynet.py:missing", *SMALL).output
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ddpmx"], "there is no method 'ddpmx'; did you mean 'ddpm'"),
        (["ddim:etta=1"], "no parameter 'etta'; did you mean 'eta'"),
        (["ddim:eta=big"], "eta is a float, which 'big' is not"),
        (["ddim:schedule=cubic"], "not defined under 'cubic'"),
        (["ddim", "--nfe", "0"], "0 is too small; 1 is the least"),
        (["ddim", "--nfe", "-5"], "too small|not a whole number"),
        (["restart", "--nfe", "2,3"], "nothing is left to run: restart takes 7 evaluations or more"),
        (["ddim", "--nfe", "ten"], "'ten' is not a whole number"),
        (["ddim", "--data", "digit"], "did you mean digits"),
        (["--category", "sampling"], "unknown category"),
        (["ddim", "--samples", "10"], "10 samples are too few"),
        (["ddim", "--metric", "fidd"], "did you mean fid"),
        (["ddim", "--metric", "exact_nll"], "whose distribution is known"),
        (["ddim", "--base", "nowhere"], "there is no base 'nowhere'"),
        (["ddim", "--base", "absent.py:make"], "there is no file absent.py"),
        (["ddim", "--plugin", "absent.py"], "there is no plugin file"),
        (["ddim", "--device", "tpu"], "tpu"),
        (["ddim", "--data", "npz:absent.npz"], "no file absent.npz"),
        (["ddim", "--data", "folder:absent@8"], "absent"),
    ],
)
def test_a_mistake_gets_one_sentence_and_the_right_exit_code(words, said, tmp_path):
    import re

    result = bench("run", *words, results=tmp_path / "r")
    assert result.exit_code in (1, 2) and "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert re.search(said, result.output), result.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_said_so(tmp_path):
    assert "there is no GPU here" in bench("run", "ddim", "--device", "cuda", results=tmp_path).output


def test_a_results_folder_that_cannot_be_written_is_said_so(tmp_path):
    (tmp_path / "file").write_text("")
    result = bench("run", "ddim", "--data", "mixture2d", *SMALL, results=tmp_path / "file")
    assert result.exit_code == 1 and "cannot be written" in result.output


def test_two_protocols_never_share_a_column(tmp_path):
    ran("ddim", "--data", "mixture2d", results=tmp_path)
    bench("run", "ddim", "--data", "mixture2d", "--samples", 60, "--nfe", 4, "--quiet", results=tmp_path)
    result = bench("table", results=tmp_path)
    assert result.exit_code == 1 and "samples: 80 and 60" in result.output
    prints = {row.protocol for row in store.read(tmp_path) if row.samples == 60 and row.method == "ddim"}
    assert bench("table", "--protocol", prints.pop(), results=tmp_path).exit_code == 0


def test_trainings_that_are_cut_short_are_one_in_their_run_and_go_on_in_the_next(tmp_path):
    words = ("run", "npr_ddpm", "--base", "denoiser@300", "--images", 1280, "--samples", 40, "--nfe", "2,3")
    words += ("--metric", "fid", "--quiet")
    before = set(cache_dir().rglob("run-*"))
    said = bench(*words, "--minutes", "0.00001", results=tmp_path)
    assert said.exit_code == 0 and "training cut short" in said.output
    rows = [row for row in store.read(tmp_path) if row.method == "npr_ddpm"]
    seen = {row.train_images for row in rows}
    assert len(rows) == 2 and len({row.base_id for row in rows}) == len(seen) == 1
    assert "2 of 2 cells" in bench(*words[:-1], "--dry-run", results=tmp_path).output
    (unused,) = set(cache_dir().rglob("denoiser-*/run-*")) - before
    used = Path(shutil.copytree(unused, unused.with_name("run-another")))
    os.utime(unused, (0, 0))
    assert "cut short" not in bench(*words, results=tmp_path).output
    assert used.exists() and not unused.exists()  # what a run may still need stays
    later = [row for row in store.read(tmp_path) if row.method == "npr_ddpm"][2:]
    assert min(row.train_images for row in later) > max(seen)
    assert {row.base_id for row in later} != {row.base_id for row in rows}
    assert "0 of 2 cells" in bench(*words[:-1], "--dry-run", results=tmp_path).output


def test_a_dry_run_says_what_it_would_cost_and_draws_nothing(tmp_path):
    result = bench(
        "run", "ddim", "--data", "mixture2d", "--samples", 100, "--nfe", "4,9", "--dry-run", results=tmp_path
    )
    assert result.exit_code == 0 and "1,300 evaluations" in result.output
    assert not store.read(tmp_path)


def test_a_dry_run_counts_what_is_not_answered_and_not_trained_yet(tmp_path):
    words = ("run", "ddim", "iddpm", "--data", "mixture2d", "--samples", 80, "--nfe", 4, "--images", 130)
    words += ("--metric", "sliced_wasserstein")
    before = bench(*words, "--dry-run", results=tmp_path).output
    assert "2 of 2 cells" in before and "1 training of 130 images" in before
    bench(*words[:1], "iddpm", *words[3:], "--quiet", results=tmp_path)
    after = bench(*words, "--dry-run", results=tmp_path).output
    assert "1 of 2 cells" in after and "training" not in after


def test_a_dry_run_counts_what_a_slow_extractor_will_look_at(tmp_path, monkeypatch):
    monkeypatch.setenv("TAXOBENCH_CACHE", str(tmp_path / "cache"))
    words = ("run", "ddim", "--base", "denoiser@100", "--samples", 100, "--nfe", "2,3", "--metric", "fid")
    dry = lambda: bench(*words, "--dry-run", results=tmp_path).output
    assert "looks at" not in dry()
    monkeypatch.setattr("bench.running.estimating.looks_a_second", lambda plan: 1.0)
    assert "; and digits looks at 1,637 images, about 27 minutes" in dry()
    bench(*words, "--quiet", results=tmp_path / "elsewhere")
    assert "; and digits looks at 200 images, about 3 minutes" in dry()


def test_a_dry_run_counts_the_shared_networks_that_are_to_be_trained(tmp_path):
    said = bench("run", "ddim", "--base", "denoiser@777", "--dry-run", results=tmp_path).output
    assert "; and 1 training of 777 images" in said


@pytest.mark.parametrize("method, base", [("es_ddpm", "denoiser + vae@200"), ("cld", "cld@200")])
def test_shared_networks_beside_the_base_have_the_budget_that_was_asked_for(method, base, tmp_path):
    words = ("run", method, "--data", "mixture2d", "--samples", 80, "--nfe", 6, "--images", 200)
    bench(*words, "--quiet", results=tmp_path)
    rows = [row for row in store.read(tmp_path) if row.method == method]
    assert {row.base for row in rows} == {base} and not any(row.error for row in rows)
    command = command_of(rows, registry.plugins(), metrics_of(rows))
    again = bench(*shlex.split(command)[1:], "--dry-run", results=tmp_path)
    assert "0 of 1 cells" in again.output, command


def test_cells_that_need_no_training_are_measured_before_anything_is_trained(tmp_path):
    words = ("run", "iddpm", "cld", "ddim", "--data", "mixture2d", "--samples", 80, "--nfe", 6)
    words += ("--images", 131, "--metric", "sliced_wasserstein", "--workers", 1)
    result = bench(*words, results=tmp_path)
    assert result.exit_code == 0, result.output
    assert [row.method for row in store.read(tmp_path)] == ["real data", "ddim", "iddpm", "cld"]
    said = [line for line in result.stderr.splitlines() if ":" in line]
    told = ["ddim, 6 NFE", "training iddpm: 256 of 256", "iddpm: trained on", "iddpm, 6 NFE"]
    told += ["now what needs another", "cld, 6 NFE"]
    assert all(line.startswith(start) for line, start in zip(said, told, strict=True)), said


def test_a_stage_without_cells_leaves_no_rows(tmp_path):
    """Restart needs seven evaluations, and cld's shared model is trained first."""
    words = ("run", "restart", "cld", "--data", "mixture2d", "--samples", 80, "--nfe", 5, "--quiet")
    assert bench(*words, "--images", 133, results=tmp_path).exit_code == 0
    rows = store.read(tmp_path)
    assert {row.method for row in rows} == {"real data", "cld"} and len({r.protocol for r in rows}) == 1


@pytest.mark.parametrize("more", [["--again"], ["--minutes", "0.001"]])
def test_no_cell_is_measured_twice_where_a_shared_model_is_trained_on_the_way(more, tmp_path):
    words = ("run", "iddpm", "cld", "ddim", "--data", "mixture2d", "--samples", 80, "--nfe", 6, "--quiet")
    budget = 20_000 + len(more)  # of which a thousandth of a minute is a part
    result = bench(*words, "--images", budget, "--metric", "sliced_wasserstein", *more, results=tmp_path)
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [line["method"] for line in lines] == ["real data", "ddim", "iddpm", "cld"]


def test_records_carry_what_a_script_needs(tmp_path):
    ran("ddim", "--data", "mixture2d", results=tmp_path)
    records = json.loads(bench("table", "--format", "json", results=tmp_path).output)
    assert {"method", "data", "metric", "budget", "nfe", "value", "stderr", "samples", "protocol"} <= set(
        records[0]
    )
    methods = json.loads(bench("list", "--format", "json").output)
    assert {"name", "title", "category", "leaf", "paper", "kinds", "abilities"} == set(methods[0])
    leaves = json.loads(bench("taxonomy", "--format", "json").output)
    assert {"category", "leaf", "methods", "covered"} <= set(leaves[0])


def test_python_gives_the_rows_as_a_data_frame(tmp_path):
    import bench as package

    frame = package.run("ddim", data="mixture2d", nfe=(4,), samples=80, results=tmp_path)
    assert set(frame.method) == {"ddim", "real data"}
    assert len(package.rows(tmp_path)) == len(frame)


def test_help_and_list_import_neither_torch_nor_pandas():
    for words in (["--help"], ["list"], ["taxonomy"], ["table", "--help"]):
        code = f"import sys; from bench.cli import main; main({words!r}, standalone_mode=False); "
        code += "assert not {'torch', 'pandas'} & set(sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr


def test_tuned_settings_say_in_the_table_how_many_trials_they_took(tmp_path):
    assert "tuned in 3 trials" in ran("ddim:eta=1", "--data", "mixture2d", "--trials", "3", results=tmp_path)
