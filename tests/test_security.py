"""What comes from others is data: nothing of it is run, written outside its folder, or shown as markup."""

import ast
import hashlib
import html.parser
import io
import json
import re
from pathlib import Path

import click
import pytest
from measured_rows import HOSTILE, measured, row
from running import ROOT, bench

from bench import store
from bench.metrics import weights
from bench.row import Row

SOURCES = sorted(path for folder in ("bench", "zoo") for path in (ROOT / folder).rglob("*.py"))
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
# Plugins' and bases' own code, which somebody asked for by naming its file.
CODE = {"bench/registry.py", "bench/models/bases.py", "bench/models/specs.py", "bench/checks/subject.py"}


def called(node: ast.Call) -> str:
    """The dotted name of what is called: `torch.load`, or `.load` of something that has no name."""
    return ast.unparse(node.func) if isinstance(node.func, ast.Name | ast.Attribute) else ""


def constant(node: ast.Call, name: str):
    """The literal that a keyword of a call is given; None where it is absent or no literal."""
    found = next((keyword.value for keyword in node.keywords if keyword.arg == name), None)
    return found.value if isinstance(found, ast.Constant) else None


def dangers(tree: ast.AST) -> list[str]:
    """What a file's code does that could run what data brings along, with its line."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"{node.lineno}: imports {m}" for m in modules if m.split(".")[0] in PICKLES]
        if not isinstance(node, ast.Call):
            continue
        name, last = called(node), called(node).rpartition(".")[2]
        wrong = {
            "evaluates text": name in ("eval", "exec", "compile", "__import__"),
            "loads a pickle": name == "torch.load" and constant(node, "weights_only") is not True,
            "allows pickles": constant(node, "allow_pickle") is True,
            "may load a pickle": name in ("np.load", "numpy.load") and not careful(node),
            "loads a pandas pickle": last == "read_pickle",
            "runs a model file": name in ("torch.jit.load", "torch.package.PackageImporter"),
            "loads unsafe YAML": name in ("yaml.load", "yaml.load_all") and not safe_loader(node),
            "loads unsafe YAML at all": name.startswith("yaml.") and last in ("unsafe_load", "full_load"),
            "runs a shell": constant(node, "shell") is True
            or name in ("os.system", "os.popen", "subprocess.getoutput"),
            "unpacks without a filter": last in ("extractall", "unpack_archive")
            and constant(node, "filter") != "data",
            "trusts remote code": constant(node, "trust_remote_code") is True,
        }
        found += [f"{node.lineno}: {what} ({name})" for what, so in wrong.items() if so]
    return found


def careful(node: ast.Call) -> bool:
    """A memory map of our own .npy, or told not to unpickle."""
    return constant(node, "allow_pickle") is False


def safe_loader(node: ast.Call) -> bool:
    return any(
        k.arg == "Loader" and ast.unparse(k.value) in ("loader", "yaml.SafeLoader", "yaml.CSafeLoader")
        for k in node.keywords
    )


@pytest.mark.parametrize("path", SOURCES, ids=[str(path.relative_to(ROOT)) for path in SOURCES])
def test_no_file_of_the_harness_runs_what_data_brings_along(path):
    assert dangers(ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from joblib import load", "eval(x)", "exec(x)", "torch.load(p)", "np.load(p)",
        "torch.load(p, weights_only=False)", "numpy.load(p, allow_pickle=True)", "pd.read_pickle(p)",
        "yaml.load(f)", "yaml.load(f, Loader=yaml.Loader)", "yaml.full_load(f)", "os.system(c)",
        "subprocess.run(c, shell=True)", "archive.extractall(p)",
    ],
)  # fmt: skip
def test_what_must_not_be_done_is_noticed(line):
    assert dangers(ast.parse(line))


def test_the_loader_of_the_taxonomy_is_a_safe_one():
    import inspect

    import yaml

    from bench import taxonomy

    source = inspect.getsource(taxonomy.read)
    assert "SafeLoader" in source and issubclass(yaml.CSafeLoader, yaml.constructor.SafeConstructor)


def test_only_plugins_and_bases_that_were_asked_for_are_imported_from_files():
    found = {str(p.relative_to(ROOT)) for p in SOURCES if "exec_module(" in p.read_text(encoding="utf-8")}
    assert found <= CODE


# Pages


class Page(html.parser.HTMLParser):
    """Every element and its attributes, and the text of scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data) -> None:
        if self.scripts and self.tags[-1][0] == "script":
            self.scripts[-1] += data


MARKUP = (
    "<script>x=1</script>", "\"><script>x=1</script>", "'><img src=x onerror=x()>", "${style}", "]]><script>",
    "</script><script>x=1</script>", "javascript:alert(1)", "<!--<script>", "</p><svg onload=x()>",
)  # fmt: skip
PLACES = ("data", "base", "start", "device", "host", "commit", "time", "source")


def shape(text: str) -> list[str]:
    return [
        tag
        for tag, _ in Page(text).tags
        if tag in ("script", "img", "svg", "iframe", "object", "embed", "base", "form")
    ]


