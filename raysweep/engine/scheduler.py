"""Successive halving as Ray Tune asks for it: each row goes to `Strata`, whose verdict goes back."""

from __future__ import annotations

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from ..sweep.rungs import Strata
from .jobs import row_of


class HalvingScheduler(FIFOScheduler):
    """Asks `Strata` after every epoch; keeps nothing of its own, so that nothing of it need be saved."""

    def __init__(self, strata: Strata) -> None:
        super().__init__()
        self._strata = strata

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Whether a trial goes on after an epoch."""
        row = row_of(result)
        assert row.val_accuracy is not None
        if self._strata.decide(row.trial, row.epoch, row.val_accuracy) == "stop":
            return TrialScheduler.STOP
        return TrialScheduler.CONTINUE

    def debug_string(self) -> str:
        """One line on what is in force."""
        return "successive halving within strata"
