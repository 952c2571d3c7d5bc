"""The trials of a sweep through Ray Tune, every row into the ledger.

Lanes: with one worker a trial, Ray Tune keeps as many trial processes as fit and hands
them one configuration after the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray.tune
from ray.tune.experiment import Trial as TuneTrial

from ..recipe import Objective, Recipe, Trial
from ..sweep.history import History, replay
from ..sweep.ledger import Ledger
from ..sweep.loggers import Loggers
from ..sweep.plan import PlannedTrial
from ..sweep.progress import Display
from ..sweep.rows import Report, State, Stop, TrialJob, why
from ..sweep.rungs import EarlyStopping, Entrant, Guard, Halving, milestones
from .errors import what_was_lost
from .jobs import report_of, run_trial
from .resources import Machine
from .scheduler import EarlyStoppingScheduler, JobQueue
from .storage import CHECKPOINTS, PROBLEM, Storage

DRIVER_RESOURCES = {"node:__internal_head__": 0.001}
"""What a trial that only directs its workers occupies, so that it does not take their CPUs."""


@dataclass(frozen=True)
class Jobs:
    """Makes the jobs of a sweep: what every trial is given beside its own configuration."""

    recipe: Recipe
    machine: Machine
    folder: str
    """The run folder, absolute, or its URL."""
    ray_folder: str
    """Folder or URL of Ray's own files."""
    stored: tuple[str, ...]
    """Names of the phases that read stored features."""
    rungs: tuple[int, ...] = ()
    """Epochs at which early stopping compares trials."""
    snapshots: tuple[str, ...] = ()
    """Of the data sets."""

    def of(self, trial: Trial) -> TrialJob:
        """A trial's job."""
        resources = self.recipe.resources
        return TrialJob(
            name=trial.name,
            trial=trial,
            workers=resources.workers_per_trial,
            cpus=resources.cpus_per_worker,
            gpus=self.machine.gpus_per_worker(self.recipe),
            folder=self.folder,
            ray_folder=self.ray_folder,
            objective=self.recipe.objective,
            rungs=self.rungs,
            features=self.recipe.features,
            stored=self.stored,
            snapshots=self.snapshots,
            checkpoint_minutes=trial.train.checkpoint_every_minutes,
            max_failures=resources.max_failures,
        )


def run_trials(
    jobs: Jobs,
    planned: Sequence[PlannedTrial],
    ledger: Ledger,
    display: Display,
    history: History,
    loggers: Loggers,
) -> None:
    """Every trial that has not ended through Ray Tune.

    Raises:
        RunFolderError: the run folder cannot be written to any more.
    """
    rule = early_stopping(jobs.recipe, planned, jobs.rungs)
    recorder = _Recorder(ledger, display, rule, Storage(jobs.folder), history, loggers, jobs.recipe.objective)
    names = history.unfinished([one.name for one in in_order(planned)])
    waiting = [name for name in names if name not in recorder.replayed]
    texts = {one.name: jobs.of(one.trial).model_dump_json() for one in planned}
    if not waiting:
        return
    try:
        _tuner(jobs, waiting, texts, rule, recorder).fit()
    except Exception:
        if recorder.fault is not None:
            raise recorder.fault from None
        raise


