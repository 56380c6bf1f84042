"""Tables are read from rows alone: ties, seeds, floors, bounds, and what is refused."""

import json

import click
import numpy as np
import pytest
from msgspec.structs import replace

from bench import registry
from bench.reporting.rendering import render, rounded
from bench.reporting.tablefiles import long_sheet
from bench.reporting.tables import Reading, tables
from bench.row import Row

RNG = np.random.default_rng(0)
NOISE = RNG.normal(size=20)


def row(method="ddim", budget=10, value=5.0, metric="fid[digits]", noise=NOISE, spread=0.02, **more) -> Row:
    facts = {
        "key": f"{method}{budget}{metric}{more}",
        "method": method,
        "version": registry.plugins()[method].version if method in registry.plugins() else 1,
        "parameters": {},
        "data": "digits",
        "base": "denoiser",
        "base_id": "abc",
        "train_seed": 0,
        "images": None,
        "ask": "nll" if metric.startswith("nll") else "sample",
        "budget": budget,
        "seed": 0,
        "samples": 2000,
        "protocol": "p",
        "metric": metric,
        "value": value,
        "replicates": [] if value is None else list(value + spread * noise),
        "nfe": float(budget),
        "nfe_max": float(budget),
        "details": {"unit": "bits/dim"} if metric.startswith("nll") else {},
    }
    return Row.of(**(facts | more))


def only(rows, **settings):
    (found,) = tables(rows, Reading(**settings))
    return found


def test_methods_that_cannot_be_told_from_the_best_are_all_bold():
    other = RNG.normal(size=20)
    table = only(
        [row("ddim", value=5.0), row("unipc", value=5.01, noise=other), row("ddpm", value=9.0, noise=other)]
    )
    assert table.best[10] == {"DDIM", "UniPC"}
    text = render([table], "md")
    assert "**5.00**" in text and "**5.01**" in text and "**9.0" not in text


def test_a_small_difference_on_common_noise_is_a_difference():
    table = only([row("ddim", value=5.0), row("unipc", value=5.01)])
    assert table.best[10] == {"DDIM"}


def test_higher_is_better_where_it_is():
    table = only([row("ddim", metric="is[digits]", value=5.0), row("unipc", metric="is[digits]", value=6.0)])
    assert table.best[10] == {"UniPC"}


def test_a_flow_likelihood_that_falls_when_steps_are_left_out_is_set_apart_and_never_best():
    metric, other = "nll[ode,uniform]", RNG.normal(size=20)
    rows = [row("score_flow", budget, value, metric) for budget, value in ((10, 1.2), (50, 1.7), (100, 1.7))]
    rows += [row("idode", budget, 5.0, metric, noise=other) for budget in (10, 50, 100)]
    table = only(rows)
    assert table.unsettled == {("ScoreFlow", 10)} and "ScoreFlow" not in table.best[10]
    assert table.best[50] == {"ScoreFlow"}
    text = render([table], "md")
    assert "(1.20" in text and "In parentheses" in text
    assert [r["settled"] for r in json.loads(render([table], "json"))].count(False) == 1


def test_a_flow_likelihood_below_the_truth_is_none():
    metric = "nll_excess[ode]"
    table = only([row("score_flow", 10, -0.5, metric), row("idode", 10, 0.1, metric)])
    assert table.unsettled == {("ScoreFlow", 10)} and "ScoreFlow" not in table.best[10]


def test_under_a_table_stands_what_its_lines_saw_in_training():
    rows = [row("vdm", metric="nll[elbo]", train_images=400_000), row("ddpm", metric="nll[elbo]")]
    rows += [row("amed", budget, train_images=images) for budget, images in ((5, 10), (10, 20))]
    text = render(tables(rows, Reading()), "md")
    assert "beside the base's: 400,000 VDM." in text and "beside the base's: 10 to 20 AMED-Solver." in text


def test_other_networks_are_said_beside_the_budget_and_counted_in_the_long_table():
    guided = [row("ddim", budget, extra=float(budget), vjps=float(budget)) for budget in (5, 10)]
    table = only([*guided, row("unipc"), row("ldm", extra=1.0)])
    (said,) = [note for note in table.notes if "other networks" in note]
    assert said.endswith("beside the budget: DDIM 5 to 10, LDM 1.")
    sheet = long_sheet(table)
    networks, derivatives = map(sheet.header.index, ("other networks", "derivatives"))
    cells = [(line[0].text, line[networks].text, line[derivatives].text) for line in sheet.lines]
    assert {("DDIM", "5", "5"), ("DDIM", "10", "10"), ("LDM", "1", "0")} < {*cells}


def test_nearest_to_the_held_out_value_is_best_where_that_is_the_aim():
    details = {"held_out": -60.0}
    rows = [row("ddim", metric="exact_nll", value=-61.0), row("unipc", metric="exact_nll", value=-90.0)]
    table = only([replace(r, details=details) for r in rows])
    assert table.best[10] == {"DDIM"}


