"""The benchmarks measure what they say, on next to nothing; no test holds a time."""

import json
import random

import pytest
import torch
from click.testing import CliRunner

from bench import store
from bench.metrics.moments import Moments
from bench.metrics.references import Reference
from bench.row import Row
from benchmarks import __main__ as command
from benchmarks import costs, frechet, rows, with_diffusers
from benchmarks.record import Record, fitted, ratio, turns


def record(value: float, unit: str, bound: float | None) -> Record:
    return Record("something", value, unit, bound, "somehow")


def test_a_ratio_holds_from_its_bound_up_and_seconds_hold_down_to_theirs():
    assert record(2.0, "x", 2.0).holds and not record(1.9, "x", 2.0).holds
    assert record(2.9, "s", 3.0).holds and not record(3.1, "s", 3.0).holds
    assert record(2.9, "s", None).holds is None


def test_every_contender_has_one_turn_a_round_and_no_one_is_always_first():
    order = []
    contenders = {name: lambda name=name: order.append(name) or float(len(order)) for name in "ab"}
    assert turns(contenders, 2, warm=False) == {"a": [1.0, 4.0], "b": [2.0, 3.0]}
    assert order == ["a", "b", "b", "a"]


def test_a_round_that_warms_up_does_not_count():
    order = []
    contenders = {name: lambda name=name: order.append(name) or float(len(order)) for name in "ab"}
    assert turns(contenders, 2) == {"a": [3.0, 6.0], "b": [4.0, 5.0]}
    assert order == ["b", "a", "a", "b", "b", "a"]


def test_a_ratio_is_the_median_over_the_rounds():
    assert ratio({"slow": [2.0, 9.0, 8.0], "fast": [1.0, 1.0, 2.0]}, "slow", "fast") == 4.0


def test_a_line_is_fitted_and_how_far_the_worst_point_lies_from_it():
    slope, start, off = fitted([1, 2, 4], [3.0, 5.0, 9.0])
    assert (slope, start) == (pytest.approx(2), pytest.approx(1)) and off < 1e-12
    assert fitted([1, 2, 3], [1.0, 4.0, 1.0])[2] == pytest.approx(0.5)


def test_the_figures_replace_those_on_the_page_and_say_what_does_not_hold():
    facts = {"records": [record(1.0, "x", 2.0).facts()], "minutes": 1.0, "machine": "a laptop", "torch": "2"}
    once = command.page(f"Before\n{command.START}\nstale\n{command.END}\nAfter\n", {"rows": facts})
    assert once.startswith("Before\n") and once.endswith("\nAfter\n") and "stale" not in once
    assert "| rows | something | 1 x | ≥ 2 x | **no** | somehow |" in once
    assert command.page(once, {"rows": facts}) == once


def test_the_pages_are_what_the_committed_figures_give():
    text = command.PAGE.read_text(encoding="utf-8")
    assert command.page(text, command.kept(command.RESULTS)) == text
    assert costs.page() == costs.PAGE.read_text(encoding="utf-8"), "run `python -m benchmarks.costs`"


def test_the_synthetic_rows_are_whole_and_their_number_is_the_one_asked_for(tmp_path):
    found = store.read(rows.written(tmp_path, 2500))
    assert len(found) == 2500
    assert {len(row.replicates) for row in found} == {20}


def test_the_distances_are_torch_fidelitys_with_more_and_with_fewer_samples_than_features():
    differences = [one for one in frechet.measure(small=True) if one.unit == "relative"]
    assert len(differences) == 2 and all(one.holds for one in differences)


def test_a_reference_that_is_flat_in_some_direction_has_a_distance_too():
    wide = torch.randn(300, 8, generator=torch.Generator().manual_seed(0)).double()
    flat = wide * torch.tensor([1.0] * 6 + [0.0] * 2)
    target = Reference("flat", 300, flat.mean(0), flat.T.cov(), None)
    moments = Moments(target, 20)
    moments.add(wide + 1, 0)
    spread = wide.T.cov().diagonal()
    # six directions agree, two have nothing to be compared with, and all eight are off by one but for chance
    expected = ((wide.mean(0) + 1 - flat.mean(0)).square().sum() + spread.sum() + target.cov.trace()).item()
    expected -= 2 * torch.linalg.eigvals(wide.T.cov() @ target.cov).real.clamp(min=0).sqrt().sum().item()
    assert moments.value() == pytest.approx(expected, rel=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_the_script_without_the_harness_scores_every_scheduler():
    words = ["--samples", "40", "--nfe", "2", "--base", "denoiser@256"]
    result = CliRunner().invoke(with_diffusers.main, words)
    assert result.exit_code == 0, result.output
    assert [line.split()[0] for line in result.output.splitlines()] == list(with_diffusers.schedulers())


# reading many rows at once


def some_rows(folder, count: int) -> list[str]:
    rows.written(folder, count)
    return (folder / "rows.jsonl").read_text().splitlines()


def test_rows_read_together_are_those_read_one_by_one(tmp_path):
    lines = some_rows(tmp_path, 1200)
    assert store.read(tmp_path) == [Row(**json.loads(line)) for line in lines]


def test_a_damaged_line_among_many_is_named(tmp_path):
    lines = some_rows(tmp_path, 700)
    lines[603] = lines[603][:100]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(Exception, match="line 604 is damaged"):
        store.read(tmp_path)


def test_two_halves_of_a_row_do_not_make_one(tmp_path):
    lines = some_rows(tmp_path, 60)
    cut = lines[30].index(',"budget"')
    lines[30:31] = [lines[30][:cut], lines[30][cut + 1 :]]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(Exception, match="line 31 is damaged"):
        store.read(tmp_path)


@pytest.mark.parametrize("field, value", [("replicates", [1.0, "2"]), ("schema", 0), ("seed", None)])
def test_a_wrong_field_among_many_right_ones_is_named(tmp_path, field, value):
    lines = some_rows(tmp_path, 600)
    place = random.Random(0).randrange(550, 600)
    lines[place] = json.dumps(json.loads(lines[place]) | {field: value})
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(Exception, match=f"line {place + 1} "):
        store.read(tmp_path)
