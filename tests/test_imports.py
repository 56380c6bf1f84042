"""Who may import whom."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEAVES = {"bench.cache", "bench"}  # anybody may
READ = {  # what reads rows and measures nothing
    "bench.metrics",
    "bench.protocol",
    "bench.registry",
    "bench.row",
    "bench.selection",
    "bench.statistics",
    "bench.store",
    "bench.taxonomy",
}
ALLOWED = {  # the start of a module's name -> what of ours it may import; the longest start counts
    "bench.diffusion": {"bench.diffusion"},
    "bench.method": {"bench.diffusion"},
    "zoo": {"bench.diffusion", "bench.method"},
    "bench.data": {"bench.data", "bench.diffusion"},
    "bench.metrics": {"bench.metrics", "bench.diffusion", "bench.data"},
    "bench.models": {"bench.models", "bench.diffusion", "bench.data"},
    "bench.literature": {*READ, "bench.literature", "bench.reporting"},
    "bench.reporting": {*READ, "bench.literature", "bench.reporting", "bench.data"},
    "bench.job": {"bench.cache"},
    "bench.row": {"bench.cache"},
    "bench.store": {"bench.protocol", "bench.row"},
    "bench.running.executors": {"bench.job", "bench.running.crews", "bench.running.actors"},
    "bench.running.actors": {"bench.running.crews"},
    "bench.running.crews": set(),
    "bench.statistics": set(),
    "bench.taxonomy": set(),
    "bench.registry": set(),
}
HEAVY = {"torch", "pandas", "torchvision", "torch_fidelity", "sklearn", "diffusers", "zoo"}
LIGHT = ("cli", "method", "registry", "taxonomy", "cache", "scaffold", "job", "row")


def imported(path: Path, everywhere: bool = True) -> set[str]:
    """The modules a file imports; without `everywhere` only those it needs to be imported itself."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"bench.{a.name}" for a in node.names} if node.module == "bench" else {node.module}
    return found


def name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {name(path): path for folder in ("bench", "zoo") for path in sorted((ROOT / folder).rglob("*.py"))}
HELD = [module for module in FILES if any(f"{module}.".startswith(f"{start}.") for start in ALLOWED)]


@pytest.mark.parametrize("module", HELD)
def test_a_module_imports_only_what_it_may(module):
    start = max((s for s in ALLOWED if f"{module}.".startswith(f"{s}.")), key=len)
    ours = {other for other in imported(FILES[module]) if other.split(".")[0] in ("bench", "zoo")} - LEAVES
    assert [m for m in ours if not any(f"{m}.".startswith(f"{a}.") for a in ALLOWED[start])] == []


@pytest.mark.parametrize("module", [m for m in FILES if m.startswith("bench") and m != "bench.registry"])
def test_only_the_registry_knows_the_zoo(module):
    assert not any(other.split(".")[0] == "zoo" for other in imported(FILES[module]))


@pytest.mark.parametrize("module", [m for m in LIGHT if m != "method"])
def test_a_light_module_needs_nothing_heavy_to_be_imported(module):
    assert not {m.split(".")[0] for m in imported(FILES[f"bench.{module}"], everywhere=False)} & HEAVY
