"""The literature's tables: matched NFE on one network, the surveys' errata, theirs beside ours, citations."""

import csv
import io
import json
import re

import click
import pytest
from click.testing import CliRunner
from test_tables import row

from bench import taxonomy
from bench.cli import main
from bench.literature import published, surveys, views
from bench.literature.beside import Reason, beside, verdict, why_they_differ
from bench.literature.citing import bibtex
from bench.literature.crosswalk import crosswalk, survey_coverage
from bench.reporting.cards import card, idea
from bench.reporting.sheets import FORMATS, Cell, Sheet, escaped, render
from bench.reporting.tables import Reading, tables


def bench(*words):
    result = CliRunner().invoke(main, list(map(str, words)))
    assert result.exit_code == 0, result.output
    return result.output


def lines(text: str) -> list[list[str]]:
    return [[part.strip() for part in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]


# Matched NFE


def test_a_network_s_table_holds_its_rows_at_that_nfe_with_their_sources():
    (sheet,) = views.sheets("cifar10", [10], group="cifar10_edm_uncond_vp")
    everything = published.load()
    expected = published.select(everything, "cifar10", [10], group="cifar10_edm_uncond_vp")
    assert len(sheet.lines) == len(expected) > 10
    assert {record["nfe"] for record in sheet.records} == {10}
    assert {line[-1].text.partition(" [")[0] for line in sheet.lines} == set(expected["source"])


def test_the_best_is_bold_with_what_lies_within_noise_and_no_doubtful_number_is():
    (sheet,) = views.sheets("cifar10", [10], group="cifar10_edm_uncond_vp")
    assert [line[3].text for line in sheet.lines if line[3].best] == ["2.48", "2.49", "2.51"]
    (doubtful,) = views.sheets("cifar10", [10], group="cifar10_bao_ls")
    assert doubtful.lines[0][3] == Cell("12.19", mark="?")
    assert [line[3].text for line in doubtful.lines if line[3].best] == ["14.00"]


def test_other_networks_come_last_and_nothing_is_best_there():
    *shared, other = views.sheets("cifar10", [10])
    assert "other networks" in other.title and len(shared) >= 5
    assert not any(cell.best for line in other.lines for cell in line)
    titles = [sheet.title for sheet in views.sheets("cifar10", [10], group="same-network")]
    assert titles == [sheet.title for sheet in shared]


def test_several_budgets_give_a_table_of_method_by_nfe():
    (sheet, *_) = views.sheets("cifar10", [5, 10], group="cifar10_scoresde_vp_deep")
    assert sheet.header == ("method", "variant", "NFE 5", "NFE 10", "source")
    assert ["DPM-Solver-v3", "DPM-Solver-v3", "12.76", "3.40"] in [
        [cell.text for cell in line[:4]] for line in sheet.lines
    ]


def test_what_a_row_s_note_says_is_a_footnote_of_its_source():
    (sheet,) = views.sheets("cifar10", [10], methods=["ddim"], group="cifar10_ddpm_ho")
    (line,) = [line for line in sheet.lines if line[3].text == "13.36"]
    footnote = line[-1].text.partition(" ")[2].rpartition(" ")[2]
    assert f"{footnote} quadratic timesteps." in sheet.notes


def test_a_category_and_a_method_select():
    records = [r for s in views.sheets("cifar10", [10], methods=["dpmpp_2m"]) for r in s.records]
    assert {record["method"] for record in records} == {"dpm_solver_pp"}
    chosen = taxonomy.load().select(category="likelihood-improvement")
    found = [r for s in views.sheets("cifar10", category="likelihood-improvement") for r in s.records]
    assert found and {record["method"] for record in found} <= chosen


def test_data_that_nobody_published_on_is_one_sentence():
    with pytest.raises(click.ClickException, match=r"no numbers on digits; it has on CIFAR-10"):
        views.sheets("digits")


def test_every_format_holds_every_row_and_marks_the_unverified():
    rows = json.loads(bench("published", "--format", "json"))
    everything = published.load()
    plain = everything[everything["kind"] != "survey_table"]
    assert len(rows) == len(plain) and sum(row["mark"] == "?" for row in rows) == (plain["mark"] == "?").sum()
    table = list(csv.DictReader(io.StringIO(bench("published", "--format", "csv"))))
    assert [line["mark"] for line in table] == [record["mark"] for record in rows]
    doubtful = ["published", "--data", "cifar10", "--nfe", "10", "--group", "cifar10_bao_ls", "--format"]
    assert "12.19?" in bench(*doubtful, "md") and "12.19?" in bench(*doubtful, "latex")


def test_without_conditions_it_says_what_there_is():
    text = bench("published")
    assert "1,611 numbers" in text and "cifar10_ddpm_ho" in text


# The surveys' tables


@pytest.fixture(scope="module")
def cao():
    return surveys.sheets("cao")


def test_cao_s_four_tables_have_every_row_and_thirteen_errata(cao):
    assert [len(sheet.lines) for sheet in cao] == [32, 22, 21, 64]
    marked = [line for sheet in cao for line in sheet.lines if line[-1].mark == "!"]
    assert len(marked) == 13
    assert all(any(cell.printed is not None for cell in line) for line in marked)
    sound = [line for sheet in cao for line in sheet.lines if line[-1].mark != "!"]
    assert not any(cell.printed for line in sound for cell in line)


def test_every_erratum_of_the_file_has_its_correction_and_no_other_has():
    rows = published.load()
    wrong = rows[rows["survey_error"]]
    keys = {(row["data"], surveys.printed_name(row), int(row["nfe"])) for _, row in wrong.iterrows()}
    assert keys == set(surveys.RIGHT)


@pytest.mark.parametrize(
    ("method", "nfe", "metric", "value"),
    [("score_sde", None, "nll", 2.99), ("ggf", 270, "fid", 3.40), ("edm", 35, "fid", 1.97)],
)
def test_what_a_correction_says_is_what_the_papers_print(method, nfe, metric, value):
    rows = published.load()
    rows = rows[(rows["method"] == method) & (rows["kind"] == "primary") & (rows["data"] == "cifar10")]
    rows = rows if nfe is None else rows[rows["nfe"] == nfe]
    assert value in set(rows[metric])


def test_cells_stand_as_printed_and_wrong_ones_are_struck_before_the_right():
    found = lines(bench("published", "--survey", "cao"))
    assert ["sub-VP SDE", "2000", "2.41", "9.57", "~~2.92~~ 2.99", "[1]!"] in found
    assert ["DDIM", "10", "13.36", "-", "-", ""] in found
    assert any(line[:2] == ["GGF VE", "~~180~~ 270"] for line in found)
    assert any(line[0] == "~~NCSN++~~ UNCSN++ (soft truncation)" for line in found)
    assert any(line[:5] == ["Efficient Sampling", "64", "~~3.08~~ -", "-", "3.08!"] for line in found)


def test_the_record_of_an_erratum_holds_both_what_was_printed_and_what_is_right(cao):
    (edm,) = [r for sheet in cao for r in sheet.records if r["method"] == "edm"]
    assert edm["printed_fid"] == "1.79" and edm["right_fid"] == "1.97" and edm["note"]


def test_a_survey_without_numbers_says_which_has_them():
    result = CliRunner().invoke(main, ["published", "--survey", "yang"])
    assert result.exit_code == 2 and "cao does" in result.output


# Rendering


@pytest.mark.parametrize("words", [["--survey", "cao"], ["--data", "cifar10", "--nfe", "5,10"], []])
def test_latex_has_balanced_braces_one_row_length_and_nothing_unescaped(words):
    text = bench("published", *words, "--format", "latex")
    blocks = re.findall(r"\\begin\{(tabular|longtable)\}\{@\{\}([^\n]*)@\{\}\}\n(.*?)\\end\{\1\}", text, re.S)
    assert len(blocks) == text.count(r"\caption")
    for _, columns, body in blocks:
        rows = [line for line in body.splitlines() if line.endswith(r" \\")]
        count = len(re.sub(r">\{.*?\}p\{.*?\}", "l", columns))
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {count - 1}
    plain = re.sub(r"\\[&%_#${}]", "", text)
    body = "\n".join(line for line in plain.splitlines() if not line.startswith("%"))
    assert body.count("{") == body.count("}") and body.count("$") % 2 == 0
    assert not re.search(r"[&%#](?!.*\\\\)", body) and "_" not in body and text.isascii()


def test_every_character_that_latex_reserves_is_escaped():
    assert escaped(r"a_b & 5% {x} ~ \^<±") == (
        r"a\_b \& 5\% \{x\} \textasciitilde{} \textbackslash{}\textasciicircum{}$<$$\pm$"
    )


def test_a_bar_in_a_text_does_not_break_markdown():
    sheet = Sheet("t", ("a",), ((Cell("x|y"),),))
    assert r"x\|y" in render([sheet], FORMATS[0])


# Beside ours


def measured(**more):
    facts = {"metric": "fid[inception]", "data": "cifar10", "value": 20.0, "samples": 50_000}
    return tables([row("ddim", **(facts | more))], Reading())


def test_the_published_number_stands_beside_ours_and_is_never_called_equal():
    (sheet,) = beside(measured(value=13.36), Reading())
    same = [line for line in sheet.lines if line[3].text == "13.36"]
    assert same and same[0][4].text == "+0.00"
    assert {line[5].text for line in sheet.lines} == {"not comparable"}
    assert all(record["budget"] == 10 and record["published_nfe"] == 10 for record in sheet.records)


def test_each_part_of_the_protocol_that_differs_is_a_reason(tmp_path):
    (theirs,) = [
        r
        for _, r in published.select(
            published.load(), "cifar10", [10], ["ddim"], "cifar10_ddpm_ho"
        ).iterrows()
        if r["fid"] == 13.36
    ]

    def reasons(**more):
        (table,) = measured(**more)
        return {why.name for why in why_they_differ(*table.entries.values(), theirs, tmp_path)}

    assert reasons(base="nets/cifar10_ddpm_ho.py:make") == {"grid"}
    assert reasons() == {"grid", "network"}
    assert reasons(metric="fid[digits]") == {"grid", "network", "extractor"}
    assert reasons(samples=2000) == {"grid", "network", "samples"}
    assert reasons(nfe=9.0) == {"grid", "network", "NFE"}


def test_a_pair_is_compared_only_where_no_reason_is_left_and_even_then_not_called_equal():
    (table,) = measured(value=13.4, spread=0.1)
    ours = table.entries["DDIM", 10]
    reason = Reason("samples", "2,000", "50,000")
    assert [verdict(ours, v, []) for v in (13.36, 20.0)] == ["within 2 standard errors", "differs"]
    assert verdict(ours, 13.4, [reason]) == "not comparable"


def test_data_without_published_numbers_says_so_once():
    found = beside(tables([row("ddim"), row("ddim", metric="is[digits]", key="x")], Reading()), Reading())
    assert found == ["The literature has no numbers on digits: nothing stands beside ours."]


# Cards, citations, cross-walk


def test_a_card_gives_the_idea_the_formula_every_survey_and_the_published_command():
    text = card("dpmpp_2m")
    assert "second-order multistep solver" in text and "e^lambda x0(lambda)" in text
    assert all(f"    {survey}: " in text for survey in taxonomy.load().surveys)
    command = next(line.split() for line in text.splitlines() if line.strip().startswith("bench run"))
    assert command[2] == "dpmpp_2m" and "50000" in command and "inception" in command
    names = {parameter for option in main.commands["run"].params for parameter in option.opts}
    assert {word for word in command if word.startswith("--")} <= names


def test_the_idea_is_two_sentences_and_a_formula_ends_the_one_that_leads_to_it():
    source = '"""A: does b. The step is\n\n    x = y\n\nMore."""'
    assert idea(source) == (["A: does b.", "The step is:"], ["x = y"])


def test_bibtex_has_an_entry_a_paper_and_no_made_up_author():
    text = bibtex(["dpmpp_2m", "dpm_solver_pp", "ddim"])
    assert text.count("@misc{") == 2 and "2211.01095" in text and "author  " not in text
    assert text.count("{") == text.count("}")


def test_a_misspelt_method_is_answered_with_the_nearest():
    with pytest.raises(click.BadParameter, match="did you mean 'ddim'"):
        bibtex(["ddimm"])


def test_coverage_counts_methods_and_labels_of_a_survey():
    tree = taxonomy.load()
    none, some = (survey_coverage(tree, "cao", names) for names in ((), ("ddim",)))
    assert (none.covered, none.covered_labels) == (0, 0) and (some.covered, some.covered_labels) == (1, 2)
    assert some.methods == none.methods == len(none.missing) == len(some.missing) + 1
    assert f"of {some.methods} listed methods" in bench("taxonomy", "--survey", "cao").splitlines()[-1]


def test_the_crosswalk_shows_every_method_under_every_survey():
    sheet = crosswalk(taxonomy.load(), {"ddim"})
    line = next(line for line in sheet.lines if line[0].text == "ddim")
    assert sheet.header == ("method", "plugins", "our leaf", *taxonomy.load().surveys)
    assert [cell.text for cell in line][1:5] == ["ddim", "ode_solver", "ODE Solvers", line[4].text]
    assert len(sheet.lines) == len(taxonomy.load().entries)
