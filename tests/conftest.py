"""One thread, and a cache that no test shares with the machine's."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

# What is fuzzed: a few inputs each time, the same ones; --hypothesis-profile thorough for the real search.
SLOW = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
settings.register_profile("few", max_examples=25, derandomize=True, deadline=None, suppress_health_check=SLOW)
settings.register_profile("thorough", max_examples=500, deadline=None, suppress_health_check=SLOW)
settings.load_profile("few")


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=10, help="How often the fault suite kills a run [10].")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """The cache of this test session; kept across sessions where TAXOBENCH_TEST_CACHE names a folder."""
    torch.set_num_threads(1)
    folder = os.environ.get("TAXOBENCH_TEST_CACHE") or str(tmp_path_factory.mktemp("cache"))
    os.environ["TAXOBENCH_CACHE"] = folder
    return folder


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="there is no CUDA device on this machine"))
