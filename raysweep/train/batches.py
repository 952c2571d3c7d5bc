"""Which images an optimizer step learns from: drawn from the seed and the epoch, for all ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """The images of a step, or some of them."""

    positions: Tensor
    """(batch,) int64, in the training split."""
    flips: Tensor | None = None
    """(batch,) bool, which of them to mirror; None where none is."""

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, chosen: slice) -> Batch:
        return Batch(self.positions[chosen], None if self.flips is None else self.flips[chosen])


def batches(count: int, size: int, seed: int, epoch: int, flip: bool, chances: Tensor | None = None) -> Iterator[Batch]:
    """The batches of an epoch; no batch of one image, for batch norm's sake.

    Args:
        count: images of the training split, and of the epoch.
        size: images in a batch.
        seed: of the trial.
        epoch: its number.
        flip: whether to mirror half of the images.
        chances: (count,) how likely each image is drawn, with replacement; each comes once when None.
    """
    generator = torch.Generator().manual_seed(mix(seed, epoch))
    if chances is None:
        order = torch.randperm(count, generator=generator)
    else:
        order = torch.multinomial(chances, count, replacement=True, generator=generator)
    flips = torch.rand(count, generator=generator) < 0.5 if flip else None
    whole, starts = Batch(order, flips), _starts(count, size)
    for start, end in zip(starts, [*starts[1:], count], strict=True):
        yield whole[start:end]


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
