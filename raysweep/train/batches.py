"""Which images an optimizer step learns from: drawn from the seed and the epoch, for all ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from ..data.augment import Augmentation
from ..data.sources import ImageSource, Source
from .mixing import Mixing


@dataclass(frozen=True)
class Batch:
    """The images of a step, or some of them."""

    positions: Tensor
    """(batch,) int64, in the training split."""
    views: Tensor | None = None
    """(batch,) of each the view, as `Augmentation.draw` drew it; None where all are as they are."""
    partners: Batch | None = None
    """Of each the image that it is mixed with; None where nothing is mixed."""
    mixing: Mixing | None = None

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, chosen: slice) -> Batch:
        views = None if self.views is None else self.views[chosen]
        partners = None if self.partners is None else self.partners[chosen]
        return Batch(self.positions[chosen], views, partners, self.mixing)

    def mixed(self, mixing: Mixing | None) -> Batch:
        """The batch with each image's partner, the image before it; the first one's is the last."""
        if mixing is None:
            return self
        views = None if self.views is None else self.views.roll(1)
        return replace(self, partners=Batch(self.positions.roll(1), views), mixing=mixing)


def batches(
    count: int, size: int, seed: int, epoch: int, augmentation: Augmentation, chances: Tensor | None = None
) -> Iterator[Batch]:
    """The batches of an epoch; no batch of one image, for batch norm's sake.

    Args:
        count: images of the training split, and of the epoch.
        size: images in a batch.
        seed: of the trial.
        epoch: its number.
        augmentation: what views are drawn from.
        chances: (count,) how likely each image is drawn, with replacement; each comes once when None.
    """
    generator = torch.Generator().manual_seed(mix(seed, epoch))
    if chances is None:
        order = torch.randperm(count, generator=generator)
    else:
        order = torch.multinomial(chances, count, replacement=True, generator=generator)
    whole, starts = Batch(order, augmentation.draw(count, generator)), _starts(count, size)
    for start, end in zip(starts, [*starts[1:], count], strict=True):
        yield whole[start:end]


def inputs_of(source: Source, batch: Batch) -> tuple[tuple[Tensor, ...], float]:
    """What the suffix is trained on, and how much of each image's label is its own."""
    if batch.mixing is None or batch.partners is None or not len(batch):
        return source.batch(batch.positions, batch.views, training=True), 1.0
    images = cast(ImageSource, source)  # features of mixed images are never stored
    pairs = (images.inputs(one.positions, one.views) for one in (batch, batch.partners))
    mixed, share = batch.mixing(*pairs)
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
