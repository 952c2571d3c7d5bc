"""The stages of a sweep on Ray: trials, then the final fit, every row into the ledger.

Lanes: with one worker a trial, Ray Tune keeps as many trial processes as fit and hands
them one configuration after the other. A sweep that is interrupted keeps its rows.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray
import ray.tune
from ray.tune.experiment import Trial as TuneTrial

from analysis import statistics, tables
from raysweep import assembly, audit, caching, final, ledger, precompute, trial
from raysweep.audit import Findings
from raysweep.cluster import Cluster, Machine
from raysweep.datasets import Dataset
from raysweep.ledger import Ledger
from raysweep.phases import kept, shorten
from raysweep.plan import Planned, extra_axes
from raysweep.progress import Display
from raysweep.recipe import Recipe, Trial, dump
from raysweep.scheduler import StratifiedAsha

REPORTED = (
    "epoch",
    "phase",
    "val_images",
    "cached",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "seconds",
    "lr_epoch",
    "device",
    "pid",
)
SOMETIMES = ("shared", "val_by_step")
PACKAGES = ("raysweep", "torch", "torchvision", "timm", "ray", "numpy", "pandas")
DRIVER_RESOURCES = {"node:__internal_head__": 0.001}
"""What a trial that only directs its workers occupies, so that it does not take their CPUs."""


@dataclass(frozen=True)
class Outcome:
    """How a sweep ended."""

    folder: Path
    interrupted: bool = False
    problem: str = ""
    """Why there is no final model, if something went wrong."""


def run(recipe: Recipe, planned: Sequence[Planned], folder: Path, command: str, where: Cluster) -> Outcome:
    """Run a sweep into its folder.

    Args:
        recipe: the sweep.
        planned: its trials (see `plan.plan`).
        folder: the run folder, new or empty.
        command: the command line, for the record.
        where: it runs; Ray is told to stop at the end.

    Raises:
        RecipeError: a trial that can never be placed, or no cluster.
        RunFolderError: the folder is in use or holds a run.
    """
    machine = where.machine()
    machine.check(recipe)
    dataset, findings = _examine(planned)
    axes = extra_axes(recipe)
    columns = [one.columns(axes) for one in planned]
    with Ledger(folder) as book, Display(columns) as display:
        book.describe(about(recipe, command))
        for row in columns:
            book.trial(state="planned", **row)
        display.say(f"{len(planned)} trials → {folder}")

        def make(stop: threading.Event) -> list[str]:
            stored = _make_features(recipe, planned, folder, display, where, stop)
            audit.write(folder, findings, dataset)  # draws: not where Ctrl-C could cut an import of matplotlib in two
            import_module("analysis.report")  # takes a second, which nobody waits for now
            return stored

        try:
            with _beside(make, first=where.makes_features()) as stored:
                given = _Given(recipe, machine, folder, stored, list(findings.duplicated_test))
                where.wait()
                _run_trials(recipe, planned, machine, _Recorder(book, display, columns), given)
            problem = _run_final(recipe, planned, machine, given, display)
        except KeyboardInterrupt:
            for name in display.running:
                book.trial(name, "interrupted", epochs_completed=display.last.get(name, {}).get("epoch", 0))
            return Outcome(folder, interrupted=True)
        finally:
            where.stop(folder)
    return Outcome(folder, problem=problem)


def _examine(planned: Sequence[Planned]) -> tuple[Dataset, Findings]:
    """Read the data and every pretrained network before anything starts, so that a mistake costs nothing.

    Raises:
        RecipeError: data that cannot be read, splits that are the same images, weights that are not there.
    """
    for config in {(one.backbone, one.config.model): one.config for one in planned}.values():
        base = assembly.base_of(config)
    findings = audit.audit(base.dataset)
    audit.refuse_overlap(base.dataset, findings)
    return base.dataset, findings


def about(recipe: Recipe, command: str) -> dict[str, Any]:
    """What recipe.yaml holds."""
    return {
        "recipe": dump(recipe),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "host": {"name": socket.gethostname(), "system": platform.platform(), "cpus": os.cpu_count()},
        "command": command,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


class _Recorder(ray.tune.Callback):
    """Writes every row that reaches the driver, and tells the display."""

    def __init__(self, book: Ledger, display: Display, columns: Sequence[dict[str, Any]]) -> None:
        self.book, self.display = book, display
        self.columns = {row["trial"]: {key: row[key] for key in row if key != "axes"} for row in columns}
        self.epochs: dict[str, int] = {}
        self.broken: list[TuneTrial] = []
        self.scheduler: StratifiedAsha | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks with the experiment; the ledger is what a run is read from."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self.book.trial(str(trial), "running")
        self.display.start(str(trial))

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        name = str(trial)
        if result["epoch"] <= self.epochs.get(name, 0):
            return
        self.epochs[name] = result["epoch"]
        reported = {key: result[key] for key in (*REPORTED, *SOMETIMES) if key in result}
        row = self.columns[name] | reported
        self.book.epoch(row | {"workers": trial.config["given"]["workers"], "time": time.time()})
        self.display.row(name, row)

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        name = str(trial)
        stopped = self.scheduler is not None and name in self.scheduler.stopped
        self._end(name, "stopped" if stopped else "finished", stopped_early=stopped)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self.broken.append(trial)  # Tune stores the error after this call

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        while self.broken:
            one = self.broken.pop()
            text = Path(one.error_file).read_text(encoding="utf-8") if one.error_file else ""
            self._end(str(one), "failed", error=last_line(text) or "the trial's process ended")

    def on_experiment_end(self, trials: list[TuneTrial], **info: Any) -> None:
        self.on_step_end(0, trials)

    def _end(self, name: str, state: ledger.State, **more: Any) -> None:
        self.book.trial(name, state, epochs_completed=self.epochs.get(name, 0), **more)
        self.display.end(name, state, more.get("error", ""))


@dataclass(frozen=True)
class _Given:
    """What every trial is given beside its own configuration (see `trial.run`)."""

    recipe: Recipe
    machine: Machine
    folder: Path
    stored: list[str] | None
    """Names of the phases that read stored features; None while they are made."""
    duplicated_test: list[int]
    """Positions of test images that have a copy in train or val."""

    @property
    def storage(self) -> Path:
        return (self.folder / "ray").resolve()

    def to(self, one: Planned) -> dict[str, Any]:
        resources = self.recipe.resources
        return {
            "name": one.trial,
            "trial": one.config.model_dump(mode="json"),
            "workers": resources.workers_per_trial,
            "cpus": resources.cpus_per_worker,
            "gpus": self.machine.gpus_per_worker(self.recipe),
            "storage": str(self.storage),
            "duplicated_test": self.duplicated_test,
            "features": self.recipe.features.model_dump(mode="json"),
            "stored": self.stored,
            "stored_later": str((self.folder / ledger.FEATURES).resolve()),
        }


@contextmanager
def _beside(make: Callable[[threading.Event], list[str]], first: bool) -> Iterator[list[str] | None]:
    """Make features before the block (`first`), yielding what it returns, or in a thread beside it, yielding None.

    The event is set when the block ends.
    """
    stop = threading.Event()
    if first:
        yield make(stop)
        return
    with ThreadPoolExecutor(1) as side:
        made = side.submit(make, stop)
        try:
            yield None
            made.result()
        finally:
            stop.set()


def _make_features(
    recipe: Recipe, planned: Sequence[Planned], folder: Path, display: Display, where: Cluster, stop: threading.Event
) -> list[str]:
    """Decide what to store, make it and write that down; returns the names of the phases that read it."""
    path = folder / ledger.FEATURES
    try:
        decisions = caching.decide(planned, recipe)
        made = precompute.make(planned, decisions, recipe, where, display, stop)
    except BaseException as error:
        ledger.write_text(path, json.dumps(precompute.failure(error)))
        raise
    for one in made:
        if one.problem:
            display.say(f"warning: {one.problem}; its trials compute the frozen prefix themselves")
        elif one.images:
            display.say(
                f"features: {one.backbone}, {one.cuts} cuts of {one.images:,} images "
                f"in {one.seconds:.1f} s, {one.mebibytes:,.0f} MiB"
            )
    assembly.forget()
    record = precompute.record(decisions, made)
    ledger.write_text(path, json.dumps(record, indent=1))
    return record["stored"]


def _run_trials(
    recipe: Recipe, planned: Sequence[Planned], machine: Machine, recorder: _Recorder, given: _Given
) -> None:
    """Every trial through Ray Tune, the costliest first so that no lane is left with it at the end."""
    asked, gpus = recipe.resources, machine.gpus_per_worker(recipe)
    configs = [given.to(one) for one in sorted(planned, key=lambda one: -one.layers)]
    nested = asked.workers_per_trial > 1
    need = DRIVER_RESOURCES if nested else {"CPU": float(asked.cpus_per_worker), "GPU": gpus}
    recorder.scheduler = _scheduler(recipe, planned)
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(trial.run, ray.tune.PlacementGroupFactory([need])),
        param_space={"given": ray.tune.grid_search(configs)},
        tune_config=ray.tune.TuneConfig(
            scheduler=recorder.scheduler,
            max_concurrent_trials=machine.lanes(recipe),
            reuse_actors=not nested,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=ray.tune.RunConfig(name="trials", storage_path=str(given.storage), verbose=0, callbacks=[recorder]),
    )
    tuner.fit()


def _name(tune_trial: TuneTrial) -> str:
    return tune_trial.config["given"]["name"]


def _to_final(given: _Given, chosen: Planned, short: Trial) -> dict[str, Any]:
    """What the final fit is given: the chosen trial for as many epochs as it counts with, reading the same features."""
    config = given.to(chosen) | {"trial": short.model_dump(mode="json")}
    stored = trial.stored_phases(config)
    pairs = zip(chosen.config.phases(), short.phases(), strict=False)
    config["stored"] = [brief.name for whole, brief in pairs if whole.name in stored]
    config["gpus"] = max(1.0, config["gpus"]) if config["gpus"] else 0.0  # ranks cannot share a GPU
    return config


def last_line(error: Exception | str) -> str:
    """What an error says, without the traceback that Ray puts before it and the module that the error is from."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return re.sub(r"^(\w+\.)*(\w+Error: )", r"\2", lines[-1]) if lines else ""


