"""What crosses the borders of a sweep: a trial's job, and the rows that come of it.

Everything here is frozen and carries a schema version. The run folder holds the same as
JSON (see `raysweep.sweep.ledger`); the first edition's rows carry no version. Nothing here
needs torch or Ray.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from ..recipe import Depth, Features, Frozen, Trial
from ..train.measures import Measures

State = Literal["planned", "running", "finished", "stopped", "failed", "interrupted"]
"""planned → running → finished (all its epochs, or out of patience) | stopped (by ASHA)
| failed (an error) | interrupted (the sweep ended first)."""


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
    storage: str
    """Folder for Ray Train's own files and for what trials share."""
    features: Features
    stored: tuple[str, ...] = ()
    """Names of the phases that read stored features."""
    refit: tuple[int, ...] | None = None
    """Epochs of each phase of a final fit; None for a trial of the grid."""
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


class TrialRow(Versioned):
    """A change of a trial's state."""

    trial: str
    state: State
    time: float
    """Seconds since 1970."""
    epochs_completed: int | None = None
    stopped_early: bool | None = None
    error: str | None = None


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
