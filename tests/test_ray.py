"""Runs over a Ray cluster of two nodes on this machine, each with a cache of its own: the rows are the local
ones, models travel, and a node that is killed costs time and nothing else.
"""

import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from running import bench, facts

from bench.cache import cache_dir

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'taxobench[ray]'")
pytestmark = pytest.mark.faults

SLEEPY = '''"""Euler's method, whose chunks take a while and leave a mark where they are drawn."""

import os
import time
from itertools import pairwise
from pathlib import Path

from bench.method import Method


class Sleepy(Method):
    """Sleepy"""

    paper = "arXiv:2206.00364"
    leaf = "ode_solver"

    def sample(self, denoiser, x, nfe):
        Path(os.environ["TAXOBENCH_CACHE"], "drawing").touch()
        time.sleep(float(os.environ.get("NAP", "0")))
        for s, t in pairwise(denoiser.schedule.steps(nfe)):
            out = denoiser(x, s)
            x = denoiser.schedule.alpha(t) * out.x0 + denoiser.schedule.sigma(t) * out.eps
        return x
'''


@dataclass(frozen=True)
class Nodes:
    """A cluster, the node that may be killed, and each node's cache."""

    cluster: object
    second: object
    caches: tuple[Path, Path]

    @property
    def words(self) -> list[str]:
        return ["--executor", "ray", "--address", self.cluster.address]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    from ray.cluster_utils import Cluster

    caches = tuple(tmp_path_factory.mktemp(name) for name in ("first", "second"))
    settings = [{"TAXOBENCH_CACHE": str(cache), "NAP": "0.7"} for cache in caches]
    head = {"num_cpus": 1, "include_dashboard": False, "env_vars": settings[0]}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    second = cluster.add_node(num_cpus=1, env_vars=settings[1])
    cluster.wait_for_nodes()
    yield Nodes(cluster, second, caches)
    ray.shutdown()
    cluster.shutdown()


def test_trained_models_travel_and_the_rows_are_the_local_ones(nodes, tmp_path):
    words = ["run", "ddim", "sn_ddpm", "--nfe", "4", "--samples", "80", "--threads", "1", "--quiet"]
    words += ["--base", "denoiser@256", "--images", "250", "--metric", "fid"]
    before = trained(cache_dir())
    result = bench(*words, *nodes.words, results=tmp_path / "ray")
    assert result.exit_code == 0, result.output
    lent = trained(*nodes.caches)
    assert any(name.startswith("denoiser-digits") for name in lent)  # which this process had trained
    assert "sn_ddpm" in {name.split("-")[0] for name in trained(cache_dir()) - before}  # which a node had
    assert lent <= trained(cache_dir())
    assert bench(*words, results=tmp_path / "local").exit_code == 0
    assert facts(tmp_path / "ray") == facts(tmp_path / "local")
    assert not list((tmp_path / "ray" / "work").glob("*/*"))


def trained(*caches: Path) -> set[str]:
    """The names of the models that lie in these caches."""
    return {path.parent.name for cache in caches for path in cache.glob("models/*/model.safetensors")}


def test_a_killed_node_costs_time_and_nothing_else(nodes, tmp_path):
    plugin = tmp_path / "sleepy.py"
    plugin.write_text(SLEEPY)
    words = ["run", "sleepy", "ddim", "--plugin", str(plugin), "--data", "mixture2d", "--nfe", "4,5,6,7"]
    words += ["--samples", "1200", "--threads", "1", "--quiet", "--metric", "fid"]
    ended = threading.Event()

    def kill():
        while not (nodes.caches[1] / "drawing").exists() and not ended.is_set():
            time.sleep(0.05)
        nodes.cluster.remove_node(nodes.second, allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    result = bench(*words, *nodes.words, results=tmp_path / "ray")
    ended.set()
    killer.join()
    assert result.exit_code == 0, result.output
    assert (nodes.caches[1] / "drawing").exists()  # it was drawing when it was killed
    assert bench(*words, results=tmp_path / "local").exit_code == 0
    assert facts(tmp_path / "ray") == facts(tmp_path / "local")


def test_an_address_where_no_cluster_is_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    def unreachable(**_):
        raise ConnectionError("nobody is there")

    monkeypatch.setattr(ray, "init", unreachable)
    words = ["run", "ddim", "--data", "mixture2d", "--samples", "80", "--nfe", "4", "--quiet"]
    result = bench(*words, "--executor", "ray", "--address", "nowhere:1", results=tmp_path)
    assert result.exit_code == 1 and "no Ray cluster answers at nowhere:1" in result.output


@pytest.mark.parametrize("address", ["127.0.0.1:1", "[::1]:1", "127.0.0.1:99999", "nowhere.invalid:6379"])
def test_an_address_where_nothing_listens_is_said_before_ray_waits_for_it(tmp_path, monkeypatch, address):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was asked"))
    words = ["run", "ddim", "--data", "mixture2d", "--samples", "80", "--nfe", "4", "--quiet"]
    began = time.monotonic()
    result = bench(*words, "--executor", "ray", "--address", address, results=tmp_path)
    said = result.output.strip()
    assert result.exit_code == 1 and f"no Ray cluster answers at {address}: " in said and "\n" not in said
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("address", [None, "auto"])
def test_without_a_host_and_a_port_ray_is_asked_at_once(tmp_path, monkeypatch, address):
    asked = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    def init(**settings):
        asked.append(settings["address"])
        raise ConnectionError("nobody is there")

    monkeypatch.setattr(ray, "init", init)
    words = ["run", "ddim", "--data", "mixture2d", "--samples", "80", "--nfe", "4", "--quiet"]
    words += ["--executor", "ray", *(["--address", address] if address else [])]
    assert bench(*words, results=tmp_path).exit_code == 1 and asked == [address]
