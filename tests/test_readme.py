"""The README's own example is a method that passes, and its commands exist."""

import re
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from bench.cli import main

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text()


def test_the_readme_s_method_runs_as_it_stands(tmp_path):
    code = re.search(r"```python\n(.*?)```", TEXT, re.S)[1]
    (tmp_path / "my_sampler.py").write_text(code)
    words = [
        "run",
        "my_sampler",
        "--plugin",
        str(tmp_path / "my_sampler.py"),
        "--data",
        "mixture2d",
        "--nfe",
        "5",
    ]
    result = CliRunner().invoke(
        main, [*words, "--samples", "80", "--quiet", "--results", str(tmp_path / "r")]
    )
    assert result.exit_code == 0 and "My sampler" in result.output, result.output


def test_every_command_the_readme_names_has_a_help_page():
    names = set(re.findall(r"\bbench ([a-z]+)\b", TEXT)) - {"trains"}
    assert {"run", "list", "table", "score"} <= names
    for name in sorted(names):
        assert CliRunner().invoke(main, [name, "--help"]).exit_code == 0, name


def test_bench_answers_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "bench.cli", "--version"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
