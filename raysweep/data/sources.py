"""What the trainable suffix is fed with: batches of images, or of what the frozen prefix makes of them.

Images stay uint8 in memory; a batch is gathered, moved to the device, resized, augmented
and normalised there. A source answers `batch(positions, views, training)` with the
frontier tensors of those images, so that training does not know where they come from. It
does so in two parts: `fetch` reads and copies, and may run ahead of training (see
`raysweep.data.prefetch`); `frontier` computes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from .augment import Augmentation
from .prefetch import CPU, moved
from .preparation import Preparation


class Source(Protocol):
    """The frontier tensors of a split's images."""

    @property
    def place(self) -> torch.device:
        """Where positions and views are wanted: on the CPU, or where all images are resident."""

    def __len__(self) -> int: ...

    def fetch(self, positions: Tensor, views: Tensor | None) -> Any:
        """What there is of images: tensors on the device, in tuples.

        Args:
            positions: (batch,) int64.
            views: of each image, as `Augmentation.draw` drew it; None for the images themselves.
        """

    def frontier(self, fetched: Any, training: bool) -> tuple[Tensor, ...]:
        """Frontier tensors of what was fetched."""
        ...

    def batch(self, positions: Tensor, views: Tensor | None, training: bool) -> tuple[Tensor, ...]:
        """Both, one after the other."""
        ...


class ImageSource(Source, Protocol):
    """A source that computes the prefix each time, so that images can be changed before."""

    def inputs(self, fetched: Any) -> Tensor:
        """The images as the whole network takes them."""
        ...

    def through(self, inputs: Tensor, training: bool) -> tuple[Tensor, ...]:
        """Frontier tensors of what `inputs` gave."""
        ...


class InTwoParts:
    """Base of sources: `batch` by `fetch` and `frontier`."""

    place = CPU

    def fetch(self, positions: Tensor, views: Tensor | None) -> Any:
        """See `Source`."""
        raise NotImplementedError

    def frontier(self, fetched: Any, training: bool) -> tuple[Tensor, ...]:
        """See `Source`."""
        raise NotImplementedError

    def batch(self, positions: Tensor, views: Tensor | None, training: bool) -> tuple[Tensor, ...]:
        """See `Source`."""
        return self.frontier(self.fetch(positions, views), training)


class Pixels(NamedTuple):
    """Images as they are stored."""

    images: Tensor
    """(batch, 3, height, width) uint8, on the device; one image where none is asked for."""
    rows: Tensor
    """(batch,) int64, of each in the pool, on the CPU."""
    views: Tensor | None
    """(batch,) bool on the device, which are mirrored; or int64 on the CPU, which random views they are seen in."""


class Images(InTwoParts):
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
        self.prepare = preparation.module().to(device)
        self.prefix, self.batch_norm = prefix, batch_norm
        self.augmentation = augmentation or Augmentation()

    def __len__(self) -> int:
        return len(self.rows)

    def fetch(self, positions: Tensor, views: Tensor | None) -> Pixels:
        """See `Source`. A rank's share may be empty."""
        rows = self.rows[positions.numpy()]
        read = rows if len(rows) else self.rows[:1]
        images = moved(torch.from_numpy(np.ascontiguousarray(self.images[read])), self.device)
        if views is not None and views.dtype == torch.bool:
            views = moved(views, self.device)
        return Pixels(images, torch.from_numpy(rows), views)

    def frontier(self, fetched: Pixels, training: bool) -> tuple[Tensor, ...]:
        """See `Source`."""
        moving = training and self.batch_norm == "training"
        if not len(fetched.rows) and not moving:
            return tuple(values[:0] for values in self.through(self.prepare(fetched.images), training))
        return self.through(self.inputs(fetched), training)

    def inputs(self, fetched: Pixels) -> Tensor:
        """See `ImageSource`."""
        images, views = fetched.images[: len(fetched.rows)], fetched.views
        if views is None or views.dtype == torch.bool:
            return self.prepare(images, views)
        rows = fetched.rows.tolist()
        return self.prepare(images, change=lambda prepared: self.augmentation(prepared, rows, views))

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


class _Parts(NamedTuple):
    """What was fetched of two sources."""

    first: Any
    """None where nothing was asked of it."""
    second: Any
    order: Tensor
    """(batch,) int64 on the CPU, where each image asked for is in the first's and the second's, one after the other."""


class Joined(InTwoParts):
    """See `joined`; for sources of which at least one is stored."""

    def __init__(self, first: Source, second: Source) -> None:
        self.first, self.second = first, second

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def fetch(self, positions: Tensor, views: Tensor | None) -> _Parts:
        """See `Source`."""
        in_first = positions < len(self.first)

        def part(source: Source, here: Tensor, offset: int) -> Any:
            return source.fetch(positions[here] - offset, None if views is None else views[here])

        order = torch.cat([here.nonzero().squeeze(1) for here in (in_first, ~in_first)]).argsort()
        return _Parts(
            part(self.first, in_first, 0) if in_first.any() or not len(positions) else None,
            None if in_first.all() else part(self.second, ~in_first, len(self.first)),
            order,
        )

    def frontier(self, fetched: _Parts, training: bool) -> tuple[Tensor, ...]:
        """See `Source`."""
        return self._merged(fetched, lambda source, part: source.frontier(part, training))

    def inputs(self, fetched: _Parts) -> Tensor:
        """See `ImageSource`; of two of them."""
        return self._merged(fetched, lambda source, part: (source.inputs(part),))[0]

    def through(self, inputs: Tensor, training: bool) -> tuple[Tensor, ...]:
        """See `ImageSource`."""
        return self.first.through(inputs, training)  # type: ignore[attr-defined, no-any-return]

    def _merged(self, fetched: _Parts, ask: Callable[[Any, Any], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What each source makes of its own part, in the order asked for."""
        pairs = ((self.first, fetched.first), (self.second, fetched.second))
        found = [ask(source, part) for source, part in pairs if part is not None]
        if len(found) == 1:
            return found[0]
        return tuple(torch.cat(both)[moved(fetched.order, both[0].device)] for both in zip(*found, strict=True))
