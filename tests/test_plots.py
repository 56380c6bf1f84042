"""Figures: what is drawn, where it goes, and that nothing depends on colour alone."""

from itertools import pairwise

import numpy as np
import pytest
from click.testing import CliRunner
from measured_rows import PROTOCOL, measured, row

from bench import store
from bench.cli import main
from bench.reporting import samples, series
from bench.reporting.panels import apart
from bench.reporting.series import Line, columns_of, looks, measured_order, pareto, reading_of, scale_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return measured(tmp_path_factory.mktemp("runs"))


def columns(folder, metric=None):
    return columns_of(store.read(folder), reading_of(folder), metric=metric)


def plot(folder, *words):
    return CliRunner().invoke(main, ["plot", "--results", str(folder), *map(str, words)])


def test_every_kind_of_figure_is_drawn_by_default(folder):
    result = plot(folder)
    assert result.exit_code == 0, result.output
    names = {path.name for path in (folder / "plots").iterdir()}
    assert names == {
        "curves-mixture-digits-fid-pixels.png", "curves-mixture-digits-nll-elbo.png",
        "convergence-mixture-digits.png", "pareto-mixture-digits-fid-pixels.png",
        "nll-fid-mixture-digits-nll-elbo-fid-pixels.png", "samples-mixture-digits-nfe5.png",
        "samples-mixture-digits-nfe10.png", "samples-mixture-digits-nfe20.png",
    }  # fmt: skip


@pytest.mark.parametrize("form", ["png", "svg", "pdf"])
def test_the_same_rows_give_the_same_file(folder, tmp_path, form):
    files = [tmp_path / f"{i}.{form}" for i in range(2)]
    for file in files:
        assert plot(folder, "--kind", "convergence", "--out", file).exit_code == 0
    assert files[0].read_bytes() == files[1].read_bytes()


def test_an_svg_names_every_method_beside_its_curve(folder, tmp_path):
    import matplotlib as mpl

    with mpl.rc_context({"svg.fonttype": "none"}):
        assert plot(folder, "--kind", "curves", "--metric", "fid", "--out", tmp_path / "a.svg").exit_code == 0
    text = (tmp_path / "a.svg").read_text()
    assert all(name in text for name in ("DDIM", "UniPC", "DDPM", "ODE solvers", "measured NFE"))


def test_several_figures_for_one_file_are_refused_by_name(folder, tmp_path):
    result = plot(folder, "--kind", "samples", "--out", tmp_path / "a.png")
    assert result.exit_code == 1
    assert "3 figures (samples-mixture-digits-nfe5" in result.output and "--nfe" in result.output
    assert plot(folder, "--kind", "samples", "--nfe", 10, "--out", tmp_path / "a.png").exit_code == 0


def test_a_file_of_another_form_is_refused(folder, tmp_path):
    result = plot(folder, "--kind", "convergence", "--out", tmp_path / "a.gif")
    assert result.exit_code == 2 and "must end in .png, .svg or .pdf" in result.output


def test_nothing_to_draw_is_one_sentence(tmp_path):
    result = plot(tmp_path)
    assert result.exit_code == 1 and "nothing to draw" in result.output and "Traceback" not in result.output


def test_two_protocols_of_one_metric_are_two_columns_and_two_files(tmp_path):
    measured(tmp_path)
    store.append(tmp_path, [row("ddim", "fid[pixels]", 5, 2.0, protocol="bbbbbbbbbbbb", key="other")])
    found = columns(tmp_path, "fid")
    assert [(c.protocol, c.alone) for c in found] == [(PROTOCOL, False), ("bbbbbbbbbbbb", False)]
    assert plot(tmp_path, "--kind", "curves", "--metric", "fid").output.count(".png") == 2


def test_looks_differ_in_more_than_colour_and_baselines_are_grey():
    lines = [Line(f"m{i:02}", "m", "sampling_acceleration/ode_solver", ()) for i in range(20)]
    look = looks([*lines, Line("DDPM", "ddpm", series.BASELINES, ())])
    assert look["DDPM"].colour == series.GREY
    assert len(set(look.values())) == 21
    neighbours = [look[line.label] for line in lines]
    assert all(a.marker != b.marker for a, b in pairwise(neighbours))
    alike = [(a, b) for i, a in enumerate(neighbours) for b in neighbours[:i] if a.colour == b.colour]
    assert all(a.dashes != b.dashes and a.marker != b.marker for a, b in alike)


@pytest.mark.parametrize(("method", "order"), [("ddim", 1), ("unipc", 3), ("ddpm", 0)])
def test_the_measured_order_is_the_slope_between_the_greatest_budgets(folder, method, order):
    line = next(line for line in columns(folder, "distance")[0].lines if line.method == method)
    slope, error = measured_order(line)
    assert slope == pytest.approx(order) and 0 < error < 1


def test_the_front_is_what_nothing_beats_in_both():
    assert pareto([(1, 5), (2, 6), (3, 2), (3, 1), (9, 1)]) == [0, 3]


@pytest.mark.parametrize(
    ("values", "scale"),
    [([1, 100], "log"), ([1, 2], "linear"), ([-1, -2, 3], "linear"), ([-60] * 9 + [9e3], "symlog")],
)
def test_the_axis_suits_the_values(values, scale):
    assert scale_of(values)[0] == scale


def test_names_that_would_overlap_are_moved_apart_and_stay_inside():
    moved = apart([0.5, 0.5, 0.5, 0.99, 1.0], 0.1)
    assert all(b - a > 0.0999 for a, b in pairwise(moved)) and moved[-1] <= 1.0


def test_levels_are_told_by_the_images_and_pictures_use_the_whole_range():
    digits = np.full((2, 1, 8, 8), 16, np.uint8)
    assert samples.top_level([digits]) == 16
    assert samples.top_level([digits, digits * 15]) == 255
    assert (samples.pictures(digits, 16) == 255).all()
    floats = np.array([-3.0, -1.0, 0.0, np.nan]).reshape(4, 1, 1, 1)
    assert samples.pictures(floats, 255).ravel().tolist() == [0, 0, 128, 0]


def test_kept_images_lie_beside_those_of_the_same_start(tmp_path):
    measured(tmp_path, hostile=True)
    shelf = samples.shelves(columns(tmp_path), tmp_path)[1]
    assert shelf.budget == 10 and len({kept.start for kept in shelf.kept}) == 2
    starts = [kept.start for kept in shelf.kept]
    assert starts == sorted(starts, key=starts.index)


def test_a_damaged_image_file_is_left_out(tmp_path):
    measured(tmp_path)
    for path in (tmp_path / "samples").iterdir():
        path.write_bytes(b"PK")
    assert samples.shelves(columns(tmp_path), tmp_path) == []