def _scheduler(recipe: Recipe, planned: Sequence[Planned]) -> StratifiedAsha | None:
    if recipe.asha is None:
        return None
    configs = {one.trial: one.config for one in planned}
    within = recipe.asha.compare_within

    def stratum(tune_trial: TuneTrial) -> Hashable:
        config = configs[_name(tune_trial)]
        fields = {**config.data.model_dump(), **config.model.model_dump(), **config.train.model_dump(), **dict(config)}
        return json.dumps([fields[axis] for axis in within], default=str)

    return StratifiedAsha(
        recipe.asha,
        stratum,
        epochs=lambda tune_trial: configs[_name(tune_trial)].epochs,
        most_epochs=max(config.epochs for config in configs.values()),
    )


def _run_final(recipe: Recipe, planned: Sequence[Planned], machine: Machine, given: _Given, display: Display) -> str:
    """Refit the best configuration; returns why that could not be done, or nothing."""
    folder = given.folder
    run = ledger.read(folder)
    trials = tables.trials_table(run)
    best = statistics.best_configuration(trials) if len(trials) else None
    if best is None:
        return "no trial came to a result"
    if not recipe.final.enabled:
        return ""
    chosen = next(one for one in planned if one.trial == best["trial"])
    rows = [row for row in run.epochs if row["trial"] == chosen.trial]
    short = shorten(chosen.config, kept(rows, chosen.config.train.keep))
    try:
        workers = machine.final_workers(recipe)
        name = f"{chosen.backbone} depth {chosen.depth_label}"
        display.say(f"final fit: {name}, {short.epochs} epochs on train + val, {workers} workers")
        result, model = final.refit(_to_final(given, chosen, short), workers, given.storage)
    except Exception as error:  # the sweep's own results must not be lost to whatever went wrong here
        return f"the final fit failed: {last_line(error) or type(error).__name__}"
    keys = ("trial", "backbone", "depth", "depth_label", "layers", "lr", "seed")
    columns = chosen.columns()
    facts = {key: columns[key] for key in keys} | {"epochs": short.epochs}
    shutil.copytree(model, folder / "final", dirs_exist_ok=True)
    ledger.write_text(
        folder / "final" / "result.json", json.dumps(facts | {name: result[name] for name in final.RESULT}, indent=2)
    )
    shutil.rmtree(model, ignore_errors=True)
    return ""
