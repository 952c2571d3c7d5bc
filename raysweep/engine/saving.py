"""What a trial leaves in the run folder: its checkpoints, and its predictions at the epoch it counts with.

A checkpoint is written before the epoch's row is reported, and holds the last rows. A trial
whose process was lost reports them again, and the sweep takes each epoch once: no row is
lost and none is doubled.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..sweep.evidence import ImagePredictions, contributions, pack, predictions_file
from ..sweep.rows import EpochRow, TrialJob
from ..train import checkpoint
from ..train.checkpoint import Checkpoint
from .storage import CHECKPOINTS, Storage

if TYPE_CHECKING:
    from ..train.ddp import World
    from ..train.measures import Measures
    from ..train.metrics import Predictions
    from ..train.phases import Fit

STOP = ".stop"
"""File of a run folder: while it is there, trials save their state once more."""
ROWS_KEPT = 8
"""Rows in a checkpoint: more than can be on their way to the sweep."""
LOOK_S = 0.25
"""Between looks at whether a checkpoint within an epoch is due."""
STEPS_BETWEEN_LOOKS = 50
"""Of ranks that train together: they must come to the same answer, which costs an exchange."""


SAVE_S = 10.0
"""How long trials may take to save their state when the sweep is stopped."""


def save_running(folder: str, recorded: Mapping[str, int]) -> None:
    """Have the running trials save their state, and wait until they have, for a while.

    Args:
        folder: the run folder; nothing is done for one in an object store, whose trials have saved
            their last epoch.
        recorded: the last epoch of each running trial that the sweep has the row of.
    """
    if not Storage(folder).is_local:
        return
    flag = Path(folder, STOP)
    try:
        flag.write_bytes(b"")
        since, deadline = flag.stat().st_mtime_ns, time.monotonic() + SAVE_S
        waiting = dict(recorded)
        while waiting and time.monotonic() < deadline:
            time.sleep(0.05)
            waiting = {name: epoch for name, epoch in waiting.items() if not _has_saved(folder, name, epoch, since)}
    except OSError:  # there is no room: the trials have what they saved before
        return
    finally:
        with suppress(OSError):
            flag.unlink(missing_ok=True)


def _has_saved(folder: str, trial: str, epoch: int, since: int) -> bool:
    """Whether a trial has saved its state since a moment, or waits with a row that the sweep will not ask for."""
    paths = sorted(Path(folder, CHECKPOINTS, trial).glob("*.json"))
    if not paths:
        return False
    try:
        rows = json.loads(json.loads(paths[-1].read_bytes())["facts"])["rows"]
        return paths[-1].stat().st_mtime_ns > since or bool(rows and rows[-1]["epoch"] > epoch)
    except (OSError, ValueError, KeyError):
        return False


class CountedPredictions:
    """A trial's predictions at the epoch that it counts with, in its run folder and in its rows."""

    def __init__(self, job: TrialJob, storage: Storage, classes: int, val_key: str) -> None:
        self.job, self.storage, self.classes, self.val_key = job, storage, classes, val_key
        self.best_loss = math.inf
        self.labels = np.empty(0)
        self.found: ImagePredictions | None = None

    def see(self, measures: Measures, predictions: Predictions | None) -> None:
        """Take note of an epoch."""
        loss = math.inf if measures.val_loss is None else measures.val_loss
        if predictions is None or (self.job.trial.train.keep == "best_loss" and loss >= self.best_loss):
            return
        self.best_loss, self.labels = loss, predictions.labels.numpy()
        probability = predictions.true_probability.numpy().astype(np.float32)
        self.found = ImagePredictions(measures.epoch, predictions.predicted.numpy(), probability, self.val_key)
        self.storage.write(*predictions_file(self.job.name, self.found))

    def packed(self) -> str | None:
        """What the images contribute to the objective, as text."""
        if self.found is None:
            return None
        predicted, probability = self.found.predicted, self.found.true_probability
        return pack(contributions(self.job.objective, predicted, probability, self.labels, self.classes))

    def state(self) -> Checkpoint:
        """What `restore` needs."""
        if self.found is None:
            return Checkpoint({}, {})
        arrays = (self.labels, self.found.predicted, self.found.true_probability)
        names = ("labels", "predicted", "true_probability")
        tensors = {f"counted/{name}": torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}
        return Checkpoint(tensors, {"counted_epoch": self.found.epoch, "best_loss": self.best_loss})

    def restore(self, saved: Checkpoint) -> None:
        """Go on from where `state` was called."""
        if "counted_epoch" not in saved.facts:
            return
        arrays = {name: tensor.numpy() for name, tensor in saved.below("counted").items()}
        self.best_loss, self.labels = saved.facts["best_loss"], arrays["labels"]
        self.found = ImagePredictions(
            saved.facts["counted_epoch"], arrays["predicted"], arrays["true_probability"], self.val_key
        )


