"""Many trials: what the driver takes for a row, and what the report takes.

    python -m benchmarks.scale [--trials 1000] [--epochs 50] [--report-trials 500] [--report-epochs 100]

The first part passes the rows of 1,000 trials × 50 epochs through the driver's own code, 256 trials at a time as on
256 GPUs: the queue that hands out trials, early stopping after every row, the recorder with its ledger, the display.
The trainer is a formula, and Ray Tune's own work is not in it: rows are given to the same methods that Tune calls, in
the order in which they would come if all epochs took as long. No trial is stopped, so that every row is there.
It prints CPU time and the process's memory by tenths of the rows, and writes them by thousands.

The second part writes a run folder of 500 trials × 100 epochs and builds its report with
`python -m raysweep.report`; prints CPU-seconds and the largest memory (proportional set size, looked at five
times a second).
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
from rich.console import Console

from benchmarks.measure import timed
from raysweep.engine.jobs import REPORT
from raysweep.engine.scheduler import EarlyStoppingScheduler, JobQueue
from raysweep.engine.storage import Storage
from raysweep.engine.trials import _Recorder, early_stopping, rungs_of
from raysweep.files import write_bytes
from raysweep.recipe import Recipe, dump
from raysweep.sweep.evidence import ImagePredictions, contributions, pack, predictions_file, write_labels
from raysweep.sweep.history import History
from raysweep.sweep.ledger import Ledger
from raysweep.sweep.plan import PlannedTrial, plan
from raysweep.sweep.progress import Display
from raysweep.sweep.rows import EpochRow, Report

AT_ONCE = 256
IMAGES, CLASSES = 2_000, 10
"""Of validation."""
DEPTHS, RATES = (1, 3, 5, 7, "all"), 10
MANY_ROWS = 1_000


@dataclass
class TuneTrial:
    """What of Tune's trial the driver's code looks at."""

    name: str
    epoch: int = 0
    error_file: str = ""

    def __str__(self) -> str:
        return self.name


class Trainer:
    """A trivial trainer: curves by a formula, predictions at random with the accuracy of the last epoch."""

    def __init__(self, planned: Sequence[PlannedTrial], rungs: Sequence[int]) -> None:
        self.planned = {one.name: one for one in planned}
        self.rungs = frozenset(rungs)
        self.labels = np.random.default_rng(0).integers(0, CLASSES, IMAGES)
        self.hardness = np.random.default_rng(1).random(IMAGES)

    def predictions(self, name: str, epoch: int) -> ImagePredictions:
        """Of all validation images."""
        random = np.random.default_rng([int(name, 16), epoch])
        right = self.hardness + 0.2 * random.random(IMAGES) < self.accuracy(name, epoch)
        predicted = np.where(right, self.labels, (self.labels + 1) % CLASSES)
        sure = np.where(right, 0.9, 0.05).astype(np.float32)
        return ImagePredictions(epoch, predicted, sure, "key")

    def accuracy(self, name: str, epoch: int) -> float:
        """By depth and epoch; nearly the same for all rates, so that none is dropped."""
        return 0.6 + 0.02 * min(self.planned[name].configuration.layers, 8) - 0.2 / epoch

    def row(self, name: str, epoch: int) -> EpochRow:
        """What a trial reports of an epoch."""
        planned, accuracy = self.planned[name].configuration, self.accuracy(name, epoch)
        over = epoch == planned.epochs_planned
        evidence = None
        if over or epoch in self.rungs:
            found = self.predictions(name, epoch)
            parts = (found.predicted, found.true_probability, self.labels, CLASSES)
            evidence = pack(contributions("accuracy", *parts))
        losses = {"train_loss": 1 / epoch, "val_loss": 1.1 / epoch}
        scores = {f"{split}_{kind}": accuracy for split in ("train", "val") for kind in ("accuracy", "macro_f1")}
        return EpochRow(
            trial=name, epoch=epoch, lr_epoch=planned.lr, seconds=1.0, workers=1, device="cuda", pid=1,
            val_images=IMAGES, cached=True, over=over, evidence=evidence, **losses, **scores,
        )  # fmt: skip


def recipe_of(trials: int, epochs: int) -> Recipe:
    """So many trials: 5 depths × 10 learning rates × seeds."""
    return Recipe.model_validate(
        {
            "name": "scale",
            "data": {"dataset": "fake", "image_size": 32},
            "grid": {
                "backbone": ["small_cnn"],
                "depth": list(DEPTHS),
                "lr": np.geomspace(1e-4, 1e-1, RATES).round(6).tolist(),
                "seed": list(range(max(1, trials // (RATES * len(DEPTHS))))),
            },
            "model": {"weights": "none"},
            "train": {"epochs": epochs},
            "resources": {"max_concurrent": AT_ONCE},
            "asha": {"guard": 1e6},  # compares, and drops none
        }
    )


def rows_through(recorder: Any, scheduler: Any, queue: Any, trainer: Trainer) -> Iterator[int]:
    """Pass all rows through the driver's code, yielding their number after each."""
    waiting, running, count = True, list[TuneTrial](), 0
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            job = queue.suggest("")
            waiting = isinstance(job, dict)
            if waiting:
                running.append(TuneTrial(job["job"]))
                recorder.on_trial_start(0, [], running[-1])
        for trial in list(running):
            trial.epoch += 1
            report = Report(row=trainer.row(trial.name, trial.epoch))
            result = {REPORT: report.model_dump_json()}
            stops = scheduler.on_trial_result(None, trial, result) == scheduler.STOP
            recorder.on_trial_result(0, [], trial, result)
            if stops or (report.row and report.row.over):
                running.remove(trial)
                recorder.on_trial_complete(0, [], trial)
            count += 1
            yield count


