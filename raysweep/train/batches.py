"""Which images an optimizer step learns from: drawn from the seed and the epoch, for all ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from ..data.augment import Augmentation
from ..data.sources import ImageSource, Source
from .mixing import Mixing


@dataclass(frozen=True)
class Batch:
    """The images of a step, or some of them."""

    positions: Tensor
    """(batch,) int64, in the training split; like the views where the source wants them."""
    views: Tensor | None = None
    """(batch,) of each the view, as `Augmentation.draw` drew it; None where all are as they are."""
    partners: Batch | None = None
    """Of each the image that it is mixed with; None where nothing is mixed."""
    mixing: Mixing | None = None
    labels: Tensor | None = None
    """(batch,) int64, on the device; None where they were not asked for."""

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, chosen: slice) -> Batch:
        views = None if self.views is None else self.views[chosen]
        partners = None if self.partners is None else self.partners[chosen]
        labels = None if self.labels is None else self.labels[chosen]
        return Batch(self.positions[chosen], views, partners, self.mixing, labels)

    def mixed(self, mixing: Mixing | None) -> Batch:
        """The batch with each image's partner, the image before it; the first one's is the last."""
        if mixing is None:
            return self
        views = None if self.views is None else self.views.roll(1)
        labels = None if self.labels is None else self.labels.roll(1)
        return replace(self, partners=Batch(self.positions.roll(1), views, labels=labels), mixing=mixing)

    def placed(self, source: Source, device: torch.device) -> Batch:
        """The same, of an epoch: positions and views where the source wants them, labels on the device."""
        views = None if self.views is None else self.views.to(source.place)
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, positions=self.positions.to(source.place), views=views, labels=labels)


def epoch_of(
    count: int,
    seed: int,
    epoch: int,
    augmentation: Augmentation,
    chances: Tensor | None = None,
    labels: Tensor | None = None,
) -> Batch:
    """All images of an epoch in their order, on the CPU.

    Args:
        count: images of the training split, and of the epoch.
        seed: of the trial.
        epoch: its number.
        augmentation: what views are drawn from.
        chances: (count,) how likely each image is drawn, with replacement; each comes once when None.
        labels: (count,) int64, of the training split.
    """
    generator = torch.Generator().manual_seed(mix(seed, epoch))
    if chances is None:
        order = torch.randperm(count, generator=generator)
    else:
        order = torch.multinomial(chances, count, replacement=True, generator=generator)
    return Batch(order, augmentation.draw(count, generator), labels=None if labels is None else labels[order])


def batches(epoch: Batch, size: int) -> Iterator[Batch]:
    """The batches of an epoch, each of so many images; no batch of one image, for batch norm's sake."""
    starts = _starts(len(epoch), size)
    for start, end in zip(starts, [*starts[1:], len(epoch)], strict=True):
        yield epoch[start:end]


def fetched_of(source: Source, batch: Batch) -> tuple[Any, ...]:
    """What a source fetches of a batch, and of what it is mixed with."""
    both = (batch,) if batch.partners is None else (batch, batch.partners)
    return tuple(source.fetch(one.positions, one.views) for one in both)


def inputs_of(source: Source, batch: Batch, fetched: tuple[Any, ...] | None = None) -> tuple[tuple[Tensor, ...], float]:
    """What the suffix is trained on, and how much of each image's label is its own.

    `fetched` is what `fetched_of` gave of the batch, if that was asked before.
    """
    fetched = fetched_of(source, batch) if fetched is None else fetched
    if batch.mixing is None or not len(batch):
        return source.frontier(fetched[0], training=True), 1.0
    images = cast(ImageSource, source)  # features of mixed images are never stored
    mixed, share = batch.mixing(*(images.inputs(one) for one in fetched))
    return images.through(mixed, training=True), share


def steps_of(count: int, size: int) -> int:
    """How many batches an epoch has."""
    return len(_starts(count, size))


def _starts(count: int, size: int) -> list[int]:
    starts = list(range(0, count, size))
    return starts[:-1] if len(starts) > 1 and count - starts[-1] == 1 else starts


def mix(*numbers: int) -> int:
    """One seed from several numbers."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 1_000_003 + number + 1) % (2**63 - 1)
    return mixed
