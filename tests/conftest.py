"""One thread, and a cache that no test shares with the machine's."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch


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
