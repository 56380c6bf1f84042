"""taxonomy.yaml is sound, and looking things up in it does what its users are told."""

import re
import subprocess
import sys
from collections import Counter

import click
import pytest

from bench import taxonomy
from bench.taxonomy import coverage

TREE = taxonomy.load()

SMALL = """
surveys:
  s: {title: A survey, arxiv: "2201.00001", labels: [Speed > Solvers > ODE, Speed > Learned, Theory]}
categories:
  - id: sampling-acceleration
    title: Sampling acceleration
    counted: true
    leaves:
      - {id: ode_solver, title: ODE solvers, folder: sampling_acceleration/ode_solver}
      - {id: flows, title: Flows, folder: missing}
entries:
  one: {name: One, title: One, year: 2020, leaf: ode_solver, plugins: [one_a, one_b],
        labels: {s: [Speed > Solvers > ODE, Theory]}}
  two: {name: Two, title: Two, year: 2021, leaf: flows, also_in: [ode_solver], labels: {s: [Speed > Learned]}}
"""


@pytest.fixture
def small(tmp_path):
    (tmp_path / "taxonomy.yaml").write_text(SMALL)
    return taxonomy.read(tmp_path / "taxonomy.yaml")


def refusal(act, *args, **named) -> str:
    with pytest.raises(click.BadParameter) as caught:
        act(*args, **named)
    return caught.value.message


# The file


def test_no_key_is_written_twice():
    text = taxonomy.locate("taxonomy.yaml", "taxonomy.yaml").read_text()
    repeated = [key for key, n in Counter(re.findall(r"^  (\w+):", text, flags=re.M)).items() if n > 1]
    assert repeated == []


def test_no_leaf_or_category_has_two_homes():
    for ids in ([c.id for c in TREE.categories], [leaf.id for leaf in TREE.leaves]):
        assert len(ids) == len(set(ids))


def test_every_plugin_has_one_entry():
    counts = Counter(plugin for entry in TREE.entries.values() for plugin in entry.plugins)
    assert [plugin for plugin, n in counts.items() if n > 1] == []


def test_no_plugin_bears_the_name_of_another_entry():
    wrong = [(p, e.id) for e in TREE.entries.values() for p in e.plugins if p in TREE.entries and p != e.id]
    assert wrong == []


def test_every_entry_lies_in_leaves_that_exist_and_in_each_once():
    known = {leaf.id for leaf in TREE.leaves}
    for entry in TREE.entries.values():
        places = (entry.leaf, *entry.also_in)
        assert set(places) <= known, entry.id
        assert len(places) == len(set(places)), entry.id


def test_every_label_of_an_entry_is_a_label_of_its_survey_and_is_given_once():
    for entry in TREE.entries.values():
        for survey, labels in entry.labels.items():
            assert set(labels) <= set(TREE.surveys[survey].labels), entry.id
            assert len(labels) == len(set(labels)), entry.id


def test_every_label_of_a_survey_has_an_entry():
    for survey in TREE.surveys.values():
        used = {label for entry in TREE.entries.values() for label in entry.labels.get(survey.id, ())}
        assert set(survey.labels) == used


def test_arxiv_ids_are_well_formed():
    for work in (*TREE.surveys.values(), *TREE.entries.values()):
        assert work.arxiv is None or re.fullmatch(r"\d{2}(0[1-9]|1[0-2])\.\d{4,5}", work.arxiv), work.id
        assert work.arxiv is not None or not isinstance(work, taxonomy.Survey), work.id


def test_years_agree_with_arxiv_ids():
    for entry in TREE.entries.values():
        assert 2015 <= entry.year <= 2026, entry.id
        if entry.arxiv:
            assert abs(entry.year - 2000 - int(entry.arxiv[:2])) <= 1, entry.id


def test_repositories_are_owner_and_name():
    for work in (*TREE.surveys.values(), *TREE.entries.values()):
        assert work.repo is None or re.fullmatch(r"[\w.-]+/[\w.-]+", work.repo), work.id


def test_folders_follow_category_and_leaf():
    for leaf in TREE.leaves:
        folder = leaf.category.replace("-", "_")
        assert leaf.folder in (None, folder if leaf.id == leaf.category else f"{folder}/{leaf.id}"), leaf.id


def test_a_leaf_with_a_folder_has_a_method_planned():
    planned = {place for e in TREE.entries.values() if e.plugins for place in (e.leaf, *e.also_in)}
    assert {leaf.id for leaf in TREE.leaves if leaf.folder} <= planned


def test_only_related_work_is_not_counted():
    assert [c.id for c in TREE.categories if not c.counted] == ["related"]


