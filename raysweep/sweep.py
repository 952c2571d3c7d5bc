"""The stages of a sweep on Ray: trials, then the final fit, every row into the ledger.

Lanes: with one worker a trial, Ray Tune keeps as many trial processes as fit and hands
them one configuration after the other. A sweep that is interrupted keeps its rows.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.update(
    {
        # read when Ray is imported: our ledger replaces Tune's loggers, our handler its Ctrl-C; relative paths stay
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    }
)

import ray
import ray.tune
from ray.tune.experiment import Trial as TuneTrial

from analysis import statistics, tables
from raysweep import assembly, audit, caching, final, ledger, precompute, trial
from raysweep.audit import Findings
from raysweep.datasets import Dataset
from raysweep.ledger import Ledger
from raysweep.phases import kept_epoch, shorten
from raysweep.plan import Planned, extra_axes
from raysweep.progress import Display
from raysweep.recipe import Recipe, RecipeError, dump
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
MOST_FINAL_WORKERS = 8
DRIVER_RESOURCES = {"node:__internal_head__": 0.001}
"""What a trial that only directs its workers occupies, so that it does not take their CPUs."""


@dataclass(frozen=True)
class Machine:
    """What a trial may occupy."""

    cpus: int
    gpus: int

    def gpus_per_worker(self, recipe: Recipe) -> float:
        """GPUs of one worker, `auto` resolved."""
        asked = recipe.resources.gpus_per_worker
        return float(min(1, self.gpus)) if asked == "auto" else float(asked)

    def check(self, recipe: Recipe) -> None:
        """Raise RecipeError if a trial, or the final fit, can never be placed."""
        asked, gpus = recipe.resources, self.gpus_per_worker(recipe)
        if asked.workers_per_trial > 1 and 0 < gpus < 1:
            raise RecipeError(
                f"resources.gpus_per_worker={gpus:g} with workers_per_trial={asked.workers_per_trial}: workers that "
                "train together cannot share a GPU; use workers_per_trial=1, or a whole GPU a worker"
            )
        for field, workers in (
            ("resources.workers_per_trial", asked.workers_per_trial),
            ("final.workers", recipe.final.workers),
        ):
            need = (workers or 1) * asked.cpus_per_worker
            if need > self.cpus:
                raise RecipeError(
                    f"{field}={workers} with resources.cpus_per_worker={asked.cpus_per_worker} needs {need} CPUs, but "
                    f"there are {self.cpus}; ask for fewer, or run on a cluster with --address"
                )
            if (workers or 1) * gpus > self.gpus:
                raise RecipeError(
                    f"{field}={workers} with resources.gpus_per_worker={gpus:g} needs {(workers or 1) * gpus:g} GPUs, "
                    f"but there are {self.gpus}; ask for fewer, or set resources.gpus_per_worker=0"
                )

    def lanes(self, recipe: Recipe) -> int:
        """How many trials run at a time."""
        asked, gpus = recipe.resources, self.gpus_per_worker(recipe)
        fit = self.cpus // (asked.workers_per_trial * asked.cpus_per_worker)
        if gpus:
            fit = min(fit, int(self.gpus / (asked.workers_per_trial * gpus)))
        return max(1, min(fit, asked.max_concurrent or fit))

    def final_workers(self, recipe: Recipe) -> int:
        """Ranks of the final fit."""
        if recipe.final.workers:
            return recipe.final.workers
        gpus = self.gpus_per_worker(recipe)
        by_cpu = self.cpus // recipe.resources.cpus_per_worker
        return max(1, min(MOST_FINAL_WORKERS, int(self.gpus // max(1, gpus)) if gpus else by_cpu, by_cpu))


@dataclass(frozen=True)
class Outcome:
    """How a sweep ended."""

    folder: Path
    interrupted: bool = False
    problem: str = ""
    """Why there is no final model, if something went wrong."""


def this_machine() -> Machine:
    """CPUs and GPUs that this process may use."""
    import torch

    return Machine(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
                   torch.cuda.device_count())  # fmt: skip


def run(recipe: Recipe, planned: Sequence[Planned], folder: Path, command: str, address: str | None = None) -> Outcome:
    """Run a sweep into its folder.

    Args:
        recipe: the sweep.
        planned: its trials (see `plan.plan`).
        folder: the run folder, new or empty.
        command: the command line, for the record.
        address: of a Ray cluster; a local one is started when None.

    Raises:
        RecipeError: the machine cannot place a trial.
        RunFolderError: the folder is in use or holds a run.
    """
    if address is None:
        this_machine().check(recipe)
    dataset, findings = _examine(planned)
    axes = extra_axes(recipe)
    columns = [one.columns(axes) for one in planned]
    with Ledger(folder) as book, Display(columns) as display:
        book.describe(about(recipe, command))
        for row in columns:
            book.trial(state="planned", **row)
        display.say(f"{len(planned)} trials → {folder}")
        audit.write(folder, findings, dataset)
        try:
            with (
                _features_while(recipe, planned, folder, display, address) as stored,
                cluster(recipe, folder, address) as machine,
            ):
                machine.check(recipe)
                given = _Given(recipe, machine, folder, stored(machine), list(findings.duplicated_test))
                assembly.forget()
                _run_trials(recipe, planned, machine, _Recorder(book, display, columns), given)
                problem = _run_final(recipe, planned, machine, given, display)
        except KeyboardInterrupt:
            for name in display.running:
                book.trial(name, "interrupted", epochs_completed=display.last.get(name, {}).get("epoch", 0))
            return Outcome(folder, interrupted=True)
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


@contextmanager
def cluster(recipe: Recipe, folder: Path, address: str | None) -> Iterator[Machine]:
    """Ray, local or at an address, and what it has; its logs are kept in the run folder."""
    nested = recipe.resources.workers_per_trial > 1
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        here = this_machine()
        # without the dashboard a stopped trial would keep the resources of its workers
        with _uninterrupted():
            ray.init("local", num_cpus=here.cpus, num_gpus=here.gpus, include_dashboard=nested, **quiet)
    else:
        ray.init(address, **quiet)
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # a failed trial's error is in its row
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())  # type: ignore[attr-defined]
    try:
        total = ray.cluster_resources()
        yield Machine(int(total.get("CPU", 0)), int(total.get("GPU", 0)))
    finally:
        ray.shutdown()
        if address is None:
            with suppress(OSError, shutil.Error):
                shutil.copytree(logs, folder / "ray" / "logs", dirs_exist_ok=True, ignore_dangling_symlinks=True)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let Ray start to its end although Ctrl-C is pressed, then stop it: half started, it would leave processes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: asked.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        ray.shutdown()
        raise KeyboardInterrupt


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
    stored: frozenset[str]
    """Names of the phases that read stored features."""
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
            "stored": sorted({phase.name for phase in one.config.phases()} & self.stored),
        }


@contextmanager
def _features_while(
    recipe: Recipe, planned: Sequence[Planned], folder: Path, display: Display, address: str | None
) -> Iterator[Callable[[Machine], frozenset[str]]]:
    """Compute what the trials share: on a machine without GPUs at once, while Ray starts.

    Yields a function that waits for it and returns the names of the trials that read it.
    """
    here = this_machine()
    if address is not None or here.gpus_per_worker(recipe):
        yield lambda machine: _make_features(
            recipe,
            planned,
            folder,
            display,
            machine.lanes(recipe),
            machine.gpus_per_worker(recipe),
            address is not None,
        )
        return
    with ThreadPoolExecutor(1) as side:
        stop = threading.Event()
        future = side.submit(_make_features, recipe, planned, folder, display, here.lanes(recipe), None, stop=stop)
        try:
            yield lambda machine: future.result()
        finally:
            stop.set()


def _make_features(
    recipe: Recipe,
    planned: Sequence[Planned],
    folder: Path,
    display: Display,
    lanes: int,
    gpus: float | None,
    everywhere: bool = False,
    stop: threading.Event | None = None,
) -> frozenset[str]:
    """Decide what to store and make it; returns the names of the trials that read it."""
    decisions = caching.decide(planned, recipe)
    made = precompute.make(planned, decisions, recipe, lanes, gpus, display, everywhere, stop)
    for one in made:
        if one.problem:
            display.say(f"warning: {one.problem}; its trials compute the frozen prefix themselves")
        elif one.images:
            display.say(
                f"features: {one.backbone}, {one.cuts} cuts of {one.images:,} images "
                f"in {one.seconds:.1f} s, {one.mebibytes:,.0f} MiB"
            )
    ledger.write_text(folder / "features.json", json.dumps(precompute.record(decisions, made), indent=1))
    failed = {one.backbone for one in made if one.problem}
    return frozenset(name for one in decisions if one.store and one.backbone not in failed for name in one.phases)


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


def _to_final(given: _Given, chosen: Planned, epochs: int) -> dict[str, Any]:
    """What the final fit is given: the chosen trial for so many epochs, reading the same features."""
    trial = shorten(chosen.config, epochs)
    config = given.to(chosen) | {"trial": trial.model_dump(mode="json")}
    pairs = zip(chosen.config.phases(), trial.phases(), strict=False)
    config["stored"] = [short.name for whole, short in pairs if whole.name in given.stored]
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
    rows = tables.trials_table(ledger.read(folder))
    best = statistics.best_configuration(rows) if len(rows) else None
    if best is None:
        return "no trial came to a result"
    if not recipe.final.enabled:
        return ""
    chosen = next(one for one in planned if one.trial == best["trial"])
    epochs = kept_epoch(
        [row for row in ledger.read(folder).epochs if row["trial"] == chosen.trial], chosen.config.train.keep
    )
    try:
        workers = machine.final_workers(recipe)
        name = f"{chosen.backbone} depth {chosen.depth_label}"
        display.say(f"final fit: {name}, {epochs} epochs on train + val, {workers} workers")
        result, model = final.refit(_to_final(given, chosen, epochs), workers, given.storage)
    except Exception as error:  # the sweep's own results must not be lost to whatever went wrong here
        return f"the final fit failed: {last_line(error) or type(error).__name__}"
    keys = ("trial", "backbone", "depth", "depth_label", "layers", "lr", "seed")
    columns = chosen.columns()
    facts = {key: columns[key] for key in keys} | {"epochs": epochs}
    shutil.copytree(model, folder / "final", dirs_exist_ok=True)
    ledger.write_text(
        folder / "final" / "result.json", json.dumps(facts | {name: result[name] for name in final.RESULT}, indent=2)
    )
    shutil.rmtree(model, ignore_errors=True)
    return ""
