"""What a network predicts, gathered over the ranks, and the scores that follow from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from sklearn.metrics import precision_recall_fscore_support
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.prefetch import CPU, prefetched
from ..data.sources import Source
from ..nets.precision import autocast, gpu_settings
from ..recipe import Train
from .ddp import World
from .measures import TOP5_CLASSES

EVAL_BATCH = 128
"""Least number of images in a forward pass of evaluation."""


@dataclass(frozen=True)
class Labelled:
    """A split as training sees it."""

    source: Source
    labels: Tensor
    """(n,) int64, on the CPU."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Scores:
    """What predictions amount to."""

    loss: float
    """Mean cross-entropy."""
    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    top5: float | None
    """None for fewer than `TOP5_CLASSES` classes."""


@dataclass(frozen=True)
class Predictions:
    """Of n images, in their order, on the CPU, the same on every rank."""

    labels: Tensor
    """(n,) int64, the true classes."""
    predicted: Tensor
    """(n,) int64."""
    confidence: Tensor
    """(n,) float64, probability of the predicted class."""
    losses: Tensor
    """(n,) float64, cross-entropy: minus the logarithm of the true class's probability."""
    in_top5: Tensor
    """(n,) bool, whether the true class is among the five likeliest."""

    @property
    def loss(self) -> float:
        """Mean cross-entropy."""
        return float(self.losses.mean())

    @property
    def accuracy(self) -> float:
        """Share of images that are predicted right."""
        return float((self.predicted == self.labels).double().mean())

    @property
    def true_probability(self) -> Tensor:
        """(n,) float64, probability of the true class."""
        return (-self.losses).exp()

    def scores(self, classes: int) -> Scores:
        """All scores; macro-F1 is over so many classes, balanced accuracy over those that occur."""
        _, recall, f1, support = precision_recall_fscore_support(
            self.labels.numpy(), self.predicted.numpy(), labels=range(classes), zero_division=0.0
        )
        top5 = float(self.in_top5.double().mean()) if classes >= TOP5_CLASSES else None
        return Scores(self.loss, self.accuracy, float(recall[support > 0].mean()), float(f1.mean()), top5)


@torch.no_grad()
def predict(
    suffix: nn.Module, split: Labelled, settings: Train, world: World, positions: Tensor | None = None
) -> Predictions:
    """Predict a split's images in eval mode, each rank its share.

    Args:
        suffix: frontier tensors → (batch, classes).
        split: the images.
        settings: batch size and precision.
        world: the ranks that predict together.
        positions: (n,) int64, which images; None for all.
    """
    suffix.eval()
    wanted = torch.arange(len(split)) if positions is None else positions
    labels = split.labels[wanted]
    found = torch.zeros(4, len(wanted), dtype=torch.float64)
    own = world.share(torch.arange(len(wanted)))
    if len(own):
        found[:, own] = torch.cat(list(_of_chunks(suffix, split, settings, world, wanted[own])), 1).cpu()
    predicted, confidence, losses, in_top5 = world.sum(found)
    return Predictions(labels, predicted.long(), confidence, losses, in_top5.bool())


def _of_chunks(
    suffix: nn.Module, split: Labelled, settings: Train, world: World, positions: Tensor
) -> Iterator[Tensor]:
    """(4, images) float64 on the device: class, confidence, loss and whether in the top five; nothing waits for it."""
    source, device = split.source, world.device
    placed, labels = positions.to(source.place), split.labels[positions].to(device)
    size = settings.eval_batch_size or max(settings.batch_size, EVAL_BATCH)
    ahead = device if source.place.type == "cpu" else CPU
    todo = prefetched(placed.split(size), lambda chunk: source.fetch(chunk, None), ahead)
    for (_, fetched), truth in zip(todo, labels.split(size), strict=True):
        inputs = source.frontier(fetched, training=False)
        with gpu_settings(settings.precision, device), autocast(settings.precision, device):
            scores = suffix(*inputs).float()
        confidence, predicted = scores.softmax(1).max(1)
        losses = F.cross_entropy(scores, truth, reduction="none")
        better = (scores > scores.gather(1, truth[:, None])).sum(1)
        yield torch.stack([x.double() for x in (predicted, confidence, losses, better < 5)])