def test_the_design_s_categories_are_there_in_order():
    assert [c.id for c in TREE.categories] == [
        "sampling-acceleration",
        "likelihood-improvement",
        "data-generalisation",
        "foundations",
        "related",
    ]


# Looking up


def test_a_plugin_finds_its_entry_by_listing_or_by_name(small):
    assert small.entry_of("one_b").id == "one"
    assert small.entry_of("two").id == "two"
    assert small.entry_of("three") is None


def test_names_are_taken_with_hyphens_or_underscores_in_any_case(small):
    assert small.category("sampling_acceleration") is small.category("Sampling-Acceleration")
    assert (
        small.leaf("ode-solver")
        is small.leaf("sampling_acceleration/ode_solver")
        is small.leaf("ODE solvers")
    )


def test_a_misspelt_name_is_answered_with_the_nearest(small):
    assert refusal(small.category, "sampling-aceleration").endswith("did you mean 'sampling-acceleration'?")
    assert refusal(small.leaf, "ode_slover").endswith("did you mean 'ode_solver'?")


def test_a_strange_name_is_answered_with_the_choices_each_once(small):
    assert refusal(small.leaf, "zzz") == "unknown leaf 'zzz'; choose from ode_solver, flows."


def test_selecting_nothing_in_particular_gives_every_entry(small):
    assert small.select() == {"one", "two"}


def test_a_leaf_selects_also_the_entries_best_known_elsewhere(small):
    assert small.select(leaf="ode_solver") == {"one", "two"}
    assert small.select(leaf="flows") == {"two"}


def test_a_survey_selects_by_its_own_labels(small):
    assert small.select(survey="s", category="speed") == {"one", "two"}
    assert small.select(survey="s", category="Speed", leaf="ode") == {"one"}


def test_words_of_a_survey_must_meet_in_one_label(small):
    assert small.select(survey="s", category="Theory", leaf="ode") == set()


def test_a_label_is_matched_within_a_segment_and_not_across(small):
    assert "solvers ode" in refusal(small.select, survey="s", label="solvers ode")


def test_a_label_needs_no_survey_and_adds_to_the_other_conditions(small):
    assert small.select(label="theory") == {"one"}
    assert small.select(label="theory", leaf="flows") == set()


def test_an_unknown_label_is_refused_with_the_nearest(small):
    assert refusal(small.select, survey="s", category="Solverz").endswith("did you mean 'Solvers'?")


def test_cao_s_sampling_acceleration_holds_ddim_and_not_d3pm():
    chosen = TREE.select(survey="cao", category="Sampling Acceleration")
    assert "ddim" in chosen and "d3pm" not in chosen


# Coverage and the surveys' own trees


def test_coverage_counts_the_plugins_that_are_there(small):
    ode, flows = coverage(small, [("one_a", "sampling_acceleration/ode_solver")])
    assert ode["covered"] and ode["methods"] == ["one_a"] and ode["missing"] == ["one_b"]
    assert not flows["covered"] and flows["methods"] == [] and flows["missing"] == ["two"]


def test_a_plugin_in_another_leaf_than_its_entry_is_not_missing(small):
    ode, flows = coverage(small, [("one_a", "flows"), ("one_b", "flows"), ("two", "ode_solver")])
    assert ode["missing"] == flows["missing"] == []
    assert ode["methods"] == ["two"] and flows["methods"] == ["one_a", "one_b"]


def test_coverage_has_a_record_a_leaf_even_with_an_empty_zoo():
    records = coverage(TREE, [])
    assert [record["leaf"] for record in records] == [leaf.id for leaf in TREE.leaves]
    assert not any(record["covered"] for record in records)


def test_a_survey_s_view_is_its_tree_with_entries_and_plugins(small):
    root = small.view("s")
    speed, theory = root.branches
    solvers, learned = speed.branches
    assert (speed.title, speed.entries, theory.title, theory.entries) == ("Speed", (), "Theory", ("one",))
    assert solvers.branches[0].plugins == ("one_a", "one_b")
    assert learned.entries == ("two",) and learned.plugins == ()


def test_a_view_can_be_limited_to_the_plugins_that_are_there(small):
    assert small.view("s", present={"one_b"}).branches[1].plugins == ("one_b",)


def test_importing_the_taxonomy_brings_in_nothing_heavy():
    heavy = "{'torch', 'pandas', 'numpy', 'sklearn'} & set(sys.modules)"
    imports = "import sys, bench.taxonomy, bench.literature.published"
    code = f"{imports}; bench.taxonomy.load(); sys.exit(len({heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
