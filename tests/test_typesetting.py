"""LaTeX tables: they compile, and nothing in them goes over the page."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bench.reporting.typesetting import PACKAGES, layout, typeset

RESULTS = Path(__file__).resolve().parents[1] / "results"
COMPILER = shutil.which("pdflatex")
FRAME = r"""\documentclass{{article}}
{packages}
\begin{{document}}
{body}
\end{{document}}
"""


def compiled(texts, folder) -> str:
    """What the compiler said of the texts, one after the other in a document."""
    source = FRAME.format(
        packages=PACKAGES.removeprefix("% needs ").replace(" and ", "\n"), body="\n\\clearpage\n".join(texts)
    )
    (folder / "all.tex").write_text(source, encoding="ascii")
    for _ in range(2):  # a longtable takes its widths from the pass before
        done = subprocess.run(
            [COMPILER, "-interaction=nonstopmode", "all.tex"], cwd=folder, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout


@pytest.mark.skipif(COMPILER is None, reason="there is no pdflatex on this machine")
def test_the_committed_tables_compile_and_stay_on_the_page(tmp_path):
    texts = [path.read_text() for path in sorted((RESULTS / "tables").glob("*.tex"))]
    said = compiled(texts, tmp_path)
    assert texts and re.findall(r"Overfull \\hbox.*|.*Float too large.*", said) == []


def test_what_fits_keeps_its_columns_and_the_largest_type():
    plan = layout(["a", "b"], [["DDIM", "1.0"]])
    assert (plan.turned, plan.size, plan.wrapped) == (False, "small", [False, False])


def test_long_texts_wrap_numbers_never_and_many_columns_turn_the_page():
    words = "a method of many words " * 5
    plan = layout(["method", "FID", "source"], [[words, r"1.234 $\pm$ 0.005", words]])
    assert plan.wrapped == [True, False, True] and not plan.turned
    wide = layout(["method", *"abcdefgh"], [["DDIM", *[r"0.1234 $\pm$ 0.0005"] * 8]])
    assert wide.turned and not any(wide.wrapped)


def test_more_rows_than_a_page_holds_go_over_several_under_a_repeated_heading():
    lines = [["DDIM", "1.0"]] * 100
    assert r"\begin{longtable}" in typeset("t", ["method", "FID"], lines, ["a note"])
    assert r"\begin{longtable}" not in typeset("t", ["method", "FID"], lines[:30], ["a note"])
