"""README and docs: every command and program on them runs, every option exists, every link leads somewhere.

The rule. A document is gone through from top to bottom in a folder of its own, which holds what a reader is
told to have: a copy of the committed results, and samples of digits. A fenced `python` block is run, or, if
its first line is a comment with a file's name, written to that file. In a fenced `bash` block each line that
begins with `bench` or `python` is run in this process, and must end with exit code 0, with less work than a
reader would have it do:

- `bench run` of named methods draws 40 samples at the first budget and seed, on a base trained on 256 images;
  one of whole categories, or without names, gets `--dry-run`;
- `bench train` sees 256 images, and so does a base that is named with another budget;
- `bench check` asks what a plugin's text answers; all is asked of the method in docs/adding-a-method.md;
- `bench data fetch` is asked for data that need no download;
- `bench plot` without a kind or a file draws the Pareto fronts.

`pip` and `pytest` are left to .ci/run, which installs and tests as README says. A `bash` block that begins
with `#!` is a script for a cluster: it must parse, and the options of its `bench` exist.
"""

import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from bench.cli import main
from bench.commands.page import commands, page

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
TEXTS = dict(zip(NAMES, (path.read_text(encoding="utf-8") for path in PAGES)))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
COMMANDS = dict(commands(main, "bench"))
ELSEWHERE = ("pip", "pytest")  # programs that .ci/run runs
SMALL = ["--samples", "40", "--seeds", "0", "--images", "256", "--threads", "1", "--workers", "1", "--quiet"]
CHECKED = "docs/adding-a-method.md"


def lines_of(block: str) -> list[list[str]]:
    """The commands of a bash block as lists of words, without comments."""
    parts = [part for line in block.splitlines() for part in line.split(" && ")]
    return [words for part in parts if (words := shlex.split(part, comments=True))]


def less(words: list[str]) -> list[str]:
    """The command as it is run here."""
    words = [re.sub(r"^([a-z]+)@\d+$", r"\1@256", word) for word in words]
    if words[:2] == ["bench", "run"]:
        return [*words, *less_of_a_run(words)]
    if words[:2] == ["bench", "train"]:
        return [*words, "--images", "256"]
    if words[:3] == ["bench", "data", "fetch"]:
        return [*words[:3], "digits"]
    if words[:2] == ["bench", "plot"] and not {"--kind", "--out"} & set(words):
        return [*words, "--kind", "pareto"]
    return words


def less_of_a_run(words: list[str]) -> list[str]:
    named = len(words) > 2 and not words[2].startswith("--")
    if not named or {"--category", "--leaf", "--survey", "--dry-run"} & set(words):
        return [] if "--dry-run" in words else ["--dry-run"]
    first = words[words.index("--nfe") + 1].split(",")[0] if "--nfe" in words else "5"
    own_base = any(re.search(r"\.py:|diffusers:|mixture", word) for word in words)
    return [*SMALL, "--nfe", first, *([] if own_base else ["--base", "denoiser@256"])]


def run(words: list[str], line: str) -> None:
    """Run a command in this process; exit code 0 or the test fails."""
    if words[0] == "bench":
        result = CliRunner().invoke(main, words[1:])
    else:
        assert words[:2] == ["python", "-m"], f"{line}: only `python -m MODULE` is known here"
        module = __import__(words[2], fromlist=["main"])
        result = CliRunner().invoke(module.main, words[3:])
    assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A folder with what the pages take for granted."""
    import numpy as np

    from bench import check

    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "results", "results", ignore=shutil.ignore_patterns("plots", "samples", "*.lock"))
    shutil.copytree("results", "runs", ignore=shutil.ignore_patterns("tables"))
    Path("docs").mkdir()
    levels = np.random.default_rng(0).integers(0, 17, (40, 8, 8), dtype=np.uint8)
    np.savez("samples.npz", samples=levels)
    monkeypatch.setattr("bench.commands.options.COMMITTED", tmp_path / "results")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return lambda: monkeypatch.setattr(check, "CHECKS", check.CHECKS[:5])


@pytest.mark.parametrize("name", NAMES)
def test_every_command_and_program_of_a_page_runs(name, reader):
    if name != CHECKED:
        reader()
    for language, block in FENCE.findall(TEXTS[name]):
        assert language in ("bash", "python"), f"{name}: say in which language this block is:\n{block}"
        if block.startswith("#!"):
            parses(block, name)
        elif language == "bash":
            for words in lines_of(block):
                if words[0] not in ELSEWHERE:
                    run(less(words), f"{name}: {shlex.join(words)}")
        elif file := re.match(r"# (\S+\.py)\n", block):
            Path(file[1]).parent.mkdir(parents=True, exist_ok=True)
            Path(file[1]).write_text(block)
        else:
            Path("program.py").write_text(block)
            runpy.run_path("program.py")


def parses(script: str, name: str) -> None:
    """Whether bash reads a script, and its `bench` has the options it is given."""
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    for line in script.replace("\\\n", " ").splitlines():
        words = line.split(" bench ")[1].split() if " bench " in line and line[0] != "#" else []
        if words:
            command, rest = command_of(["bench", *words])
            unknown = {word for word in rest if word.startswith("--")} - options(command)
            assert not unknown, f"{name}: `bench {words[0]}` has no {unknown}"


def command_of(words: list[str]) -> tuple[click.Command, list[str]] | None:
    """The command that words begin with, and the rest of them."""
    for length in (3, 2):
        if (name := " ".join(words[:length])) in COMMANDS:
            return COMMANDS[name], words[length:]
    return None


def options(command: click.Command) -> set[str]:
    return {
        name for p in command.params if isinstance(p, click.Option) for name in (*p.opts, *p.secondary_opts)
    } | {"--help"}


@pytest.mark.parametrize("name", NAMES)
def test_every_command_and_option_in_the_text_of_a_page_exists(name):
    every = {option for command in COMMANDS.values() for option in options(command)}
    for span in re.findall(r"`([^`\n]+)`", FENCE.sub("", TEXTS[name])):
        words = span.split()
        if words[0] == "bench" and len(words) > 1 and words[1].islower():
            found = command_of(words)
            assert found, f"{name}: there is no `{span}`"
            unknown = {w for w in found[1] if w.startswith("--")} - options(found[0])
            assert not unknown, f"{name}: `{span}` has no {unknown}"
        elif words[0].startswith("--"):
            unknown = {w for w in words if w.startswith("--")} - every
            assert not unknown, f"{name}: no command has {unknown}"


def test_the_page_of_the_commands_is_what_their_help_gives():
    assert page(main) == TEXTS["docs/commands.md"], "run `python -m bench.commands.page docs/commands.md`"


def test_every_option_says_what_it_does():
    silent = [f"{name} {p.opts[0]}" for name, command in COMMANDS.items() for p in command.params
              if isinstance(p, click.Option) and not p.help]  # fmt: skip
    assert silent == []


@pytest.mark.parametrize("name", NAMES)
def test_every_link_of_a_page_leads_somewhere(name):
    here = (ROOT / name).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", TEXTS[name])):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        path = here / file if file else ROOT / name
        assert path.exists(), f"{name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
            assert anchor in {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}, target


def test_every_page_is_in_the_index_and_the_index_in_the_readme():
    index = TEXTS["docs/README.md"]
    assert [n for n in NAMES[1:] if n != "docs/README.md" and f"]({Path(n).name})" not in index] == []
    assert "](docs/README.md)" in TEXTS["README.md"]


def test_the_readme_names_every_command():
    assert [name for name in COMMANDS if name not in TEXTS["README.md"]] == []
