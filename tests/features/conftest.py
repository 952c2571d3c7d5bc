import pytest

from raysweep.recipe import Features
from tests.features.processes import Processes


@pytest.fixture
def settings(tmp_path):
    """A store of features of the test's own."""
    return Features(dir=str(tmp_path / "features"))


@pytest.fixture(scope="session")
def processes():
    """Other processes, started in a moment each."""
    return Processes("forkserver")
