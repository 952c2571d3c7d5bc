"""In which arithmetic a network computes: `train.precision` and `features.precision`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..recipe import SIXTEEN_BITS, Precision


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """A context for a forward pass: matrix products and convolutions have 16 bits where that is asked for."""
    if precision not in SIXTEEN_BITS:
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, precision))


@contextmanager
def gpu_settings(precision: Precision, device: torch.device) -> Iterator[None]:
    """A context for forward and backward passes: what a GPU is to round to, set back afterwards.

    PyTorch rounds the factors of convolutions to TF32 unless it is told not to: here float32
    means float32. cuDNN tries its algorithms for each shape once, as shapes come again and again.
    """
    if device.type != "cuda":
        yield
        return
    products, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    products.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
    cudnn.benchmark = True
    try:
        yield
    finally:
        products.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


class InPrecision(nn.Module):
    """A network that computes in a precision whatever surrounds it, and answers in float32.

    Args:
        network: images → a tuple of tensors.
        precision: of its matrix products and convolutions.
    """

    def __init__(self, network: nn.Module, precision: Precision) -> None:
        super().__init__()
        self.network, self.precision = network, precision

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """As the network."""
        with gpu_settings(self.precision, images.device), autocast(self.precision, images.device):
            found = self.network(images)
        return tuple(x.float() if x.dtype in (torch.bfloat16, torch.float16) else x for x in found)
