"""What the fault suite shares: the process that forks runs, and how often runs are killed."""

import pytest
from nursery import Nursery


@pytest.fixture(scope="session")
def nursery():
    with Nursery() as opened:
        yield opened


@pytest.fixture
def kills(request) -> int:
    """How many times a run is killed: `pytest -m faults --kills 100` for the full suite."""
    return request.config.getoption("--kills")
