"""What the trainable suffix is fed with: batches of images, or of what the frozen prefix makes of them.

Images stay uint8 in memory; a batch is gathered, moved to the device, resized, augmented
and normalised there. A source answers `batch(positions, views, training)` with the
frontier tensors of those images, so that training does not know where they come from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from .augment import Augmentation
from .preparation import Preparation


class Source(Protocol):
    """The frontier tensors of a split's images."""

    def __len__(self) -> int: ...

    def batch(self, positions: Tensor, views: Tensor | None, training: bool) -> tuple[Tensor, ...]:
        """Frontier tensors of the images at `positions` (batch,), each in a view as `Augmentation.draw` drew it."""
        ...


class ImageSource(Source, Protocol):
    """A source that computes the prefix each time, so that images can be changed before."""

    def inputs(self, positions: Tensor, views: Tensor | None) -> Tensor:
        """The images as the whole network takes them."""
        ...

    def through(self, inputs: Tensor, training: bool) -> tuple[Tensor, ...]:
        """Frontier tensors of what `inputs` gave."""
        ...


class Images:
    """Images in memory, passed through the frozen prefix each time they are asked for."""

    def __init__(
        self,
        images: np.ndarray,
        rows: np.ndarray,
        preparation: Preparation,
        device: torch.device,
        prefix: nn.Module | None = None,
        batch_norm: str = "frozen",
        augmentation: Augmentation | None = None,
    ) -> None:
        """`images` is (n, 3, height, width) uint8, perhaps a memory map; `rows` picks this split's."""
        self.images, self.rows = images, rows
        self.preparation, self.device = preparation, device
        self.prefix, self.batch_norm = prefix, batch_norm
        self.augmentation = augmentation or Augmentation()

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, positions: Tensor, views: Tensor | None, training: bool) -> tuple[Tensor, ...]:
        """See `Source`. A rank's share may be empty."""
        moving = training and self.batch_norm == "training"
        if not len(positions) and not moving:
            return tuple(values[:0] for values in self.batch(torch.zeros(1, dtype=torch.int64), None, False))
        return self.through(self.inputs(positions, views), training)

    def inputs(self, positions: Tensor, views: Tensor | None) -> Tensor:
        """See `ImageSource`."""
        rows = self.rows[positions.numpy()]
        gathered = torch.from_numpy(np.ascontiguousarray(self.images[rows]))
        if self.device.type == "cuda":
            gathered = gathered.pin_memory()
        moved = gathered.to(self.device, non_blocking=True)
        if views is None or views.dtype == torch.bool:
            return self.preparation(moved, None if views is None else views.to(self.device))
        return self.preparation(moved, change=lambda images: self.augmentation(images, rows.tolist(), views))

    def through(self, inputs: Tensor, training: bool) -> tuple[Tensor, ...]:
        """See `ImageSource`."""
        if self.prefix is None:
            return (inputs,)
        self.prefix.train(training and self.batch_norm == "training")
        with torch.no_grad():
            return tuple(self.prefix(inputs))


def joined(first: Source, second: Source) -> Source:
    """Two sources as one, the second's positions after the first's.

    Images of one pool pass through the prefix together: statistics that move are those of the
    whole batch, and every rank computes them as often as the others.
    """
    if isinstance(first, Images) and isinstance(second, Images) and first.images is second.images:
        rows = np.concatenate([first.rows, second.rows])
        return Images(
            first.images, rows, first.preparation, first.device, first.prefix, first.batch_norm, first.augmentation
        )
    return Joined(first, second)


class Joined:
    """See `joined`; for sources of which at least one is stored."""

    def __init__(self, first: Source, second: Source) -> None:
        self.first, self.second = first, second

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def batch(self, positions: Tensor, views: Tensor | None, training: bool) -> tuple[Tensor, ...]:
        """See `Source`."""
        if not len(positions):
            return self.first.batch(positions, views, training)
        return self._merged(positions, views, lambda source, some, seen: source.batch(some, seen, training))

    def inputs(self, positions: Tensor, views: Tensor | None) -> Tensor:
        """See `ImageSource`; of two of them."""
        return self._merged(positions, views, lambda source, some, seen: (source.inputs(some, seen),))[0]

    def through(self, inputs: Tensor, training: bool) -> tuple[Tensor, ...]:
        """See `ImageSource`."""
        return self.first.through(inputs, training)  # type: ignore[attr-defined, no-any-return]

    def _merged(
        self,
        positions: Tensor,
        views: Tensor | None,
        ask: Callable[[Any, Tensor, Tensor | None], tuple[Tensor, ...]],
    ) -> tuple[Tensor, ...]:
        """What each source answers of its own positions, in the order asked for."""
        in_first = positions < len(self.first)
        parts = []
        for source, here, offset in ((self.first, in_first, 0), (self.second, ~in_first, len(self.first))):
            if here.any():
                some = None if views is None else views[here]
                parts.append((here, ask(source, positions[here] - offset, some)))
        if len(parts) == 1:
            return parts[0][1]
        order = torch.cat([here.nonzero().squeeze(1) for here, _ in parts]).argsort()
        return tuple(torch.cat(pair)[order.to(pair[0].device)] for pair in zip(*(p for _, p in parts), strict=True))
