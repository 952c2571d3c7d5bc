"""ASHA that competes within strata, so that it cannot destroy the comparison.

Asynchronous successive halving (Li et al. 2020, arXiv:1810.05934) stops a trial at a rung
when it is not among the best there. Over a whole grid of depths that removes the slow
starters, which are the shallow ones, from a figure about depth. Here each stratum, the
trials that are equal in the axes named by `compare_within`, has rungs of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from raysweep.recipe import Asha

METRIC = "val_accuracy"


class StratifiedAsha(FIFOScheduler):
    """Ray Tune's ASHA, one for each stratum."""

    def __init__(
        self, settings: Asha, stratum: Callable[[Trial], Hashable], epochs: Callable[[Trial], int], most_epochs: int
    ) -> None:
        """`stratum` tells which trials compete; `epochs` how many a trial runs unless stopped."""
        super().__init__()
        self.settings, self.stratum, self.epochs, self.most_epochs = settings, stratum, epochs, most_epochs
        self.stopped: set[str] = set()
        """Names of trials stopped before their last epoch."""
        self._strata: dict[Hashable, AsyncHyperBandScheduler] = {}

    def on_trial_add(self, tune_controller: TuneController, trial: Trial) -> None:
        """Enter a trial in its stratum."""
        self._of(trial).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        """Whether a trial goes on after an epoch."""
        if result["epoch"] >= self.epochs(trial):
            return TrialScheduler.CONTINUE  # it ends by itself
        decision = self._of(trial).on_trial_result(tune_controller, trial, result)
        if decision == TrialScheduler.STOP:
            self.stopped.add(str(trial))
        return decision

    def on_trial_complete(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> None:
        """Take a trial that ended by itself out of its stratum."""
        self._of(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: TuneController, trial: Trial) -> None:
        """Take a trial that failed out of its stratum."""
        self._of(trial).on_trial_remove(tune_controller, trial)

    def debug_string(self) -> str:
        """One line on what is in force."""
        return f"ASHA within {', '.join(self.settings.compare_within) or 'the whole grid'}: {len(self._strata)} strata"

    def _of(self, trial: Trial) -> AsyncHyperBandScheduler:
        key = self.stratum(trial)
        if key not in self._strata:
            self._strata[key] = AsyncHyperBandScheduler(
                time_attr="epoch",
                metric=METRIC,
                mode="max",
                grace_period=min(self.settings.grace_epochs, self.most_epochs),
                reduction_factor=self.settings.reduction_factor,
                max_t=self.most_epochs,
            )
        return self._strata[key]
