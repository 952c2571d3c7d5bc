"""What crosses the borders of a sweep: a trial's job, and the rows that come of it.

Everything here is frozen and carries a schema version. The run folder holds the same as
JSON (see `raysweep.sweep.ledger`); the first edition's rows carry no version. Nothing here
needs torch or Ray.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from ..recipe import Depth, Features, Frozen, Objective, Trial
from ..train.measures import Measures

State = Literal["planned", "running", "finished", "stopped", "dropped", "failed", "interrupted"]
"""planned → running → finished (all its epochs, or out of patience) | stopped (by early stopping)
| failed (an error) | interrupted (the sweep ended first); planned → dropped (by early stopping, never started)."""


class Versioned(Frozen):
    """Base of what is written down."""

    schema_version: Literal[2] = 2


class Configuration(Versioned):
    """A planned trial in a table's columns: its settings, and what its depth means in its network."""

    trial: str
    """Name: twelve hexadecimal digits of the configuration's hash."""
    backbone: str
    depth: Depth
    depth_label: str
    layers: int
    """How many layers train."""
    network_layers: int
    lr: float
    seed: int
    trainable_tensors: int
    trainable_parameters: int
    total_parameters: int
    first_trainable: str
    """The layer farthest from the output that trains."""
    epochs_planned: int
    phases: str
    """In words (`Trial.phases_label`)."""
    image_size: int | None
    batch_norm: str
    keep: str
    weights: str
    head: str
    axes: dict[str, Any] = Field(default={})
    """Values on further axes of the grid, by name."""

    def columns(self) -> dict[str, Any]:
        """Plain values, with a column for each further axis."""
        return self.model_dump(mode="json") | self.axes


class TrialJob(Versioned):
    """What the process of a trial is given."""

    name: str
    trial: Trial
    workers: int
    """Processes that train it together."""
    cpus: int
    """Threads of each."""
    gpus: float
    """Of each."""
    folder: str
    """The run folder, absolute, or its URL."""
    ray_folder: str
    """Folder or URL of Ray's own files, and of what trials share."""
    objective: Objective
    rungs: tuple[int, ...] = ()
    """Epochs at which early stopping compares trials."""
    features: Features
    stored: tuple[str, ...] = ()
    """Names of the phases that read stored features."""
    snapshots: tuple[str, ...] = ()
    """Of the data sets, as the sweep's own process read them (`raysweep.data.snapshot`)."""
    refit: tuple[int, ...] | None = None
    """Epochs of each phase of a final fit; None for a trial of the grid."""
    target: str = ""
    """Of a final fit: the folder below the run's that the model goes to."""
    checkpoint_minutes: float = 10.0
    """Between checkpoints within an epoch."""
    max_failures: int = 3
    """How often its workers may be lost."""
    duplicated_test: tuple[int, ...] = ()
    """Positions of test images that have a copy in train or val."""


class EpochRow(Measures):
    """One epoch of one trial, and where it ran."""

    schema_version: Literal[2] = 2
    trial: str
    workers: int
    device: str
    pid: int
    time: float | None = None
    """Seconds since 1970 at which the driver had it."""
    evidence: str | None = None
    """At a rung and at the trial's last epoch: what each validation image contributes to the objective
    at the epoch that the trial would count with (see `evidence.pack`)."""
    over: bool = False
    """Whether this is the trial's last epoch."""


class Stop(Versioned):
    """Why early stopping ended a trial: it was behind another configuration."""

    epoch: int
    """At which the two were compared."""
    against: str
    """The other configuration in words, such as `lr 0.001`."""
    behind: float | None = None
    """By how much of the objective; None for plain ASHA, which compares ranks."""
    error: float | None = None
    """Standard error of that."""


class TrialRow(Versioned):
    """A change of a trial's state."""

    trial: str
    state: State
    time: float
    """Seconds since 1970."""
    epochs_completed: int | None = None
    stopped_early: bool | None = None
    error: str | None = None
    """Why it failed, or what it goes on from."""
    failures: int | None = None
    """Of a running trial that goes on from its checkpoint: how often its process was lost."""
    diverged: bool | None = None
    """Of a failed trial: whether it would fail again."""
    stop: Stop | None = None
    """Of a stopped or dropped trial."""


class Report(Versioned):
    """What a trial tells the sweep after an epoch, or when it has failed for a reason of its own."""

    row: EpochRow | None = None
    problem: str | None = None
    """Why the trial has failed."""
    diverged: bool = False
    """Whether it would fail again."""
    warning: str | None = None
    """What went wrong beside the training, such as a checkpoint for which there was no room."""


class FinalResult(Versioned):
    """The final fit: a configuration refitted on train + val and measured once on test."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    trial: str
    backbone: str
    depth: Depth
    depth_label: str
    layers: int
    lr: float
    seed: int
    epochs: int
    test_accuracy: float
    test_accuracy_without_duplicates: float | None
    duplicated_test_images: int
    test_loss: float
    test_images: int
    train_images: int
    train_loss: float
    seconds: float
    workers: int
    class_names: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Test images by true class and by predicted class."""
    test_balanced_accuracy: float | None = None
    test_macro_f1: float | None = None
    test_top5: float | None = None
    test_calibration_error: float | None = None
    """Expected calibration error (see `calibration`)."""
    calibration: tuple[tuple[float, float, int], ...] = ()
    """For bins of confidence that hold test images: mean confidence, accuracy, number of images."""


def why(stop: Stop | None, objective: Objective = "accuracy") -> str:
    """Why early stopping ended a trial, in words; what it is behind by is in points, of loss as it is."""
    if stop is None:
        return ""
    if stop.behind is None:
        return f"behind {stop.against}"
    behind, error = stop.behind, stop.error or 0
    if objective == "loss":
        return f"a loss {behind:.3f} ± {error:.3f} above that of {stop.against} at epoch {stop.epoch}"
    return f"{100 * behind:.1f} ± {100 * error:.1f} points behind {stop.against} at epoch {stop.epoch}"
