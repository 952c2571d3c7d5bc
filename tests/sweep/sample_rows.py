"""Rows and configurations of a small CNN's trial, of which a test changes what it is about."""

from __future__ import annotations

from typing import Any

from raysweep.sweep.rows import Configuration, EpochRow


def configuration(trial: str = "a", **changed: Any) -> Configuration:
    """A planned trial of four epochs."""
    fields: dict[str, Any] = {
        "trial": trial, "backbone": "resnet18", "depth": 3, "depth_label": "3", "layers": 3, "network_layers": 38,
        "lr": 0.001, "seed": 0, "trainable_tensors": 5, "trainable_parameters": 2_000, "total_parameters": 11_000_000,
        "first_trainable": "layer4.1.bn2", "epochs_planned": 4, "phases": "", "image_size": 32,
        "batch_norm": "frozen", "keep": "last", "weights": "none", "head": "linear",
    }  # fmt: skip
    return Configuration(**fields | changed)


def epoch_row(trial: str = "a", epoch: int = 1, **changed: Any) -> EpochRow:
    """A row as a trial reports it."""
    fields: dict[str, Any] = {
        "trial": trial, "epoch": epoch, "lr_epoch": 0.001, "seconds": 1.5, "train_loss": 1.25, "train_accuracy": 0.75,
        "val_loss": 1.5, "val_accuracy": 0.5, "val_images": 16, "workers": 1, "device": "cpu", "pid": 7,
    }  # fmt: skip
    return EpochRow(**fields | changed)
