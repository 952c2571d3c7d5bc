"""Preparing the environment for Ray is part of what is tested: each test leaves it as it found it."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture
def prepare() -> Iterator[Callable[[], Path]]:
    """`environment.prepare` for a local Ray, whose folders are removed at the end."""
    from raysweep.engine import environment

    made: list[Path] = []

    def make() -> Path:
        folder = environment.prepare(local=True)
        assert folder is not None
        made.append(folder)
        return folder

    yield make
    for folder in made:
        shutil.rmtree(folder, ignore_errors=True)
