import pytest

from tests.features.processes import Processes


@pytest.fixture(scope="session")
def processes():
    """Other processes, started in a moment each."""
    return Processes("forkserver")
