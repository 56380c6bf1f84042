"""The literature's numbers join the taxonomy, and a bad row is refused in one sentence."""

import click
import pandas as pd
import pytest

from bench import taxonomy
from bench.literature import published

ROW = {
    "method": "ddim",
    "variant": "eta=0",
    "dataset": "CIFAR-10",
    "resolution": "32",
    "conditional": "",
    "base_model": "a U-Net",
    "network_group": "group_a",
    "nfe": "10",
    "fid": "13.36",
    "is": "",
    "nll": "",
    "nll_type": "",
    "kind": "primary",
    "verified": "True",
    "survey_error": "False",
    "fid_as_printed": "",
    "nll_as_printed": "",
    "note": "",
    "source": "arXiv 2010.02502 Table 1",
}


@pytest.fixture(scope="module")
def everything():
    return published.load()


@pytest.fixture
def load(tmp_path):
    def load_rows(*changes: dict):
        path = tmp_path / "published.csv"
        pd.DataFrame([ROW | change for change in changes]).to_csv(path, index=False)
        return published.load(path)

    return load_rows


# The file


def test_all_of_the_rows_load_and_join_the_taxonomy(everything):
    assert len(everything) == 1611
    assert set(everything["method"]) <= set(taxonomy.load().entries)


def test_most_rows_belong_to_a_network_shared_by_several_methods(everything):
    sharing = everything.groupby("network_group")["method"].nunique()
    assert (sharing > 1).sum() >= 10


def test_what_ddim_printed_at_ten_evaluations_is_found(everything):
    rows = published.select(everything, "cifar10", nfe=[10], methods=["ddim"], group="cifar10_ddpm_ho")
    assert {13.36, 41.07} & set(rows["fid"]) == {13.36}


def test_a_value_that_a_survey_misprints_keeps_what_was_printed(everything):
    printed = everything[everything["fid_as_printed"].notna()]
    assert len(printed) == 4 and printed["survey_error"].all() and printed["nll"].notna().all()


# Reading


def test_a_sound_row_gets_types_a_data_name_and_an_empty_mark(load):
    row = load({}).iloc[0]
    assert (row["data"], row["mark"], row["fid"], row["nfe"]) == ("cifar10", "", 13.36, 10)
    assert pd.isna(row["conditional"]) and pd.isna(row["is"])


def test_doubtful_rows_carry_a_mark(load):
    frame = load({"verified": "False"}, {"nfe": "20", "survey_error": "True", "note": "FID of another model"})
    assert list(frame["mark"]) == ["?", "!"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"method": "dimm"}, "no entry of taxonomy.yaml"),
        ({"kind": "hearsay"}, "needs a kind among"),
        ({"fid": "-1"}, "as its fid"),
        ({"fid": "good"}, "as its fid"),
        ({"is": "0.5"}, "as its is"),
        ({"nfe": "0"}, "as its nfe"),
        ({"nfe": "10.5"}, "needs a whole number"),
        ({"nll": "1000"}, "as its nll"),
        ({"resolution": "3"}, "as its resolution"),
        ({"verified": "maybe"}, "not True or False"),
        ({"conditional": "cifar"}, "not True or False"),
        ({"source": ""}, "needs a value for source"),
        ({"fid": ""}, "neither FID nor IS nor NLL"),
        ({"survey_error": "True"}, "needs a note"),
        ({}, "repeats an earlier row"),
    ],
)
def test_a_bad_row_is_refused_in_one_sentence_that_names_it(load, change, complaint):
    with pytest.raises(click.ClickException) as caught:
        load({}, change)
    message = caught.value.message
    assert "row 2 below the header" in message and complaint in message and message.endswith(".")


def test_a_file_without_a_column_is_refused(tmp_path):
    pd.DataFrame([ROW]).drop(columns="kind").to_csv(tmp_path / "published.csv", index=False)
    with pytest.raises(click.ClickException, match="lacks the columns kind"):
        published.load(tmp_path / "published.csv")


# Selecting


def test_a_data_set_is_known_however_it_is_written(load):
    frame = load({}, {"dataset": "ImageNet-64"})
    assert len(published.select(frame, data="cifar_10")) == len(published.select(frame, data="CIFAR-10")) == 1
    assert published.select(frame, data="mnist").empty


def test_evaluations_are_matched_exactly_and_unstated_ones_never(load):
    frame = load({}, {"nfe": "20"}, {"nfe": ""})
    assert list(published.select(frame, nfe=[10, 50])["nfe"]) == [10]


def test_a_plugin_selects_the_rows_of_its_entry(load):
    frame = load({}, {"method": "dpm_solver_pp"})
    assert list(published.select(frame, methods=["dpmpp_2m"])["method"]) == ["dpm_solver_pp"]
    assert list(published.select(frame, methods=["ddim"])["method"]) == ["ddim"]


def test_a_group_keeps_one_network(load):
    frame = load({}, {"network_group": "group_b"}, {"network_group": ""})
    assert list(published.select(frame, group="group_b")["network_group"]) == ["group_b"]


def test_a_group_without_rows_on_this_data_is_empty_and_not_unknown(load):
    frame = load({}, {"network_group": "group_b", "dataset": "ImageNet-64"})
    assert published.select(frame, data="cifar10", group="group_b").empty


@pytest.mark.parametrize("condition", [{"group": "group_z"}, {"methods": ["ddin"]}])
def test_a_misspelt_condition_is_answered_with_the_nearest(load, condition):
    with pytest.raises(click.BadParameter, match="did you mean"):
        published.select(load({}), **condition)
