"""Results folders, the taxonomy and the literature's numbers from files that were damaged or made up: a
sentence and an exit code, no traceback and no hang.
"""

import json
import shutil

import click
import pytest
import yaml
from fuzzing import assert_said, changed, damaged, forget, npz_files, within
from hypothesis import given
from hypothesis import strategies as st
from measured_rows import measured
from running import ROOT, bench

from bench import taxonomy
from bench.literature import published

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A results folder with rows, a failure, a protocol and images, as a run leaves it."""
    return measured(tmp_path_factory.mktemp("sound"))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder that one test after another may write to."""
    return tmp_path_factory.mktemp("place")


def looked_at(folder) -> None:
    """Every command that reads a results folder says what it finds."""
    forget()
    with within():
        for style in ("md", "latex", "csv", "json"):
            assert_said(bench("table", "--format", style, results=folder))
        assert_said(bench("table", "--long", results=folder))
        assert_said(bench("diff", folder, folder))
        assert_said(bench("merge", "--dry-run", folder, folder / "into"))


@given(inputs=st.data())
def test_damaged_rows_are_said(sound, place, inputs):
    content = (sound / "rows.jsonl").read_bytes()
    short = b"".join(content.splitlines(keepends=True)[:4])
    (place / "rows.jsonl").write_bytes(inputs.draw(damaged(short)))
    looked_at(place)


@given(inputs=st.data())
def test_rows_with_fields_of_another_kind_are_said(sound, place, inputs):
    lines = (sound / "rows.jsonl").read_text().splitlines()
    rows = inputs.draw(changed([json.loads(line) for line in (lines[0], lines[-1], lines[7], lines[-2])]))
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    looked_at(place)


@given(inputs=st.data())
def test_reports_and_figures_of_strange_rows_are_made_or_refused(sound, place, inputs):
    lines = (sound / "rows.jsonl").read_text().splitlines()
    rows = inputs.draw(changed([json.loads(line) for line in (lines[0], lines[2], lines[-1])]))
    folder = place / "strange"
    shutil.copytree(sound, folder, dirs_exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    forget()
    with within():
        assert_said(bench("report", results=folder))


@given(inputs=st.data())
def test_damaged_protocols_are_said(sound, place, inputs):
    folder = place / "protocols-damaged"
    shutil.copytree(sound, folder, dirs_exist_ok=True)
    (path,) = (sound / "protocols").iterdir()
    facts = json.loads(path.read_text())
    content = inputs.draw(
        damaged(path.read_bytes())
        | changed([facts]).map(lambda found: json.dumps(found[:1] and found[0]).encode())
    )
    (folder / "protocols" / path.name).write_bytes(content)
    forget()
    with within():
        assert_said(bench("table", results=folder))
        assert_said(bench("report", results=folder))
        assert_said(bench("merge", "--dry-run", folder, place / "into"))


@given(inputs=st.data())
def test_damaged_sample_images_are_passed_over(sound, place, inputs):
    folder = place / "images-damaged"
    shutil.copytree(sound, folder, dirs_exist_ok=True)
    path = next((sound / "samples").iterdir())
    (folder / "samples" / path.name).write_bytes(inputs.draw(damaged(path.read_bytes()) | npz_files()))
    forget()
    with within():
        assert_said(bench("report", results=folder))
        assert_said(bench("merge", "--dry-run", folder, place / "into"))


# The taxonomy and the literature


def read_taxonomy(path) -> None:
    try:
        with within():
            taxonomy.read(path)
    except click.ClickException:
        pass


@pytest.fixture(scope="module")
def small_taxonomy():
    """The taxonomy with a few entries, as plain data."""
    raw = yaml.safe_load((ROOT / "taxonomy.yaml").read_text())
    return raw | {"entries": dict(list(raw["entries"].items())[:3])}


@given(inputs=st.data())
def test_a_damaged_taxonomy_is_said(small_taxonomy, place, inputs):
    path = place / "taxonomy.yaml"
    path.write_bytes(inputs.draw(damaged(yaml.safe_dump(small_taxonomy).encode())))
    read_taxonomy(path)


@given(inputs=st.data())
def test_a_taxonomy_with_fields_of_another_kind_is_said(small_taxonomy, place, inputs):
    (raw,) = inputs.draw(changed([small_taxonomy]).filter(lambda found: len(found) == 1))
    path = place / "taxonomy.yaml"
    path.write_text(json.dumps(raw))  # which is YAML too
    read_taxonomy(path)


@pytest.mark.parametrize(
    "tag", ["object/apply:os.system", "object/new:subprocess.Popen", "name:os.system", "module:os"]
)
def test_a_taxonomy_runs_nothing(place, tag):
    touched = place / "touched"
    path = place / "taxonomy.yaml"
    path.write_text(f"surveys: !!python/{tag} ['touch {touched}']\ncategories: []\nentries: {{}}\n")
    with pytest.raises(click.ClickException):
        taxonomy.read(path)
    assert not touched.exists()


def test_a_taxonomy_of_references_to_references_does_not_fill_the_memory(place):
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]
    (place / "taxonomy.yaml").write_text(
        "\n".join([*lines, "surveys: *a29", "categories: []", "entries: {}"])
    )
    read_taxonomy(place / "taxonomy.yaml")


@given(inputs=st.data())
def test_a_damaged_list_of_published_numbers_is_said(place, inputs):
    lines = (ROOT / "results" / "published.csv").read_bytes().splitlines(keepends=True)
    path = place / "published.csv"
    path.write_bytes(inputs.draw(damaged(b"".join(lines[:6]))))
    try:
        with within():
            published.load(path)
    except click.ClickException:
        pass
