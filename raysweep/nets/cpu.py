"""What computes convolutions on small maps on a CPU: matrix products instead of PyTorch's own kernels.

On a map of a few pixels a kernel falls beside the map for the most part: of the nine
products of a 3×3 kernel on 2×2 pixels five are with padding. PyTorch's convolution computes
them all. `MatrixConv2d` computes each output as a linear layer from the pixels that it sees.

Measured on an AMD EPYC (Zen 5) with 256 images a batch, CPU time of a training step: the
last 12 layers of ResNet-18 at 64 pixels take 0.73 of PyTorch's, the last 6 layers 0.69. On
that processor PyTorch multiplies matrices with half of its vector width, so that maps of
3×3 pixels and 1×1 kernels do not gain, and are left to the convolution. EfficientNet, whose
convolutions are depth-wise or 1×1, gains nothing.

Limits: float32 on a CPU, kernels larger than 1×1, zero padding, no dilation, no groups, at
most `MOST_OUTPUTS` output pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MOST_OUTPUTS = 4
"""Pixels of an output that is still computed as matrix products."""


def place_matrix_convolutions(network: nn.Module, names: Iterable[str]) -> None:
    """Put a `MatrixConv2d` in the place of each named convolution that it can compute, in place.

    Args:
        network: owns the convolutions alone; their parameters stay as they are.
        names: of convolutions on small maps (`Cut.small_maps`).
    """
    for name in names:
        convolution = network.get_submodule(name)
        if isinstance(convolution, nn.Conv2d) and _is_supported(convolution):
            parent, _, key = name.rpartition(".")
            setattr(network.get_submodule(parent), key, MatrixConv2d(convolution))


class MatrixConv2d(nn.Module):
    """A convolution as matrix products, with the parameters of an `nn.Conv2d` under the same names.

    Outputs that see the same pixels are one linear layer, whose weight is put together from
    the kernel in every pass. The sums are those of nn.Conv2d in another order.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias
        self.kernel_size, self.stride = convolution.kernel_size, convolution.stride
        self.padding = tuple(int(size) for size in convolution.padding)

    def forward(self, maps: Tensor) -> Tensor:
        """(batch, channels, height, width) → (batch, outputs, rows, columns)."""
        pixels, taps = maps.permute(0, 2, 3, 1), self.weight.permute(0, 2, 3, 1)  # as they lie in memory
        rows, columns = (
            _views(pixels.shape[1 + axis], self.kernel_size[axis], self.stride[axis], self.padding[axis])
            for axis in (0, 1)
        )
        outputs = _Windows.apply(pixels, taps, rows, columns)
        return (outputs if self.bias is None else outputs + self.bias).permute(0, 3, 1, 2)


def _is_supported(convolution: nn.Conv2d) -> bool:
    return (
        convolution.kernel_size != (1, 1)
        and convolution.groups == 1
        and convolution.dilation == (1, 1)
        and convolution.padding_mode == "zeros"
        and not isinstance(convolution.padding, str)
        and convolution.weight.dtype == torch.float32
    )


@dataclass(frozen=True)
class _View:
    """Outputs along one axis that see the same pixels."""

    pixels: slice
    outputs: slice
    taps: tuple[slice, ...]
    """Of the kernel, what falls on those pixels, for each of the outputs."""


@cache
def _views(size: int, kernel: int, stride: int, padding: int) -> tuple[_View, ...]:
    """What the outputs along one axis see, in their order.

    Args:
        size: pixels along the axis; with padding at least as many as the kernel has.
        kernel: its taps along the axis.
        stride: pixels from one output to the next.
        padding: zeros before the first and after the last pixel.
    """
    outputs: dict[tuple[int, int], list[int]] = {}
    for output in range((size + 2 * padding - kernel) // stride + 1):
        first = output * stride - padding
        start = min(max(first, 0), size)
        outputs.setdefault((start, max(start, min(first + kernel, size))), []).append(output)
    return tuple(
        _View(
            slice(start, end),
            slice(places[0], places[-1] + 1),
            tuple(slice(start - at * stride + padding, end - at * stride + padding) for at in places),
        )
        for (start, end), places in outputs.items()
    )


class _Windows(torch.autograd.Function):
    """A convolution as linear layers from windows of the map, one for the outputs that see the same window.

    (batch, height, width, inputs) and (outputs, kernel's height, its width, inputs) →
    (batch, rows, columns, outputs). Gradients are summed in place, where autograd would fill
    a map and a kernel of zeros for every window.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, taps: Tensor, rows: tuple[_View, ...], columns: tuple[_View, ...]) -> Tensor:
        ctx.views = list(product(rows, columns))
        ctx.layers = [
            torch.stack([taps[:, r, c] for r, c in product(row.taps, column.taps)]).flatten(0, 1).flatten(1)
            for row, column in ctx.views
        ]
        ctx.save_for_backward(maps, taps)
        values = maps.new_empty(len(maps), rows[-1].outputs.stop, columns[-1].outputs.stop, len(taps))
        for (row, column), layer in zip(ctx.views, ctx.layers, strict=True):
            outputs = values[:, row.outputs, column.outputs]
            outputs.copy_(F.linear(maps[:, row.pixels, column.pixels].flatten(1), layer).view(outputs.shape))
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        maps, taps = ctx.saved_tensors
        to_maps, to_taps = (
            torch.zeros_like(x) if needed else None
            for x, needed in zip((maps, taps), ctx.needs_input_grad, strict=False)
        )
        for (row, column), layer in zip(ctx.views, ctx.layers, strict=True):
            outputs = gradients[0][:, row.outputs, column.outputs].flatten(1)
            if to_maps is not None:
                seen = to_maps[:, row.pixels, column.pixels]
                seen += (outputs @ layer).view(seen.shape)
            if to_taps is not None:
                parts = outputs.t() @ maps[:, row.pixels, column.pixels].flatten(1)
                windows = list(product(row.taps, column.taps))
                for (r, c), part in zip(windows, parts.chunk(len(windows)), strict=True):
                    tap = to_taps[:, r, c]
                    tap += part.view(tap.shape)
        return to_maps, to_taps, None, None
