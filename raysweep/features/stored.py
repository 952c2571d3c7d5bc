"""Stored features as batches, from memory maps or from the device's memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..data.prefetch import CPU, moved
from ..data.sources import InTwoParts
from .store import Store


class Stored(InTwoParts):
    """A split's frontier tensors, read from stored features; a `Source`."""

    def __init__(
        self,
        views: Sequence[Sequence[np.ndarray]],
        dtype: str,
        device: torch.device,
        store: Store | None = None,
        resident: bool = False,
    ) -> None:
        """`views[0]` holds the frontier's arrays of the images, the others those of their views by number.

        `store` is the one that opened them: its locks last as long as this source. With `resident`
        all are read now, and stay on the device.
        """
        self.views, self.dtype, self.device, self.store = views, dtype, device, store
        self._resident = self._loaded() if resident else None
        self.place = CPU if self._resident is None else device

    def __len__(self) -> int:
        return len(self.views[0][0])

    def fetch(self, positions: Tensor, views: Tensor | None) -> tuple[Tensor, ...]:
        """See `raysweep.data.sources.Source`; a mirror is view 1."""
        if self._resident is None:
            rows, numbers = positions.numpy(), None if views is None else views.numpy().astype(int)
            read = (self._typed(self._read(index, rows, numbers)) for index in range(len(self.views[0])))
            return tuple(moved(values, self.device) for values in read)
        where = moved(positions, self.device)
        seen = 0 if views is None else moved(views, self.device).long()
        return tuple(tensor[seen, where] for tensor in self._resident)

    def frontier(self, fetched: tuple[Tensor, ...], training: bool) -> tuple[Tensor, ...]:
        """See `raysweep.data.sources.Source`."""
        return tuple(map(_as_trained, fetched))

    def _read(self, index: int, rows: np.ndarray, numbers: np.ndarray | None) -> np.ndarray:
        """Copies just the rows asked for out of the map."""
        arrays = [view[index] for view in self.views]
        if numbers is None:
            return arrays[0][rows]
        gathered = np.empty((len(rows), *arrays[0].shape[1:]), arrays[0].dtype)
        for number in np.unique(numbers):
            here = numbers == number
            gathered[here] = arrays[number][rows[here]]
        return gathered

    def _typed(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.view(torch.bfloat16) if self.dtype == "bfloat16" else tensor

    def _loaded(self) -> list[Tensor]:
        """Every frontier tensor (views, images, ...) on the device."""
        return [self._stacked([view[index] for view in self.views]) for index in range(len(self.views[0]))]

    def _stacked(self, arrays: Sequence[np.ndarray]) -> Tensor:
        """Arrays of the same shape as one tensor on the device, copied one by one."""
        first = self._typed(np.array(arrays[0]))
        whole = torch.empty((len(arrays), *first.shape), dtype=first.dtype, device=self.device)
        for place, array in zip(whole, arrays, strict=True):
            place.copy_(self._typed(np.array(array)))
        return whole


class FeatureOverflowError(ArithmeticError):
    """Features are too large for the type that they are computed or to be stored in."""


def write_batch(array: np.ndarray, start: int, values: Tensor, dtype: str) -> None:
    """Write (batch, ...) values as a network gives them into rows of a stored array.

    Raises:
        FeatureOverflowError: values that the type does not hold.
    """
    last = values.movedim(1, -1) if values.dim() == 4 else values
    typed = last.to(getattr(torch, dtype)).cpu().contiguous()
    if not typed.isfinite().all():
        most = float(values.abs().max())
        if math.isfinite(most):
            raise FeatureOverflowError(f"they reach {most:.3g}, more than {dtype} holds; set features.dtype=float32")
        raise FeatureOverflowError(
            "some are infinite or no numbers as they are computed; set features.precision=bfloat16, which holds larger "
            "ones than float16, or float32"
        )
    array[start : start + len(values)] = typed.view(torch.uint16).numpy() if dtype == "bfloat16" else typed.numpy()


def _as_trained(tensor: Tensor) -> Tensor:
    """(batch, height, width, channels) of any dtype → (batch, channels, height, width) float32, channels last."""
    full = tensor.float()
    return full.permute(0, 3, 1, 2) if full.dim() == 4 else full
