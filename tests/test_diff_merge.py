"""Two results folders: what changed between them, and what one may adopt from another."""

import json
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from bench import protocol, store
from bench.cache import canonical
from bench.cli import main
from bench.job import Cell
from bench.reporting.differences import compare
from bench.row import Row
from bench.upkeep.merging import merge

FACTS = {"samples": 2000, "chunk": 500, "extractor": "digits"}
NOISE = np.random.default_rng(0).normal(size=20)


def row(method="ddim", nfe=10, value=5.0, seed=0, facts=FACTS, metric="fid[digits]", **more) -> Row:
    cell = {
        "method": method,
        "version": 1,
        "data": "digits",
        "base": "denoiser",
        "base_id": "abc",
        "train_seed": 0,
        "images": None,
        "ask": "sample",
        "seed": seed,
        "samples": 2000,
        "protocol": protocol.fingerprint(facts),
    } | {name: more.pop(name) for name in ("version", "base_id") if name in more}
    key = Cell(parameters=canonical({"eta": 0.0}), nfe=nfe, chunk=500, source="", **cell).key
    numbers = {"value": value, "replicates": list((value or 0.0) + 0.02 * NOISE), "nfe": float(nfe)}
    return Row.of(
        **{"key": key, "parameters": {"eta": 0.0}, "budget": nfe, "metric": metric, **cell} | numbers | more
    )


@pytest.fixture
def folder(tmp_path):
    def filled(name, *rows, facts=FACTS):
        place = tmp_path / name
        place.mkdir(exist_ok=True)
        store.append(place, rows)
        store.record_protocol(place, protocol.fingerprint(facts), facts)
        return place

    return filled


def images(place, key, array=None, **more):
    (place / "samples").mkdir(exist_ok=True)
    array = np.zeros((4, 1, 8, 8), np.uint8) if array is None else array
    np.savez_compressed(place / "samples" / f"{key}.npz", samples=array, **more)


# diff


def test_only_what_changed_significantly_is_called_a_change(folder):
    other = np.random.default_rng(1).normal(size=20)
    a = folder("a", row("ddim"), row("ddpm"), row("unipc", value=9.0))
    noisy = row("ddpm", value=5.001, replicates=list(5.001 + 0.02 * other))
    b = folder("b", row("ddim"), noisy, row("unipc", value=8.0))
    verdicts = {change.a.rows[0].method: change.verdict for change in compare(a, b).changes}
    assert verdicts == {"ddim": "same", "ddpm": "no significant change", "unipc": "better"}


def test_higher_is_better_where_it_is(folder):
    a, b = (folder(name, row(metric="is[digits]", value=value)) for name, value in (("a", 5.0), ("b", 4.0)))
    (change,) = compare(a, b).changes
    assert change.verdict == "worse" and change.difference.difference == -1.0


def test_many_comparisons_are_corrected_for(folder):
    """Twenty pairs at p of about 0.02 each: alone each would be significant, together none is."""
    gap = NOISE - NOISE.mean()
    step = 2.5 * np.sqrt(19 / 20 * np.square(0.02 * gap).sum())
    before = [row(nfe=n, replicates=[5.0] * 20) for n in range(1, 21)]
    after = [row(nfe=n, value=5 + step, replicates=list(5 + step + 0.02 * gap)) for n in range(1, 21)]
    alone = compare(folder("a", before[0]), folder("b", after[0])).changes
    together = compare(folder("c", *before), folder("d", *after)).changes
    assert [c.significant for c in alone] == [True] and not any(c.significant for c in together)
    assert 0.01 < alone[0].difference.p < 0.05


def test_a_new_version_of_a_method_is_compared_with_the_old_and_said_so(folder):
    found = compare(folder("a", row()), folder("b", row(version=2, value=6.0)))
    assert found.changes[0].verdict == "worse" and found.notes == ["versions: ddim 1 → 2"]


def test_what_only_one_folder_has_is_listed_and_another_base_is_no_pair(folder):
    a = folder("a", row(), row("ddpm"), row(seed=1))
    b = folder("b", row(), row("ddpm", base_id="other"))
    found = compare(a, b)
    assert len(found.changes) == 1 and len(found.changes[0].a.rows) == 1
    assert [(r.method, r.seed) for r in found.only_a] == [("ddim", 1), ("ddpm", 0)]
    assert [r.base_id for r in found.only_b] == ["other"]


def test_another_protocol_is_not_compared_and_what_differs_is_said(folder):
    other = FACTS | {"extractor": "pixels"}
    found = compare(folder("a", row()), folder("b", row(facts=other), facts=other))
    assert not found.changes and "extractor: digits and pixels" in found.notes[0]