def test_seeds_are_averaged_and_their_error_shrinks():
    rows = [row(seed=seed, key=f"k{seed}", noise=RNG.normal(size=20), value=4.0 + seed) for seed in range(4)]
    entry = only(rows).entries["DDIM", 10]
    single = only(rows[:1]).entries["DDIM", 10]
    assert entry.value == pytest.approx(5.5) and len(entry.rows) == 4
    assert entry.stderr < 0.8 * single.stderr


def test_parameters_that_are_not_the_defaults_stand_in_the_name():
    defaults = {"eta": 0.0, "spacing": "time", "schedule": "ddpm"}
    rows = [row(parameters=defaults), row(parameters=defaults | {"eta": 1.0}, key="x")]
    assert only(rows).labels == ["DDIM", "DDIM (eta=1.0)"]


def test_two_bases_are_two_lines():
    labels = only([row(), row(base_id="def", key="x")]).labels
    assert labels == ["DDIM (base abc)", "DDIM (base def)"]


def test_two_protocols_are_refused_with_what_differs(tmp_path):
    (tmp_path / "protocols").mkdir()
    (tmp_path / "protocols" / "p.json").write_text('{"samples": 2000}')
    (tmp_path / "protocols" / "q.json").write_text('{"samples": 500}')
    with pytest.raises(click.ClickException, match="samples: 2000 and 500"):
        tables([row(), row("unipc", protocol="q")], Reading(tmp_path))


def test_the_two_kinds_of_likelihood_are_never_compared():
    rows = [
        row("ddpm", metric="nll[elbo]", value=3.0),
        row("dpm2015", metric="nll[elbo]", value=4.0),
        row("probability_flow", metric="nll[ode,uniform]", value=2.0),
    ]
    table = only(rows)
    assert table.best[10] == {"DDPM"}
    text = render([table], "md")
    assert "**≤3.00**" in text and "≤2.00" not in text and "in bits/dim" in text


def test_a_method_without_a_likelihood_is_listed_with_a_dash():
    rows = [row("ddpm", metric="nll[elbo]", value=3.0), row("ddim")]
    _, nll = tables(rows, Reading(everyone=True))
    assert nll.labels == ["DDPM", "DDIM"] and "| DDIM" in render([nll], "md")
    assert "no likelihood of its own" in render([nll], "md")


def test_failures_say_why_and_budgets_too_small_say_from_where():
    failed = row("unipc", value=None, metric="", error="over budget")
    text = render([only([row("ddim"), row("ddim", budget=3), row("pndm", budget=10), failed])], "md")
    assert "failed" in text and "UniPC at 10 failed: over budget" in text and "<4" in text


def test_the_floor_stands_below_and_is_never_best():
    floor = row("real data", budget=0, value=1.0, samples=360, base_id="", base="")
    table = only([row("ddim"), row("unipc", value=9.0), floor])
    last = [line for line in render([table], "md").splitlines() if line.startswith("|")][-1]
    assert table.best[10] == {"DDIM"} and last.startswith("| real data (360 held out)")


def test_latex_escapes_and_csv_and_json_carry_every_cell():
    rows = [row("my_method & co", value=5.0), row("ddim", value=6.0)]
    table = only(rows)
    latex = render([table], "latex")
    assert r"my\_method \& co" in latex and r"\toprule" in latex and r"\textbf{5.00}" in latex
    assert len(json.loads(render([table], "json"))) == 2
    assert render([table], "csv").count("\n") == 3


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (3.14159, 0.21, ("3.14", "0.21")),
        (3.14159, 0.5, ("3.1", "0.5")),
        (53930.2, 4686.0, ("53930", "4686")),
        (0.00123, 0.0002, ("0.0012", "0.0002")),
        (2.0, 0.0, ("2", "")),
        (float("inf"), float("nan"), ("inf", "")),
    ],
)
def test_errors_have_two_digits_at_most(value, error, text):
    assert rounded(value, error) == text


def test_a_bound_and_a_likelihood_of_one_method_have_lines_of_their_own():
    rows = [row("score_flow", metric="nll[ode,uniform]", value=1.0, ask="nll")]
    rows.append(row("score_flow", metric="nll[elbo,uniform]", value=1.5, ask="bound"))
    (found,) = tables(rows)
    assert {label.endswith("(bound)") for label in found.labels} == {True, False}
    assert {entry.value for entry in found.entries.values()} == {1.0, 1.5}


def test_rows_that_nothing_can_pair_are_refused():
    with pytest.raises(click.ClickException, match="3 to 20 replicates"):
        only([row("ddim"), row("unipc", replicates=[5.0, 5.1, 4.9])])


def test_parameters_that_only_pythons_json_knows_have_their_lines():
    odd = ('{"eta": 9999999999999999999999}', '{"eta": "\\ud800"}', '{"eta": NaN}')
    rows = [row(parameters=json.loads(text)) for text in odd]
    assert len(only(rows).labels) == len(odd)
