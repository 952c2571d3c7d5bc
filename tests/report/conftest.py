"""Fixtures that write a synthetic run folder and read it again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from raysweep.sweep.ledger import Run, read
from tests.report.synthetic_runs import Outcome, digits_outcomes, final_result, write_run


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """Write a run of these outcomes and read it again."""

    def make(outcomes: Sequence[Outcome], name: str = "run", **more: Any) -> Run:
        return read(write_run(tmp_path / name, outcomes, **more))

    return make


@pytest.fixture
def digits_run(make_run: Callable[..., Run]) -> Run:
    """The whole run of `digits_outcomes` with its final fit."""
    return make_run(digits_outcomes(), final=final_result())
