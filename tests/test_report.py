"""The report: what its file holds, and that nothing measured can act in it."""

import json
import re
from html.parser import HTMLParser

import pytest
from click.testing import CliRunner
from measured_rows import HOSTILE, PROTOCOL, measured, row

from bench import registry, store
from bench.cli import main
from bench.reporting import report as reports
from bench.reporting.cards_in_html import account, paper
from bench.reporting.numbers import command_of, embedded, metrics_of


class Page(HTMLParser):
    """The elements of a page, with what a test asks about."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.texts: dict[str, str] = {}
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "input", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes what is not open"

    def handle_data(self, text):
        if self.open:
            self.texts[self.open[-1]] = self.texts.get(self.open[-1], "") + text

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]


def told(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return measured(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def text(folder):
    return reports.report(folder)


def test_the_command_writes_one_small_file_beside_the_rows(folder, tmp_path):
    result = CliRunner().invoke(main, ["report", "--results", str(folder)])
    assert result.exit_code == 0, result.output
    assert (folder / "report.html").stat().st_size < 1e6
    given = CliRunner().invoke(
        main, ["report", "--results", str(folder), "--out", str(tmp_path / "a" / "b.html")]
    )
    assert given.exit_code == 0 and (tmp_path / "a" / "b.html").exists()


def test_a_folder_without_rows_is_one_sentence(tmp_path):
    result = CliRunner().invoke(main, ["report", "--results", str(tmp_path)])
    assert result.exit_code == 1 and "holds no rows" in result.output


def test_a_row_that_holds_what_is_no_text_is_in_the_report_and_the_tables(tmp_path):
    store.append(tmp_path, [row("ddim", "fid[pixels]", budget, 1.0, base="\ud800") for budget in (5, 10)])
    for words in (["report", "--out", str(tmp_path / "page.html")], ["table", "--write"]):
        result = CliRunner().invoke(main, [*words, "--results", str(tmp_path)])
        assert result.exit_code == 0, result.output
    assert "\\ud800" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_every_measured_number_is_in_the_page_with_its_command(folder, text):
    data = told(text)
    rows = [row for row in store.read(folder) if row.error is None]
    assert len(data["numbers"]) == len(rows)
    values = {number[data["fields"].index("value")] for number in data["numbers"]}
    assert values == {float(f"{row.value:.6g}") for row in rows}
    assert (
        "bench run unipc --data mixture-digits --nfe 20 --seeds 0 --samples 500 --extractor pixels"
        in data["commands"]
    )


def test_pictures_that_are_too_many_are_shown_fewer_at_one_budget(folder, text, monkeypatch):
    assert len(Page(text).all("img")) == 9
    monkeypatch.setattr(reports, "PICTURES", len(told(text)["lines"]) * 400)
    fewer = Page(reports.report(folder)).all("img")
    assert len(fewer) == 3 and all("NFE 10" in image["alt"] for image in fewer)
    monkeypatch.setattr(reports, "PICTURES", 0)
    assert "too many for this page" in reports.report(folder)


def test_the_best_of_a_budget_is_marked_and_a_tie_is_marked_as_one(tmp_path):
    measured(tmp_path)
    store.append(tmp_path, [row("euler", "fid[pixels]", 5, 3.6), row("dpmpp_2m", "fid[pixels]", 5, 9.0)])
    data = told(reports.report(tmp_path))
    field = {name: i for i, name in enumerate(data["fields"])}
    fid = [n for n in data["numbers"] if data["columns"][n[field["column"]]]["name"] == "fid[pixels]"]
    marks = {(data["lines"][n[field["line"]]]["method"], n[field["budget"]]): n[field["mark"]] for n in fid}
    assert marks["ddpm", 5] == marks["euler", 5] == "tied" and marks["ddpm", 10] == "best"
    assert marks["unipc", 5] == marks["dpmpp_2m", 5] == ""


def test_the_page_is_well_formed_and_asks_for_nothing_outside_itself(text):
    page = Page(text)
    assert page.open == []
    assert all(
        image["src"].startswith("data:image/png;base64,") and image["alt"] for image in page.all("img")
    )
    assert not page.all("link") and not any("src" in script for script in page.all("script"))
    assert "url(" not in page.texts["style"] and "@import" not in page.texts["style"]
    policy = next(meta["content"] for meta in page.all("meta") if "content" in meta and "http-equiv" in meta)
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy


def test_ids_are_unique_and_links_within_the_page_lead_somewhere(text):
    page = Page(text)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in page.all("a") if a["href"].startswith("#")} <= set(ids)


def test_controls_have_labels_and_the_page_a_language_a_title_and_a_skip_link(text):
    page = Page(text)
    assert page.all("html")[0]["lang"] == "en" and page.texts["title"].startswith("taxobench")
    assert page.all("a")[0] == {"class": "skip", "href": "#main"}
    assert len(re.findall(r"<label[^>]*>[^<]*<(?:select|input)", text)) == len(
        page.all("select") + page.all("input")
    )
    headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert headings[0] == 1 and set(headings[1:]) == {2}


def test_what_was_measured_cannot_add_elements_to_the_page(tmp_path):
    text = reports.report(measured(tmp_path, hostile=True))
    assert "<script>document" not in text and "<img src=x" not in text
    page = Page(text)
    assert [script.get("type") for script in page.all("script")] == ["application/json", None]
    assert not any("onerror" in attributes for _, attributes in page.elements)
    assert any(line["label"] == HOSTILE for line in told(text)["lines"])
    assert "owned" in page.texts["td"] and "owned" in page.texts["summary"]


def test_embedded_json_comes_back_as_it_was():
    record = {"a": "</script><!-- & \u2028 é", "b": [None, 1.5]}
    assert json.loads(embedded(record)) == record
    assert not set("<>&\u2028") & set(embedded(record))


def test_only_papers_of_known_form_become_links():
    assert paper("arXiv:2010.02502").startswith('<a href="https://arxiv.org/abs/2010.02502"')
    assert paper("javascript:alert(1)") == "javascript:alert(1)"
    assert "<b>" not in paper("arXiv:1<b>")


@pytest.mark.parametrize("name", sorted(registry.plugins()))
def test_every_method_says_its_idea_in_at_most_two_whole_sentences(name):
    idea = account(registry.plugins()[name]).idea
    assert idea.endswith((".", "!")) and 20 < len(idea) < 700


def test_a_card_has_the_formula_the_parameters_and_the_orders(text):
    card = re.search(r'<details class="card" id="method-ddim">.*?</details>', text, re.S)[0]
    for part in (
        "x_t = alpha_t x0",
        "eta: float = 0.0",
        "Order claimed</dt><dd>1",
        "1.00 ±",
        "2010.02502",
        "ODE Solvers",
    ):
        assert part in card


def test_protocol_environment_and_failures_are_shown(text):
    assert f'id="protocol-{PROTOCOL}"' in text and "<td>extractor</td><td>pixels</td>" in text
    assert "<td>x86_64</td><td>1</td><td>abc</td>" in text
    assert "OverBudget: it took too many" in text


def test_a_command_asks_again_for_exactly_what_a_run_answered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [
        "run",
        "ddim:eta=0.5",
        "ddpm",
        "--data",
        "mixture2d",
        "--nfe",
        "4",
        "--samples",
        "60",
        "--seeds",
        "1",
        "--quiet",
    ]
    assert CliRunner().invoke(main, words).exit_code == 0
    rows = [row for row in store.read(tmp_path / "runs") if row.method != "real data"]
    commands = {command_of([row], registry.plugins(), metrics_of(rows)) for row in rows}
    assert len(commands) == 3  # samples of two methods and one likelihood
    for command in commands:
        result = CliRunner().invoke(main, [*command.split()[1:], "--quiet"])
        assert result.exit_code == 0, result.output
    answers = [json.loads(line) for line in (tmp_path / "runs" / "rows.jsonl").read_text().splitlines()]
    for asked in rows:  # each stands there once: nothing was measured anew
        assert [(a["key"], a["metric"]) for a in answers].count((asked.key, asked.metric)) == 1
