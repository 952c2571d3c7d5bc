"""The trials of a sweep through Ray Tune, every row into the ledger.

Lanes: with one worker a trial, Ray Tune keeps as many trial processes as fit and hands
them one configuration after the other.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.tune
from ray.tune.experiment import Trial as TuneTrial

from ..recipe import Recipe, Trial
from ..sweep.ledger import Ledger
from ..sweep.plan import PlannedTrial
from ..sweep.progress import Display
from ..sweep.rows import EpochRow, State, TrialJob, why
from ..sweep.rungs import EarlyStopping, Entrant, Guard, Halving, milestones
from .jobs import row_of, run_trial
from .resources import Machine
from .scheduler import EarlyStoppingScheduler, JobQueue

DRIVER_RESOURCES = {"node:__internal_head__": 0.001}
"""What a trial that only directs its workers occupies, so that it does not take their CPUs."""


@dataclass(frozen=True)
class Jobs:
    """Makes the jobs of a sweep: what every trial is given beside its own configuration."""

    recipe: Recipe
    machine: Machine
    folder: Path
    """The run folder."""
    stored: tuple[str, ...]
    """Names of the phases that read stored features."""
    rungs: tuple[int, ...] = ()
    """Epochs at which early stopping compares trials."""

    def of(self, trial: Trial) -> TrialJob:
        """A trial's job."""
        resources = self.recipe.resources
        return TrialJob(
            name=trial.name,
            trial=trial,
            workers=resources.workers_per_trial,
            cpus=resources.cpus_per_worker,
            gpus=self.machine.gpus_per_worker(self.recipe),
            folder=str(self.folder),
            objective=self.recipe.objective,
            rungs=self.rungs,
            features=self.recipe.features,
            stored=self.stored,
        )


def run_trials(jobs: Jobs, planned: Sequence[PlannedTrial], ledger: Ledger, display: Display) -> None:
    """Every trial through Ray Tune."""
    recipe, machine = jobs.recipe, jobs.machine
    nested = recipe.resources.workers_per_trial > 1
    cpus, gpus = float(recipe.resources.cpus_per_worker), machine.gpus_per_worker(recipe)
    need = DRIVER_RESOURCES if nested else {"CPU": cpus, "GPU": gpus}
    rule = early_stopping(recipe, planned, jobs.rungs)
    recorder = _Recorder(ledger, display, rule)
    texts = {one.name: jobs.of(one.trial).model_dump_json() for one in planned}
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(
            ray.tune.with_parameters(run_trial, jobs=texts), ray.tune.PlacementGroupFactory([need])
        ),
        tune_config=ray.tune.TuneConfig(
            search_alg=JobQueue([one.name for one in in_order(planned)], rule, recorder.leave_out),
            num_samples=len(planned),
            scheduler=None if rule is None else EarlyStoppingScheduler(rule),
            max_concurrent_trials=machine.lanes(recipe),
            reuse_actors=not nested,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=ray.tune.RunConfig(
            name="trials", storage_path=str(jobs.folder / "ray"), verbose=0, callbacks=[recorder]
        ),
    )
    tuner.fit()


def in_order(planned: Sequence[PlannedTrial]) -> list[PlannedTrial]:
    """The order in which trials start: the deepest first, so that no lane is left with a long one at the end; then
    by seed, so that all learning rates of a depth are compared before the next seed of any starts."""
    return sorted(planned, key=lambda one: (-one.configuration.layers, one.trial.seed, one.trial.lr))


def rungs_of(recipe: Recipe) -> tuple[int, ...]:
    """Epochs at which early stopping compares trials."""
    if recipe.asha is None:
        return ()
    most = max(trial.epochs for trial in recipe.trials())
    return milestones(recipe.asha.grace_epochs, most, recipe.asha.reduction_factor)


def early_stopping(recipe: Recipe, planned: Sequence[PlannedTrial], rungs: Sequence[int]) -> EarlyStopping | None:
    """Early stopping as the recipe asks for it; None where every trial runs to its end."""
    if recipe.asha is None:
        return None
    if recipe.asha.guard is not None:
        entrants = {one.name: Entrant(_all_but_rate(one.trial), one.trial.lr, one.trial.seed) for one in planned}
        return Guard(entrants, rungs, recipe.tolerance / 100, recipe.asha.guard)
    strata = {one.name: _stratum(one.trial, recipe.asha.compare_within) for one in planned}
    return Halving(strata, rungs, recipe.asha.reduction_factor, f"val_{recipe.objective}")


def _all_but_rate(trial: Trial) -> Hashable:
    return trial.model_copy(update={"lr": 0.0, "seed": 0})


def _stratum(trial: Trial, within: Sequence[str]) -> Hashable:
    fields = {**dict(trial.data), **dict(trial.model), **dict(trial.train), **dict(trial)}
    return tuple(fields[axis] for axis in within)


def last_line(error: Exception | str) -> str:
    """What an error says, without the traceback that Ray puts before it and the module that the error is from."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "errors.pydantic.dev" not in line]
    return re.sub(r"^(\w+\.)*(\w+Error: )", r"\2", lines[-1]) if lines else ""


def _name(tune_trial: TuneTrial) -> str:
    return str(tune_trial.config["job"])


class _Recorder(ray.tune.Callback):
    """Writes every row that reaches the driver, and tells the display."""

    def __init__(self, ledger: Ledger, display: Display, rule: EarlyStopping | None) -> None:
        self.ledger, self.display, self.rule = ledger, display, rule
        self.rows: dict[str, EpochRow] = {}
        """The last row of each trial."""
        self.broken: list[TuneTrial] = []

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks with the experiment; the ledger is what a run is read from."""
        return {}

    def leave_out(self, name: str) -> None:
        """A trial is not started, as early stopping has decided of it."""
        self._end(name, "dropped", stop=self.rule.stopped[name] if self.rule else None)

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self.ledger.trial(str(trial), "running")
        self.display.start(str(trial))

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        row = row_of(result)
        before = self.rows.get(row.trial)
        if before is None or row.epoch > before.epoch:
            self.rows[row.trial] = row.model_copy(update={"evidence": None})
            self.ledger.epoch(row)
            self.display.row(row)

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        name = str(trial)
        stop = self.rule.stopped.get(name) if self.rule else None
        if stop is None or self.rows[name].over:
            self._end(name, "finished", stopped_early=False)
        else:
            self._end(name, "stopped", stopped_early=True, stop=stop)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self.broken.append(trial)  # Tune stores the error after this call

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        while self.broken:
            trial = self.broken.pop()
            text = Path(trial.error_file).read_text(encoding="utf-8") if trial.error_file else ""
            self._end(str(trial), "failed", error=last_line(text) or "the trial's process ended")

    def on_experiment_end(self, trials: list[TuneTrial], **info: Any) -> None:
        self.on_step_end(0, trials)

    def _end(self, name: str, state: State, **more: Any) -> None:
        epochs = self.rows[name].epoch if name in self.rows else 0
        self.ledger.trial(name, state, epochs_completed=epochs, **more)
        self.display.end(name, state, why(more.get("stop")) or more.get("error", ""))
