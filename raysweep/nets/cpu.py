"""What computes matrix products and convolutions on small maps on a CPU, in place of PyTorch's own choice.

Two things are slow there. On a map of a few pixels a kernel falls beside the map for the
most part: of the nine products of a 3×3 kernel on 2×2 pixels five are with padding, and
PyTorch's convolution computes them all. `MatrixConv2d` computes each output as a linear
layer from the pixels that it sees. And PyTorch multiplies float32 matrices with MKL, which
uses half of the vectors of AMD's processors; `compute_on` lets oneDNN do it, the library
that computes PyTorch's convolutions.

Measured on two AMD EPYCs, CPU time of a training step of the last 12 layers of ResNet-18 at
64 pixels, 256 images a batch, one thread: PyTorch's own modules 1, as matrix products by MKL
0.60, by oneDNN 0.53 (Zen 4). On Zen 5, whose vectors are twice as wide, oneDNN multiplies
twice as fast as MKL. EfficientNet, whose convolutions are depth-wise, gains nothing.

Limits of `MatrixConv2d`: float32 on a CPU, zero padding, no dilation, no groups and at most
`MOST_OUTPUTS` output pixels.
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

MOST_OUTPUTS = 9
"""Pixels of an output that is still computed as matrix products."""


def compute_on(threads: int, gpu: bool = False) -> None:
    """Have this process compute on so many threads and, without a GPU, multiply float32 matrices by oneDNN.

    PyTorch hands float32 matrices to oneDNN only where they may be rounded to bfloat16, which
    oneDNN does on processors with a unit for that. So rounding is allowed, and allowed no more
    where it is seen to happen.
    """
    torch.set_num_threads(threads)
    if gpu:
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    if not _is_exact():
        torch.set_float32_matmul_precision(before)


def place_matrix_convolutions(network: nn.Module, small_maps: Iterable[str]) -> None:
    """Put a `MatrixConv2d` in the place of each convolution that it can stand for, in place.

    Args:
        network: owns its modules alone; their parameters stay as they are.
        small_maps: names of convolutions with few output pixels (`Cut.small_maps`).
    """
    for name in small_maps:
        convolution = network.get_submodule(name)
        if isinstance(convolution, nn.Conv2d) and _is_supported(convolution):
            _replace(network, name, MatrixConv2d(convolution))


def _is_exact() -> bool:
    """Whether a product keeps digits that bfloat16 does not have."""
    numbers = 1 + torch.arange(256 * 256, dtype=torch.float32).view(256, 256) * 2**-20
    return torch.equal(numbers @ torch.eye(256), numbers)


class MatrixConv2d(nn.Module):
    """A convolution as matrix products, with the parameters of an `nn.Conv2d` under the same names.

    A 1×1 kernel is one linear layer over all pixels. With a larger one, outputs that see the
    same pixels are one linear layer, whose weight is put together from the kernel in every
    pass. The sums are those of nn.Conv2d in another order.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias
        self.kernel_size, self.stride = convolution.kernel_size, convolution.stride
        self.padding = tuple(int(size) for size in convolution.padding)

    def forward(self, maps: Tensor) -> Tensor:
        """(batch, channels, height, width) → (batch, outputs, rows, columns)."""
        pixels, taps = maps.permute(0, 2, 3, 1), self.weight.permute(0, 2, 3, 1)  # as they lie in memory
        if self.kernel_size == (1, 1) and self.padding == (0, 0):
            seen = pixels[:, :: self.stride[0], :: self.stride[1]]
            points = F.linear(seen.flatten(0, 2), taps.flatten(1), self.bias)
            return points.view(*seen.shape[:3], len(taps)).permute(0, 3, 1, 2)
        rows, columns = (
            _views(pixels.shape[1 + axis], self.kernel_size[axis], self.stride[axis], self.padding[axis])
            for axis in (0, 1)
        )
        outputs = _Windows.apply(pixels, taps, rows, columns)
        return (outputs if self.bias is None else outputs + self.bias).permute(0, 3, 1, 2)


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, key = name.rpartition(".")
    setattr(network.get_submodule(parent), key, module)


def _is_supported(convolution: nn.Conv2d) -> bool:
    return (
        convolution.groups == 1
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
