"""The trials of a sweep through Ray Tune, every row into the ledger.

Lanes: with one worker a trial, Ray Tune keeps as many trial processes as fit and hands
them one configuration after the other.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.tune
from ray.tune.experiment import Trial as TuneTrial

from ..recipe import Recipe, Trial
from ..sweep.ledger import Ledger
from ..sweep.plan import PlannedTrial
from ..sweep.progress import Display
from ..sweep.rows import State, TrialJob
from ..sweep.rungs import Strata
from .jobs import job_of, row_of, run_trial
from .resources import Machine
from .scheduler import HalvingScheduler

DRIVER_RESOURCES = {"node:__internal_head__": 0.001}
"""What a trial that only directs its workers occupies, so that it does not take their CPUs."""


@dataclass(frozen=True)
class Jobs:
    """Makes the jobs of a sweep: what every trial is given beside its own configuration."""

    recipe: Recipe
    machine: Machine
    storage: Path
    stored: tuple[str, ...]
    """Names of the phases that read stored features."""

    def of(self, trial: Trial) -> TrialJob:
        """A trial's job."""
        resources = self.recipe.resources
        return TrialJob(
            name=trial.name,
            trial=trial,
            workers=resources.workers_per_trial,
            cpus=resources.cpus_per_worker,
            gpus=self.machine.gpus_per_worker(self.recipe),
            storage=str(self.storage),
            features=self.recipe.features,
            stored=self.stored,
        )


def run_trials(jobs: Jobs, planned: Sequence[PlannedTrial], ledger: Ledger, display: Display) -> None:
    """Every trial through Ray Tune, the costliest first so that no lane is left with it at the end."""
    recipe, machine = jobs.recipe, jobs.machine
    nested = recipe.resources.workers_per_trial > 1
    cpus, gpus = float(recipe.resources.cpus_per_worker), machine.gpus_per_worker(recipe)
    need = DRIVER_RESOURCES if nested else {"CPU": cpus, "GPU": gpus}
    strata = strata_of(recipe, [one.trial for one in planned])
    ordered = sorted(planned, key=lambda one: -one.configuration.layers)
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(run_trial, ray.tune.PlacementGroupFactory([need])),
        param_space={"job": ray.tune.grid_search([jobs.of(one.trial).model_dump_json() for one in ordered])},
        tune_config=ray.tune.TuneConfig(
            scheduler=None if strata is None else HalvingScheduler(strata),
            max_concurrent_trials=machine.lanes(recipe),
            reuse_actors=not nested,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=ray.tune.RunConfig(
            name="trials",
            storage_path=str(jobs.storage),
            verbose=0,
            callbacks=[_Recorder(ledger, display, strata)],
        ),
    )
    tuner.fit()


def strata_of(recipe: Recipe, trials: Sequence[Trial]) -> Strata | None:
    """Successive halving as the recipe asks for it; None where every trial runs to its end."""
    if recipe.asha is None:
        return None
    within = recipe.asha.compare_within

    def stratum(trial: Trial) -> Hashable:
        fields: Mapping[str, Any] = {
            **dict(trial.data),
            **dict(trial.model),
            **dict(trial.train),
            **dict(trial),
        }
        return tuple(fields[axis] for axis in within)

    return Strata(
        {trial.name: stratum(trial) for trial in trials},
        {trial.name: trial.epochs for trial in trials},
        recipe.asha.grace_epochs,
        recipe.asha.reduction_factor,
    )


def last_line(error: Exception | str) -> str:
    """What an error says, without the traceback that Ray puts before it and the module that the error is from."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "errors.pydantic.dev" not in line]
    return re.sub(r"^(\w+\.)*(\w+Error: )", r"\2", lines[-1]) if lines else ""


def _name(tune_trial: TuneTrial) -> str:
    return job_of(tune_trial.config).name


class _Recorder(ray.tune.Callback):
    """Writes every row that reaches the driver, and tells the display."""

    def __init__(self, ledger: Ledger, display: Display, strata: Strata | None) -> None:
        self.ledger, self.display, self.strata = ledger, display, strata
        self.epochs: dict[str, int] = {}
        self.broken: list[TuneTrial] = []

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks with the experiment; the ledger is what a run is read from."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self.ledger.trial(str(trial), "running")
        self.display.start(str(trial))

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        row = row_of(result)
        if row.epoch > self.epochs.get(row.trial, 0):
            self.epochs[row.trial] = row.epoch
            self.ledger.epoch(row)
            self.display.row(row)

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        name = str(trial)
        stopped = self.strata is not None and name in self.strata.stopped
        self._end(name, "stopped" if stopped else "finished", stopped_early=stopped)

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
        self.ledger.trial(name, state, epochs_completed=self.epochs.get(name, 0), **more)
        self.display.end(name, state, more.get("error", ""))