def _tuner(
    jobs: Jobs, waiting: Sequence[str], texts: dict[str, str], rule: EarlyStopping | None, recorder: _Recorder
) -> ray.tune.Tuner:
    """Ray Tune over the trials that wait, each a job as JSON in `texts`."""
    recipe, machine = jobs.recipe, jobs.machine
    nested = recipe.resources.workers_per_trial > 1
    cpus, gpus = float(recipe.resources.cpus_per_worker), machine.gpus_per_worker(recipe)
    need = DRIVER_RESOURCES if nested else {"CPU": cpus, "GPU": gpus}
    return ray.tune.Tuner(
        ray.tune.with_resources(
            ray.tune.with_parameters(run_trial, jobs=texts), ray.tune.PlacementGroupFactory([need])
        ),
        tune_config=ray.tune.TuneConfig(
            search_alg=JobQueue(waiting, rule, recorder.leave_out),
            num_samples=len(waiting),
            scheduler=None if rule is None else EarlyStoppingScheduler(rule),
            max_concurrent_trials=machine.lanes(recipe),
            reuse_actors=not nested,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=ray.tune.RunConfig(
            name=f"trials-{uuid4().hex[:8]}",
            storage_path=jobs.ray_folder,
            verbose=0,
            callbacks=[recorder],
            failure_config=ray.tune.FailureConfig(max_failures=recipe.resources.max_failures),
        ),
    )


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


def _name(tune_trial: TuneTrial) -> str:
    return str(tune_trial.config["job"])


class _Recorder(ray.tune.Callback):
    """Writes every row that reaches the driver, and tells the display.

    Args:
        ledger: where rows are written.
        display: what is told.
        rule: early stopping; it is told the rows of the history.
        storage: of the run folder.
        history: what was recorded before.
        loggers: new rows are sent there too.
        objective: what is raced by.
    """

    def __init__(
        self,
        ledger: Ledger,
        display: Display,
        rule: EarlyStopping | None,
        storage: Storage,
        history: History,
        loggers: Loggers,
        objective: Objective = "accuracy",
    ) -> None:
        self.loggers, self.objective = loggers, objective
        self.ledger, self.display, self.rule, self.storage = ledger, display, rule, storage
        self.rows = history.recorded()
        """The last row of each trial."""
        self.problems: dict[str, Report] = {}
        self.failures: Counter[str] = Counter()
        self.broken: list[TuneTrial] = []
        self.warnings: set[str] = set()
        self.fault: OSError | None = None
        """Why nothing can be written any more."""
        for name, state in history.ended.items():
            self.display.resume(name, state)
        for row in history.rows:
            self.display.row(row)
        endings = replay(history, rule)
        self.replayed = {one.trial for one in endings}
        for one in endings:
            self._ended(one.trial, one.stop)

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks with the experiment; the ledger is what a run is read from."""
        return {}

    def leave_out(self, name: str) -> None:
        """A trial is not started, as early stopping has decided of it."""
        self._end(name, "dropped", stop=self.rule.stopped[name] if self.rule else None)

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        if not self.failures[str(trial)]:
            self._write(str(trial), "running")
        self.display.start(str(trial))

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        report = report_of(result)
        if report.warning and report.warning not in self.warnings:
            self.warnings.add(report.warning)
            self.display.say(f"warning: {report.warning}")
        if report.problem is not None:
            self.problems[str(trial)] = report
        row = report.row
        before = None if row is None else self.rows.get(row.trial)
        if row is not None and (before is None or row.epoch > before.epoch):
            self.rows[row.trial] = row.model_copy(update={"evidence": None})
            with self._noting_faults():
                self.ledger.epoch(row)
            self.display.row(row)
            self.loggers.row(row)

    def on_trial_recover(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        name = str(trial)
        self.failures[name] += 1
        why = what_was_lost(_last_error(trial))
        self._write(name, "running", error=why, failures=self.failures[name])
        self.display.recover(name, why, self.failures[name])

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        name = str(trial)
        problem = self.problems.get(name)
        if problem is not None:
            self._end(name, "failed", error=problem.problem, diverged=problem.diverged or None)
        else:
            self._ended(name, self.rule.stopped.get(name) if self.rule else None)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self.broken.append(trial)  # Tune stores the error after this call

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        while self.broken:
            trial = self.broken.pop()
            times = self.failures[str(trial)] + 1
            again = f", {times} times" if times > 1 else ""
            self._end(str(trial), "failed", error=what_was_lost(_last_error(trial)) + again)

    def on_experiment_end(self, trials: list[TuneTrial], **info: Any) -> None:
        self.on_step_end(0, trials)

    def _ended(self, name: str, stop: Stop | None) -> None:
        """A trial ended by itself or by early stopping."""
        row = self.rows.get(name)
        if stop is None or (row is not None and row.over):
            self._end(name, "finished", stopped_early=False)
        else:
            self._end(name, "stopped", stopped_early=True, stop=stop)

    def _end(self, name: str, state: State, **more: Any) -> None:
        epochs = self.rows[name].epoch if name in self.rows else 0
        self._write(name, state, epochs_completed=epochs, **more)
        self.loggers.end(name, state)
        self.display.end(name, state, why(more.get("stop"), self.objective) or more.get("error") or "")
        may_go_on = state == "failed" and not more.get("diverged")  # when the sweep is resumed, from its checkpoint
        with suppress(OSError):
            if may_go_on:
                self.storage.remove(f"{CHECKPOINTS}/{name}/{PROBLEM}")
            else:
                self.storage.remove_folder(f"{CHECKPOINTS}/{name}")

    def _write(self, name: str, state: State, **more: Any) -> None:
        with self._noting_faults():
            self.ledger.trial(name, state, **more)

    @contextmanager
    def _noting_faults(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.fault = error
            raise


def _last_error(trial: TuneTrial) -> str:
    """What Ray says of a trial's last failure."""
    if not trial.error_file:
        return ""
    return Path(trial.error_file).read_text(encoding="utf-8").rpartition("Failure # ")[2]
