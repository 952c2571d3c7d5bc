"""One thread, no network, and none of the user's caches."""

import os
import sys
import tempfile
from urllib.error import URLError

import pytest

HOME = pytest.StashKey[tempfile.TemporaryDirectory]()


def pytest_configure(config: pytest.Config) -> None:
    """Set what is read when torch and huggingface_hub are imported; test processes' children inherit it."""
    home = config.stash[HOME] = tempfile.TemporaryDirectory(prefix="raysweep-tests-")
    os.environ.update(
        {
            "OMP_NUM_THREADS": "1",
            "HF_HOME": f"{home.name}/huggingface",
            "HF_HUB_OFFLINE": "1",
            "TORCH_HOME": f"{home.name}/torch",
            "RAYSWEEP_CACHE": f"{home.name}/raysweep",
            "RAYSWEEP_DATA": f"{home.name}/data",
        }
    )


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[HOME].cleanup()


@pytest.fixture(autouse=True)
def own_caches(tmp_path, monkeypatch):
    """Caches of the test's own."""
    for name in ("RAYSWEEP_CACHE", "RAYSWEEP_DATA", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))


@pytest.fixture(autouse=True)
def one_thread():
    """Tests of the report do not import torch, and this does not do it for them."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture
def no_network(monkeypatch):
    """Nothing can be fetched."""

    def refuse(*_, **__):
        raise URLError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("torch.hub.urlopen", refuse)
