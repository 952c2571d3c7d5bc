"""Optimizers and learning-rate schedules by their names in a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler, StepLR

from ..recipe import Train


def optimizer_of(settings: Train, trained: Sequence[nn.Parameter], lr: float) -> Optimizer:
    """The optimizer of the trained parameters, starting at a learning rate."""
    common: dict[str, Any] = {"lr": lr, "weight_decay": settings.weight_decay, "fused": True}  # one pass over memory
    if settings.optimizer == "sgd":
        return torch.optim.SGD(trained, momentum=settings.momentum, **common)
    return (torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam)(trained, **common)


def schedule_of(settings: Train, optimizer: Optimizer) -> LRScheduler:
    """The schedule, stepped once an epoch."""
    if settings.schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=settings.epochs)
    if settings.schedule == "step":
        return StepLR(optimizer, settings.step_epochs, settings.step_gamma)
    return ConstantLR(optimizer, factor=1.0)
