"""Tables as files: one command writes them all, and what is stale is told."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from test_diff_merge import FACTS, row

from bench import protocol, store
from bench.cli import main
from bench.reporting.tablefiles import ENDINGS, LITERATURE, files, stale, write

RESULTS = Path(__file__).resolve().parents[1] / "results"


@pytest.fixture
def folder(tmp_path):
    store.append(tmp_path, [row("ddim", nfe_max=10.0), row("unipc", value=9.0)])
    store.record_protocol(tmp_path, protocol.fingerprint(FACTS), FACTS)
    return tmp_path


def bench(*words):
    return CliRunner().invoke(main, ["table", *map(str, words)])


def test_the_committed_tables_are_what_the_committed_rows_give():
    assert stale(RESULTS, published=True) == [], "run `bench table --reference --write`"


def test_a_wide_and_a_long_table_are_written_in_both_texts_and_all_cells_as_data(folder):
    names = {path.name for path in write(folder)}
    ends = {f"digits-fid-digits{form}.{end}" for form in ("", "-long") for end in ("md", "tex")}
    assert names == ends | {"all.csv", "all.json"} and stale(folder) == []


def test_what_changed_is_missing_or_belongs_to_nothing_is_stale(folder):
    write(folder)
    place = folder / "tables"
    (place / "all.csv").write_text("other")
    (place / "all.json").unlink()
    (place / "gone.md").write_text("")
    assert stale(folder) == ["all.csv", "all.json", "gone.md"]
    write(folder)
    assert stale(folder) == [] and not (place / "gone.md").exists()


def test_a_new_row_makes_the_tables_stale_and_the_command_fails_saying_what_to_do(folder):
    assert bench("--results", folder, "--write").exit_code == 0
    assert bench("--results", folder, "--stale").exit_code == 0
    store.append(folder, [row("ddpm")])
    result = bench("--results", folder, "--stale")
    assert result.exit_code == 1 and f"`bench table --results {folder} --write`" in result.output


def test_the_reference_holds_the_literature_s_tables_in_every_format(tmp_path):
    expected = {f"{name}.{end}" for name in LITERATURE for end in ENDINGS.values()}
    assert set(files(tmp_path, published=True)) == expected


def test_the_long_form_has_a_line_a_cell_with_its_measured_nfe(folder):
    result = bench("--results", folder, "--long")
    line = next(line for line in result.output.splitlines() if line.startswith("| DDIM"))
    parts = [part.strip() for part in line.split("|")]
    assert parts[1:5] == ["DDIM", "10", "10", "10"] and parts[5].startswith("**5.00")


def test_latex_has_the_floor_the_notes_and_the_protocol_under_it(folder):
    floor = row("real data", 0, value=1.0, samples=360)
    store.append(folder, [floor])
    text = bench("--results", folder, "--format", "latex").output
    assert r"real data (360 held out) & 1.00 $\pm$" in text and "extractor digits" in text
    assert text.index(r"\end{tabular}") < text.index("Protocol") < text.index(r"\end{table}")
