"""The same arithmetic in less time: memory layout, and which of PyTorch's kernels compute it on a CPU."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def arrange(module: nn.Module, device: torch.device) -> nn.Module:
    """Move a network, or a part of one, to the device and arrange it, in place, for its arithmetic there."""
    if device.type == "cpu":
        use_wide_matmul()
        for convolution in module.modules():
            if type(convolution) is nn.Conv2d and _has_plain_zero_padding(convolution):
                convolution.__class__ = WholeMapConv2d
    return module.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class WholeMapConv2d(nn.Conv2d):
    """A convolution that is computed as a linear layer where every output pixel sees the whole map.

    So do 3×3 kernels on maps of 2×2 pixels and of one, the last stages of a ResNet on images of
    64 and 32 pixels: five or eight of their nine products there are with padding. The linear
    layer from all values of the map to all outputs has the others alone. Its weight is put
    together from the convolution's, which stays the parameter, in every pass: with 256 images
    a batch that is 2 to 3 × faster on 2×2 pixels and 4 to 8 × on one, and pays from about 16
    (512 channels, AMD EPYC, one thread). The way depends on the map alone, never on the number
    of images, so that stored features are computed as those that are not.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """(batch, channels, height, width) → the same as nn.Conv2d."""
        height, width = maps.shape[2:]
        rows = _first_taps(height, self.kernel_size[0], self.stride[0], int(self.padding[0]))
        columns = _first_taps(width, self.kernel_size[1], self.stride[1], int(self.padding[1]))
        if not rows or not columns or maps.device.type != "cpu":
            return super().forward(maps)
        weight = _Windows.apply(self.weight, rows, columns, height, width)
        bias = None if self.bias is None else self.bias.repeat(len(rows) * len(columns))
        values = F.linear(maps.permute(0, 2, 3, 1).flatten(1), weight, bias)
        return values.view(len(maps), len(rows), len(columns), self.out_channels).permute(0, 3, 1, 2)


class _Windows(torch.autograd.Function):
    """A convolution's weight to the linear layer's: (outputs, inputs, kernel) → (pixels · outputs, pixels · inputs).

    The parts of the kernel that fall on the map, one for each output pixel, among each other.
    What flows back is summed in place, where autograd would fill a kernel of zeros for every part.
    """

    @staticmethod
    def forward(ctx: Any, kernel: Tensor, rows: list[int], columns: list[int], height: int, width: int) -> Tensor:
        ctx.shape = kernel.shape
        ctx.windows = [(slice(r, r + height), slice(c, c + width)) for r in rows for c in columns]
        taps = kernel.permute(0, 2, 3, 1)  # as they lie in memory: outputs, rows, columns, inputs
        return torch.stack([taps[:, r, c] for r, c in ctx.windows]).flatten(0, 1).flatten(1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        outputs, inputs, rows, columns = ctx.shape
        taps = gradients[0].new_zeros(outputs, rows, columns, inputs)
        for (r, c), part in zip(ctx.windows, gradients[0].chunk(len(ctx.windows)), strict=True):
            seen = taps[:, r, c]
            seen += part.view(seen.shape)
        return taps.permute(0, 3, 1, 2), None, None, None, None


def _has_plain_zero_padding(convolution: nn.Conv2d) -> bool:
    return (
        convolution.groups == 1
        and convolution.dilation == (1, 1)
        and convolution.padding_mode == "zeros"
        and not isinstance(convolution.padding, str)
    )


def _first_taps(size: int, kernel: int, stride: int, padding: int) -> list[int]:
    """For every output along an axis, the kernel's tap at the map's first pixel; empty unless all see all pixels."""
    outputs = (size + 2 * padding - kernel) // stride + 1
    first = [padding - output * stride for output in range(outputs)]
    return first if first and first[-1] >= 0 and first[0] + size <= kernel else []


@cache
def use_wide_matmul() -> None:
    """Have this process multiply float32 matrices with the whole width of the processor's vectors.

    PyTorch multiplies them with MKL, which on AMD's processors uses half of that width. oneDNN
    uses it all, but is given them only where they may be rounded to bfloat16, which it does
    where there is a unit for that. So it is allowed, tried on numbers that rounding would
    change, and taken back if it changed them.
    """
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    if not _is_exact():
        matmul.fp32_precision = before


def _is_exact() -> bool:
    numbers = 1 + torch.arange(256 * 256, dtype=torch.float32).view(256, 256) * 2**-20
    return torch.equal(numbers @ torch.eye(256), numbers)
