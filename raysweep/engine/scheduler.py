"""Early stopping as Ray Tune asks for it: a queue that hands out trials, and a verdict after every epoch.

Both ask the same rule (see `raysweep.sweep.rungs`) and keep nothing of their own that would
have to be saved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from ..sweep.rungs import EarlyStopping
from .jobs import report_of


class JobQueue(Searcher):
    """Hands out jobs in order, and leaves out those of which early stopping has decided meanwhile.

    Args:
        names: of the trials, in order.
        rule: decides.
        leave_out: told the name of each trial that will not start.
    """

    def __init__(self, names: Sequence[str], rule: EarlyStopping | None, leave_out: Callable[[str], None]) -> None:
        super().__init__()
        self._waiting = list(reversed(names))
        self._rule, self._leave_out = rule, leave_out

    def suggest(self, trial_id: str) -> Any:
        """The configuration of the next trial, which is its name."""
        while self._waiting:
            name = self._waiting.pop()
            if self._rule is None or name not in self._rule.stopped:
                return {"job": name}
            self._leave_out(name)
        return Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing is learnt from a trial's end."""

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Tune itself limits how many run."""
        return False

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: a run is read from its ledger."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""


class EarlyStoppingScheduler(FIFOScheduler):
    """Asks the rule after every epoch."""

    def __init__(self, rule: EarlyStopping) -> None:
        super().__init__()
        self._rule = rule

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Whether a trial goes on after an epoch. After its last one it ends by itself, and has finished."""
        row = report_of(result).row
        if row is None:
            return TrialScheduler.CONTINUE
        self._rule.report(row)
        if row.trial in self._rule.stopped and not row.over:
            return TrialScheduler.STOP
        return TrialScheduler.CONTINUE

    def debug_string(self) -> str:
        """One line on what is in force."""
        return f"early stopping by {type(self._rule).__name__}"
