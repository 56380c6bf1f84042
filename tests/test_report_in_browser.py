"""The report in a headless browser: it opens from disk, sorts, filters, and shows curves and grids."""

import chromium
import pytest
from click.testing import CliRunner
from measured_rows import measured

from bench.cli import main
from bench.reporting import report as reports

pytestmark = pytest.mark.skipif(chromium.found() is None, reason="there is no chromium on this machine")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return measured(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    one = chromium.Browser(tmp_path_factory.mktemp("profile"))
    yield one
    one.close()


@pytest.fixture
def opened(browser, folder):
    """A function that opens the report at a view, and gives the browser."""

    def at(view: str = "", where=None):
        file = reports.write(where or folder, (where or folder) / "report.html")
        browser.logged.clear()
        browser.asked.clear()
        browser.open(file.as_uri() + view)
        return browser

    return at


METHODS = "[...document.querySelectorAll('#table tbody tr')].map(tr => tr.cells[0].textContent)"


def test_the_report_opens_from_disk_without_a_complaint_or_a_request(opened):
    page = opened()
    assert page.run("document.querySelectorAll('#chart path').length") >= 4
    assert page.logged == []
    assert [url for url in page.asked if not url.startswith(("file:", "data:", "about:"))] == []


def test_the_report_of_the_committed_results_is_under_five_megabytes_and_opens(browser, tmp_path):
    out = tmp_path / "report.html"
    result = CliRunner().invoke(main, ["report", "--reference", "--out", str(out)])
    assert result.exit_code == 0 and out.stat().st_size < 5e6, result.output
    browser.logged.clear()
    browser.open(out.as_uri())
    assert browser.logged == [] and len(browser.run(METHODS)) > 20
    assert browser.run("document.querySelectorAll('#chart path').length") >= 4
    loaded = "[...document.images].filter(image => image.naturalWidth > 0).length"
    assert browser.run(loaded) == browser.run("document.images.length") > 20


def test_a_heading_sorts_by_mouse_and_turns_round_by_keyboard(opened):
    page = opened("#metric=fid%5Bpixels%5D&nfe=5")
    assert page.run(METHODS) == ["DDPM", "DDIM", "UniPC"]
    page.run("document.querySelector('#table th:nth-child(1) button').click()")
    assert page.run(METHODS) == ["DDIM", "DDPM", "UniPC"]
    page.press("Enter")  # the focus has stayed on the heading
    assert page.run(METHODS) == ["UniPC", "DDPM", "DDIM"]
    assert page.run("document.querySelector('#table th').getAttribute('aria-sort')") == "descending"


def test_filters_narrow_the_table_and_clearing_them_brings_all_back(opened):
    page = opened()
    page.run("filters.method.value = 'uni'; filters.dispatchEvent(new Event('input'))")
    assert set(page.run(METHODS)) == {"UniPC"}
    assert page.run("location.hash").count("method=uni") == 1
    page.run("filters.querySelector('[type=reset]').click(); new Promise(done => setTimeout(done, 50))")
    while not page.run("document.querySelector('#count').textContent").startswith("21 of 21"):
        pass


def test_the_command_behind_a_number_unfolds(opened):
    page = opened("#metric=fid%5Bpixels%5D&nfe=5&method=unipc")
    page.run("document.querySelector('#table td button').click()")
    assert "bench run unipc --data mixture-digits --nfe 5" in page.run(
        "document.querySelector('.behind').textContent"
    )


def test_curves_are_toggled_and_read_off_by_keyboard(opened):
    page = opened("#data=mixture-digits&metric=distance")
    drawn = "document.querySelectorAll('#chart g').length"
    assert page.run(drawn) == 3
    page.run("document.querySelector('#legend input').click()")
    assert page.run(drawn) == 2
    page.run("document.querySelector('#chart').focus()")
    page.press("ArrowRight")
    first = page.run("document.querySelector('#readout').textContent")
    page.press("ArrowDown")
    assert "NFE 5" in first and page.run("document.querySelector('#readout').textContent") != first


def test_hostile_names_stay_text_in_the_browser(opened, tmp_path):
    page = opened("#nfe=5", measured(tmp_path, hostile=True))
    page.run("document.querySelectorAll('#table td button').forEach(b => b.click())")
    assert page.run("document.title").startswith("taxobench") and page.logged == []
    assert page.run("document.querySelectorAll('[onerror]').length") == 0
    assert any("owned" in name for name in page.run(METHODS))