def test_the_command_prints_the_change_and_the_rest_in_numbers(folder):
    a, b = folder("a", row(), row("ddpm")), folder("b", row(value=4.0))
    text = CliRunner().invoke(main, ["diff", str(a), str(b)]).output
    assert "better" in text and "1 numbers compared, 1 changed" in text and "Only in A" in text
    records = json.loads(CliRunner().invoke(main, ["diff", str(a), str(b), "--format", "json"]).output)
    assert records[0]["difference"] == -1.0 and records[0]["verdict"] == "better"


# merge


def test_rows_protocols_and_images_are_adopted_and_again_nothing_is(folder, tmp_path):
    one = row()
    source = folder("a", one, row("ddpm"))
    images(source, one.key)
    (found,) = merge([source], tmp_path / "into")
    assert (found.rows, found.duplicates, found.images) == (2, 0, 1)
    assert store.read(tmp_path / "into") == store.read(source)
    assert store.protocol(tmp_path / "into", one.protocol) == FACTS
    assert (tmp_path / "into" / "samples" / f"{one.key}.npz").exists()
    before = (tmp_path / "into" / "rows.jsonl").read_bytes()
    (again,) = merge([source], tmp_path / "into")
    assert (again.rows, again.duplicates) == (0, 2)
    assert (tmp_path / "into" / "rows.jsonl").read_bytes() == before


def test_an_answer_that_is_there_stays_and_failures_are_left_out(folder):
    into = folder("into", row(value=5.0))
    source = folder("a", row(value=7.0), row("ddpm", value=None, replicates=[], metric="", error="too big"))
    (found,) = merge([source], into)
    assert (found.rows, found.duplicates, found.failures) == (0, 1, 1)
    assert [r.value for r in store.read(into)] == [5.0]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"value": float("nan")}, "not a finite number"),
        ({"replicates": [1.0] * 19 + [float("inf")]}, "not a finite number"),
        ({"replicates": [1.0] * 3}, "has 3 replicates and needs 20"),
        ({"metric": "fidd[digits]"}, "did you mean fid"),
        ({"nfe": 12.0}, "more than its budget"),
        ({"key": "0" * 20}, "was changed afterwards"),
        ({"seed": 0, "images": "many"}, "as its images"),
        ({"protocol": "f" * 12}, "which is not there"),
    ],
)
def test_one_unsound_row_refuses_all_before_anything_is_written(folder, tmp_path, change, complaint):
    source = folder("a", row("ddpm"))
    lines = [json.loads(row("ddim").line()) | change]
    with (source / "rows.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    with pytest.raises(click.ClickException, match=complaint):
        merge([folder("sound", row("unipc")), source], tmp_path / "into")
    assert not (tmp_path / "into").exists()


def test_a_row_without_a_field_or_of_another_schema_is_refused(folder, tmp_path):
    line = json.loads(row().line())
    for name, change, complaint in (
        ("a", lambda r: r.pop("nfe_max"), "lacks nfe_max"),
        ("b", lambda r: r.update(schema=99), "has schema 99"),
    ):
        source, changed = folder(name), dict(line)
        change(changed)
        (source / "rows.jsonl").write_text(json.dumps(changed) + "\n")
        with pytest.raises(click.ClickException, match=complaint):
            merge([source], tmp_path / "into")


def test_a_protocol_that_was_edited_is_refused(folder, tmp_path):
    source = folder("a", row())
    path = source / "protocols" / f"{row().protocol}.json"
    path.write_text(json.dumps(FACTS | {"extractor": "inception"}))
    with pytest.raises(click.ClickException, match="was changed afterwards"):
        merge([source], tmp_path / "into")


@pytest.mark.parametrize(
    ("array", "more"),
    [
        (np.full((2, 1, 8, 8), np.nan, np.float16), {}),
        (np.zeros((100, 1, 8, 8), np.uint8), {}),
        (np.zeros((2, 1, 8, 8), np.uint8), {"besides": np.zeros(3)}),
        (np.array([{"pickled": True}]), {}),
    ],
)
def test_images_that_are_no_few_finite_samples_are_refused(folder, tmp_path, array, more):
    source = folder("a", row())
    images(source, row().key, array, **more)
    with pytest.raises(click.ClickException, match="sample"):
        merge([source], tmp_path / "into")
    assert not (tmp_path / "into").exists()


def test_a_dry_run_writes_nothing_and_says_what_it_would(folder, tmp_path):
    words = ["merge", str(folder("a", row())), str(tmp_path / "into"), "--dry-run"]
    text = CliRunner().invoke(main, words).output
    assert "1 rows would be adopted" in text and not (tmp_path / "into").exists()


def test_every_command_and_option_on_the_page_about_contributing_exists():
    text = (Path(__file__).resolve().parents[1] / "docs" / "contributing-results.md").read_text()
    commands = [line.split() for line in text.splitlines() if line.startswith("bench ")]
    assert {words[1] for words in commands} == {"run", "table", "diff", "merge"}
    for words in commands:
        options = {name for parameter in main.commands[words[1]].params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options
