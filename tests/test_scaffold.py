"""bench new writes a plugin that runs, and bench check says what it still lacks."""

import click
import pytest
from click.testing import CliRunner

from bench.check import everything
from bench.cli import main
from bench.scaffold import new


def test_what_it_writes_runs_at_once_and_lacks_only_its_words(tmp_path):
    path = new("ode_solver", "my_solver", "arXiv:2502.00001", tmp_path)
    failed = {result.check: result.detail for result in everything(files=[path]) if result.ok is False}
    assert failed.keys() == {"declarations"} and "TODO" in failed["declarations"]


def test_inside_the_zoo_the_taxonomy_must_list_it(tmp_path, monkeypatch):
    from bench import registry
    from bench.check import checks

    monkeypatch.setattr("bench.registry.ZOO", tmp_path / "zoo")
    (tmp_path / "pyproject.toml").touch()
    registry.plugins.cache_clear()
    try:
        path = new("ODE solvers", "my_solver", "arXiv:2502.00001")
        assert path == tmp_path / "zoo/sampling_acceleration/ode_solver/my_solver.py"
        plugin = registry.read_plugin(path, "sampling_acceleration/ode_solver")
        (result,) = checks(plugin, only=["paper"])
        assert result.ok is False and "no entry of taxonomy.yaml lists my_solver" in result.detail
    finally:
        registry.plugins.cache_clear()


def test_it_never_overwrites(tmp_path):
    path = new("ode_solver", "my_solver", "arXiv:2502.00001", tmp_path)
    path.write_text("mine")
    with pytest.raises(click.ClickException, match="exists"):
        new("ode_solver", "my_solver", "arXiv:2502.00001", tmp_path)
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("leaf", "name", "paper"),
    [
        ("ode_sover", "mine", "arXiv:2502.00001"),
        ("ode_solver", "My-Solver", "arXiv:2502.00001"),
        ("ode_solver", "mine", "2502"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(leaf, name, paper, tmp_path):
    answer = CliRunner().invoke(main, ["new", leaf, name, "--paper", paper, "--out", str(tmp_path)])
    assert answer.exit_code == 2 and "Error" in answer.output and list(tmp_path.iterdir()) == []
