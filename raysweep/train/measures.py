"""What training measures after an epoch; no torch, so that whoever reads it needs none."""

from __future__ import annotations

from ..recipe import Frozen

TOP5_CLASSES = 10
"""Classes from which on the five likeliest are worth a column."""


class StepMeasures(Frozen):
    """Validation within an epoch (`train.validate_every_steps`)."""

    step: int
    """Optimizer steps so far."""
    epoch: float
    """The same as a fraction of epochs."""
    val_loss: float
    val_accuracy: float


class Measures(Frozen):
    """One epoch of one configuration. Accuracies are fractions from 0 to 1, losses mean cross-entropies."""

    epoch: int
    """Counted from 1 through all phases."""
    phase: int = 1
    lr_epoch: float
    """Learning rate of the epoch's last step, of the trained layer nearest the output."""
    seconds: float
    train_loss: float
    """Mean over the epoch's own steps, in training mode, with label smoothing and class weights."""
    train_accuracy: float | None = None
    """In eval mode after the epoch, like what follows; None in a refit, which has no validation images."""
    train_balanced_accuracy: float | None = None
    """Mean over classes of the share of their images that is predicted right."""
    train_macro_f1: float | None = None
    """Mean over classes of F1."""
    train_top5: float | None = None
    """Share of images whose class is among the five likeliest; None for fewer than `TOP5_CLASSES` classes."""
    val_loss: float | None = None
    val_accuracy: float | None = None
    val_balanced_accuracy: float | None = None
    val_macro_f1: float | None = None
    val_top5: float | None = None
    val_images: int | None = None
    val_by_step: tuple[StepMeasures, ...] = ()
    cached: bool = False
    """Whether the frozen prefix's outputs were read from stored features."""
    shared: bool = False
    """Whether another trial trained this epoch for all that begin with it."""