def driver(trials: int, epochs: int) -> pd.DataFrame:
    """CPU-milliseconds a row and memory, by thousands of rows; the trainer's own time is taken off."""
    recipe = recipe_of(trials, epochs)
    started = time.process_time()
    planned = plan(recipe)
    print(f"{len(planned):,} trials planned in {time.process_time() - started:.1f} CPU-seconds", flush=True)
    rungs, lines = rungs_of(recipe), []
    trainer, process = _Timed(planned, rungs), psutil.Process()
    with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder) / "run") as ledger:
        ledger.plan([one.configuration for one in planned])
        console = Console(file=io.StringIO())
        with Display([one.configuration for one in planned], console) as display:
            rule = early_stopping(recipe, planned, rungs)
            assert rule is not None
            recorder = _Recorder(ledger, display, rule, Storage(str(ledger.folder)), History())
            queue = JobQueue([one.name for one in planned], rule, recorder.leave_out)
            before = time.process_time()
            for count in rows_through(recorder, EarlyStoppingScheduler(rule), queue, trainer):
                if count % MANY_ROWS == 0:
                    spent = time.process_time() - before - trainer.seconds
                    lines.append((count, 1000 * spent / MANY_ROWS, process.memory_info().rss / 1e6))
                    before, trainer.seconds = time.process_time(), 0.0
        size = (ledger.folder / "epochs.jsonl").stat().st_size / 1e6
        print(f"epochs.jsonl: {size:.0f} MB", flush=True)
    return pd.DataFrame(lines, columns=["rows", "CPU ms a row", "memory (MB)"])


class _Timed(Trainer):
    """Knows how long its formulas took."""

    seconds = 0.0

    def row(self, name: str, epoch: int) -> EpochRow:
        """See `Trainer`."""
        started = time.process_time()
        row = super().row(name, epoch)
        self.seconds += time.process_time() - started
        return row


def report(trials: int, epochs: int) -> tuple[float, float]:
    """CPU-seconds and megabytes of `python -m raysweep.report` on a run folder of so many trials and epochs."""
    recipe = recipe_of(trials, epochs)
    planned = plan(recipe)
    trainer = Trainer(planned, rungs_of(recipe))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        with Ledger(folder) as ledger:
            ledger.describe({"recipe": dump(recipe), "versions": {}, "host": {}, "command": "", "started": ""})
            ledger.plan([one.configuration for one in planned])
            write_labels(folder, trainer.labels, CLASSES, "key")
            for one in planned:
                ledger.trial(one.name, "running")
                for epoch in range(1, epochs + 1):
                    ledger.epoch(trainer.row(one.name, epoch))
                ledger.trial(one.name, "finished", epochs_completed=epochs, stopped_early=False)
                name, content = predictions_file(one.name, trainer.predictions(one.name, epochs))
                write_bytes(folder / name, content)
        used = timed([sys.executable, "-m", "raysweep.report", str(folder)], memory=True)
    return used.cpu_s, 1000 * used.peak_gb


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--report-trials", type=int, default=500)
    parser.add_argument("--report-epochs", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    if given.report_trials:
        seconds, megabytes = report(given.report_trials, given.report_epochs)
        shown = f"{given.report_trials} trials × {given.report_epochs} epochs"
        print(f"report of {shown}: {seconds:.1f} CPU-seconds, {megabytes:.0f} MB", flush=True)
    if given.trials:
        table = driver(given.trials, given.epochs)
        given.out.mkdir(parents=True, exist_ok=True)
        table.to_csv(given.out / "scale.csv", index=False)
        tenths = pd.cut(table["rows"], 10, labels=[f"{10 * i} to {10 * i + 10} %" for i in range(10)])
        print(table.groupby(tenths.rename("of all rows"), observed=True).mean().to_string(float_format="{:.2f}".format))


if __name__ == "__main__":
    main()
