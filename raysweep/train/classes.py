"""Unequal classes: their weights in the loss, and how likely their images are drawn."""

from __future__ import annotations

import torch
from torch import Tensor

from ..recipe import Train

BETA = 0.999
"""Of the effective number of images (Cui et al. 2019, arXiv:1901.05555): beyond some thousand an image adds little."""


def class_weights(settings: Train, labels: Tensor, classes: int) -> Tensor | None:
    """Weights of the classes in the loss, (classes,) float32, whose mean over the images is 1; None where all are 1.

    Args:
        settings: which weights.
        labels: (n,) int64, of the training images.
        classes: how many there are; one without images weighs nothing.
    """
    if settings.class_weights == "none":
        return None
    counts = torch.bincount(labels, minlength=classes).double()
    effective = (1 - BETA**counts) / (1 - BETA) if settings.class_weights == "effective" else counts
    weights = torch.where(counts > 0, 1 / effective, 0.0)
    return (weights * len(labels) / (weights * counts).sum()).float()


def chances(settings: Train, labels: Tensor) -> Tensor | None:
    """How likely each training image is drawn, (n,) float64 up to a factor; None where each comes once an epoch."""
    if settings.sampler == "shuffle":
        return None
    return (1 / torch.bincount(labels).double())[labels]