@pytest.mark.parametrize("markup", MARKUP)
def test_a_report_shows_markup_as_text_wherever_it_stands(tmp_path, markup):
    store.protocol.cache_clear()
    folder = measured(tmp_path / "runs")
    usual = bench("report", "--out", tmp_path / "usual.html", results=folder)
    assert usual.exit_code == 0, usual.output
    more: list[Row] = [
        row("ddim", "fid[pixels]", 40, 1.0, key=f"k{i}", seed=i, **{name: markup})
        for i, name in enumerate(PLACES)
    ]
    more += [
        row(markup, "fid[pixels]", 5, 1.0), row("ddpm", "", 5, None, key="e", error=markup, replicates=[]),
        row("ddim", "fid[pixels]", 41, 1.0, key="p", parameters={markup: markup, "eta": markup}),
        row("ddim", "fid[pixels]", 42, 1.0, key="d", details={markup: markup, "unit": markup}),
        row("ddim", "fid[pixels]", 43, 1.0, key="v", versions={markup: markup}),
        row(markup, "fid[pixels]", 44, 1.0, key="g", base="given samples", details={"file": markup}),
    ]  # fmt: skip
    store.append(folder, more)
    store.record_protocol(folder, more[0].protocol + "x", {markup: markup})
    result = bench("report", "--out", tmp_path / "report.html", results=folder)
    if result.exit_code:  # refused, in a sentence
        assert isinstance(result.exception, SystemExit) and "Error: " in result.output
        return
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    extra = (
        [t for t in shape(text) if t != "img"],
        [t for t in shape((tmp_path / "usual.html").read_text()) if t != "img"],
    )
    assert extra[0] == extra[1]
    page = Page(text)
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    for _, attributes in page.tags:
        for name in ("href", "src"):
            assert (
                not (attributes.get(name) or "").lower().startswith(("javascript:", "vbscript:", "data:text"))
            )


def test_a_report_lets_no_script_run_but_its_own(tmp_path):
    folder = measured(tmp_path / "runs", hostile=True)
    assert bench("report", "--out", tmp_path / "report.html", results=folder).exit_code == 0
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    policy = next(
        a["content"]
        for tag, a in Page(text).tags
        if tag == "meta" and "Policy" in (a.get("http-equiv") or "")
    )
    assert "default-src 'none'" in policy and "sha256-" in policy and "unsafe-eval" not in policy
    assert "'unsafe-inline'" not in policy.partition("script-src")[2].partition(";")[0]
    assert HOSTILE not in text


# Files from others


@pytest.mark.parametrize("key", ["../../outside", "/tmp/outside", "a/b", "..", "a\x00b", "", "C:\\x"])
def test_rows_cannot_name_files_outside_their_folder(tmp_path, key):
    import numpy as np

    from bench import protocol

    source, into = tmp_path / "source" / "runs", tmp_path / "deep" / "deeper" / "into"
    facts = {"extractor": "pixels", "chunk": 80}
    fingerprint = protocol.fingerprint(facts)
    one = row(
        "mine", "fid[pixels]", 5, 1.0, key=key, base="given samples", protocol=fingerprint, parameters={}
    )
    store.append(source, [one])
    store.record_protocol(source, fingerprint, facts)
    (source / "samples").mkdir()
    for place in (tmp_path / "outside.npz", source.parent / "outside.npz", source / "outside.npz"):
        np.savez(place, samples=np.zeros((2, 1, 8, 8), np.uint8))
    before = {path for path in tmp_path.rglob("*") if into not in path.parents}
    result = bench("merge", source, into)
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), result.exception
    after = {
        path for path in tmp_path.rglob("*") if into not in path.parents and path not in (into, *into.parents)
    }
    assert after <= before and not Path("/tmp/outside.npz").exists()


FETCHES = (
    r"urlopen|urlretrieve|requests\.get|state_dict_from_url|download_url|hf_hub_download|snapshot_download"
)
# A hub's repository is whatever somebody names: no sum is known before, and rows carry that of its weights.
NAMED = {"bench/models/pipelines.py"}


def test_files_that_download_hold_what_they_get_against_whole_sums():
    texts = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in SOURCES}
    fetching = {name for name, text in texts.items() if re.search(FETCHES, text)} - NAMED
    assert "bench/metrics/weights.py" in fetching
    for name in fetching:
        assert {len(known) for known in re.findall(r"\"([0-9a-f]{8,})\"", texts[name])} == {64}, name


@pytest.mark.parametrize("name", weights.WEIGHTS)
def test_what_is_downloaded_is_held_against_its_sha256(tmp_path, monkeypatch, name):
    """Whatever an extractor fetches from a network, it knows all of its sum, and keeps nothing else."""
    assert re.fullmatch("[0-9a-f]{64}", weights.WEIGHTS[name].sha256)
    monkeypatch.setenv("TAXOBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(weights, "urlopen", lambda url, timeout: io.BytesIO(b"something else"))
    with pytest.raises(click.ClickException, match="nothing was kept"):
        weights.fetch(name)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_shipped_weights_are_those_of_their_cards():
    for card in sorted((ROOT / "bench").rglob("weights/*.json")):
        digest = hashlib.sha256(card.with_suffix(".safetensors").read_bytes()).hexdigest()
        assert json.loads(card.read_text())["sha256"] == digest, card.name


# Plugins are code


PLUGIN = '''
from bench.method import Method

class Mine(Method):
    """Mine"""

    paper = "arXiv:2010.02502"

    def sample(self, denoiser, x, nfe):
        return denoiser(x, denoiser.schedule.t_max).x0
'''


def test_a_plugin_is_said_to_run_once(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN)
    words = (
        "run",
        "mine",
        "--plugin",
        path,
        "--data",
        "mixture2d",
        "--nfe",
        "4,5",
        "--samples",
        "80",
        "--threads",
        "1",
    )
    result = bench(*words, results=tmp_path / "runs")
    assert result.exit_code == 0, result.output
    assert result.stderr.count(f"Plugins are code, which runs as you: {path}.") == 1
    assert "Plugins are code" not in result.stdout


def test_a_plugins_card_is_read_without_running_it(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(f"open({str(tmp_path / 'touched')!r}, 'w').close()\n{PLUGIN}")
    assert bench("show", "mine", "--plugin", path).exit_code == 0
    assert not (tmp_path / "touched").exists()