class Saver:
    """The checkpoints of a trial.

    Args:
        job: the trial's.
        world: the ranks that train it; rank 0 writes.
        counted: its predictions; None in a final fit.
    """

    def __init__(self, job: TrialJob, world: World, counted: CountedPredictions | None = None) -> None:
        self.job, self.world, self.counted = job, world, counted
        self.storage = Storage(job.folder)
        self.files = self.storage.below(f"{CHECKPOINTS}/{job.name}")
        self.rows: deque[EpochRow] = deque(maxlen=ROWS_KEPT)
        self.warning: str | None = None
        """Why the last checkpoint could not be written, until it is told."""
        self._steps = 0
        self._written = self._looked = time.monotonic()
        self._stopping = self._asked_to_stop()

    def read(self) -> Checkpoint | None:
        """The trial's newest checkpoint, with its rows and predictions taken from it."""
        saved = checkpoint.read(self.files, self.world)
        if saved is not None:
            self.rows.extend(EpochRow.model_validate(row) for row in saved.facts["rows"])
            if self.counted is not None:
                self.counted.restore(saved)
        return saved

    def due(self) -> bool:
        """Whether to save within an epoch: time has passed, or the sweep is being stopped."""
        self._steps += 1
        if self.world.size == 1:
            return self._is_due()
        if self._steps % STEPS_BETWEEN_LOOKS:
            return False
        own = self.world.rank == 0 and self._is_due()
        return bool(self.world.sum(torch.tensor(int(own))))

    def _is_due(self) -> bool:
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return False
        self._looked = now
        if not self._stopping and self._asked_to_stop():
            self._stopping = True
            return True
        return now - self._written > 60 * self.job.checkpoint_minutes

    def _asked_to_stop(self) -> bool:
        return self.storage.is_local and (Path(self.job.folder) / STOP).exists()

    def keep(self, state: Checkpoint) -> None:
        """Write a checkpoint. Where there is no room the trial goes on without."""
        self._written = time.monotonic()
        if self.world.rank:
            return
        counted = Checkpoint({}, {}) if self.counted is None else self.counted.state()
        rows = [row.model_dump(mode="json") for row in self.rows]
        whole = Checkpoint({**state.tensors, **counted.tensors}, {**state.facts, **counted.facts, "rows": rows})
        try:
            checkpoint.write(self.files, whole)
        except OSError as error:
            reason = error.strerror or str(error)
            self.warning = f"a checkpoint could not be written ({reason}): if its process is lost, a trial begins anew"

    def take(self, fit: Fit, measures: Measures, evidence: str | None = None) -> EpochRow:
        """The row of an epoch that a fit has just trained, saved with the fit's state."""
        row = EpochRow(
            **dict(measures),
            trial=self.job.name,
            workers=self.world.size,
            device=self.world.device.type,
            pid=os.getpid(),
            over=fit.is_over,
            evidence=evidence,
        )
        self.rows.append(row)
        if fit.can_be_saved:
            self.keep(fit.state())
        return row

    def told(self) -> dict[str, Any]:
        """Fields of `Report` that are to be told once."""
        warning, self.warning = self.warning, None
        return {"warning": warning}
