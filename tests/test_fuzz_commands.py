"""Every command with arguments that nobody meant: a sentence and an exit code, no traceback and no hang."""

from pathlib import Path

import click
import pytest
from fuzzing import assert_said, within
from hypothesis import given
from hypothesis import strategies as st
from measured_rows import measured
from running import bench

from bench.cli import main
from bench.commands.options import Numbers
from bench.commands.page import commands

pytestmark = pytest.mark.faults

COMMANDS = {name.removeprefix("bench "): command for name, command in commands(main, "bench")}
# No word names a place outside the folder that the test runs in: commands write where they are told to.
WORDS = (
    "", " ", "x", "-", "--", "-1", "0", "1", "5,10", "0-2", "3-1", "1e9", "nan", "9" * 23, "9" * 400, "ddim",
    "ddim:eta=0.5", "ddim:eta=", "ddim:eta", "ddim::", ":", "=", "ddim:spacing=x", "rk45", "fid", "is", "nll",
    "fid[pixels]", "mixture2d", "vmf", "nosuch", "folder:", "folder:x@8", "npz:", "text:/dev/null",
    "mixture:x", "digit", "pixels", "inception", "foundations", "ode_solver", "yang", "cpu", "cuda", "cuda:9",
    "tpu", "auto", "x.py:f", ".", "rows", "rows/rows.jsonl", "missing/x", "arXiv:2010.02502", "\udcff", "é",
    "\u202e", "<script>", "a\nb", "%s", "{}", "$(touch ran)", "`touch ran`", "; touch ran", "*", "~",
)  # fmt: skip
NAMES = st.sampled_from(WORDS) | st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="\0/."), max_size=10
)
# What would train, download, or write into the zoo or the checkout is asked for by a name that there is not.
HARMLESS = {
    "run": ("--dry-run",),
    "train": ("--minutes", "0"),
    "new": ("--out", "plugins"),
    "merge": ("--dry-run",),
}
NOTHING = {"train": {"data"}, "data fetch": {"name"}, "export": {"data"}, "check": {"methods"}}

UNTOUCHED = {"reference"}  # the committed results, which commands write to


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    measured(folder / "rows")
    return folder


def value(draw, command: str, one: click.Parameter) -> str:
    """A value for an option or argument: of its type, near it, or anything."""
    if one.name in NOTHING.get(command, ()):
        return "no such " + draw(NAMES)
    if isinstance(one.type, click.Choice) and draw(st.booleans()):
        return draw(st.sampled_from(one.type.choices))
    if one.type.name in ("integer", "integer range", "float", "numbers") and draw(st.booleans()):
        return str(draw(st.integers(-2, 40) | st.floats()))
    return draw(NAMES)


@st.composite
def command_lines(draw, name: str) -> list[str]:
    command, words = COMMANDS[name], []
    for one in command.params:
        if isinstance(one, click.Argument):
            least = int(one.name in NOTHING.get(name, ()))  # no method at all means the whole zoo
            count = (
                draw(st.integers(least, 2)) if one.nargs == -1 else draw(st.sampled_from((1, 1, 1, least)))
            )
            words += [value(draw, name, one) for _ in range(count)]
        elif one.name not in UNTOUCHED and draw(st.integers(0, 3)) == 0:
            words.append(draw(st.sampled_from(one.opts)))
            words += [] if one.is_flag else [value(draw, name, one)]
    if draw(st.integers(0, 9)) == 0:
        words.append(draw(NAMES))
    return [*name.split(), *words, *HARMLESS.get(name, ())]


@pytest.mark.parametrize("name", COMMANDS)
@given(inputs=st.data())
def test_a_command_with_any_arguments_ends_with_a_sentence(name, place, inputs):
    words = inputs.draw(command_lines(name))
    with pytest.MonkeyPatch.context() as patched, within():
        patched.chdir(place)
        patched.setenv("TAXOBENCH_CACHE", str(place / "cache"))
        assert_said(bench(*words))


@given(words=st.lists(NAMES, max_size=3))
def test_what_is_no_command_is_refused(words, place):
    if words and words[0] not in main.commands:
        with pytest.MonkeyPatch.context() as patched, within():
            patched.chdir(place)
            assert_said(bench(*words))


def test_no_argument_was_given_to_a_shell(place):
    """After all of the above."""
    assert not any(path.name == "ran" for path in Path(place).iterdir())


def refused(*words) -> str:
    """What is said of bad usage: one sentence, and at once."""
    with within(20):
        result = bench(*words)
    assert_said(result)
    assert result.exit_code == 2, result.output
    return result.output


RUN = ("run", "ddim", "--data", "mixture2d", "--dry-run")
TRAIN = ("train", "mixture2d", "denoiser", "--minutes", "0.0001")
HUGE = "9" * 21


@pytest.mark.parametrize("words", [(*RUN, "--nfe"), (*RUN, "--seeds"), ("table", "--nfe"), ("plot", "--nfe")])
def test_a_range_of_too_many_numbers_is_refused_before_it_is_written_out(words):
    for numbers in ("1-9999999999", "1-6000,2-6000", f"1-{HUGE}"):
        assert "more than 10,000 numbers" in refused(*words, numbers)


def test_numbers_may_be_ten_thousand_in_all():
    assert len(Numbers(0).convert("0-4999,5000-9999", None, None)) == 10_000


@pytest.mark.parametrize(
    "option",
    ["threads", "workers", "images", "samples", "held-out", "micro-batch", "keep", "trials", "train-seed"],
)
def test_an_absurd_number_of_a_run_is_refused_by_its_name(tmp_path, option):
    assert f"--{option}" in refused(*RUN, f"--{option}", HUGE, "--results", tmp_path)


@pytest.mark.parametrize("option", ["threads", "images", "seed"])
def test_an_absurd_number_of_a_training_is_refused_by_its_name(option):
    assert f"--{option}" in refused(*TRAIN, f"--{option}", HUGE)


def test_more_threads_than_any_machine_has_are_refused(tmp_path):
    for option in ("--threads", "--workers"):
        assert "1<=x<=1024" in refused(*RUN, option, "100000", "--results", tmp_path)


@pytest.mark.parametrize("budget", [HUGE, "9" * 5000, "0", "\u00b2"])
def test_an_absurd_budget_of_a_base_is_refused(tmp_path, budget):
    for words in (
        (*RUN, "--base", f"denoiser@{budget}:guidance=2", "--results", tmp_path),
        ("train", "mixture2d", f"denoiser@{budget}"),
        ("export", "mixture2d", f"denoiser@{budget}", tmp_path / "out"),
    ):
        assert "no number of images" in refused(*words)


@pytest.mark.parametrize(
    "words",
    [
        (*RUN, "--time-limit"),
        (*RUN, "--minutes"),
        (*RUN, "--gpus"),
        ("train", "mixture2d", "--minutes"),
        ("gc", "--dry-run", "--keep-gb"),
        ("gc", "--dry-run", "--older-than"),
    ],
)
def test_what_is_no_finite_number_above_zero_is_refused(tmp_path, words):
    nothing = ("0",) if words[-1] in ("--time-limit", "--gpus") else ()  # for the others it has a meaning
    for value in ("nan", "inf", "-inf", "-5", *nothing):
        place = () if words[0] == "train" else ("--results", tmp_path)
        assert words[-1] in refused(*words, value, *place)


def test_gc_may_keep_nothing(place):
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TAXOBENCH_CACHE", str(place / "cache"))
        result = bench("gc", "--dry-run", "--keep-gb", "0", "--older-than", "0", results=place / "rows")
    assert result.exit_code == 0, result.output
