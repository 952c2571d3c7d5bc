"""The processes that train one configuration together, so that one and many compute the same step.

A batch is dealt out image by image. The loss is a sum over images divided by the size of
the whole batch, batch norm uses the statistics of the whole batch, and what is drawn at
random is drawn for the whole batch.
"""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class World:
    """This process among those that train one configuration together."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    gpu_share: float = 1.0
    """Of its GPU that is this process's, up to 1: lanes share one through `resources.gpus_per_worker`."""

    def share(self, positions: Tensor) -> Tensor:
        """This rank's part of a batch."""
        return positions[self.rank :: self.size]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over ranks, on every rank, on the CPU."""
        if self.size == 1:
            return values.cpu()
        moved = values.to(self.device, copy=True)
        dist.all_reduce(moved)
        return moved.cpu()


def parallel(suffix: nn.Module, world: World) -> nn.Module:
    """The suffix such that its gradients are averaged over ranks."""
    if world.size == 1:
        return suffix
    options: dict[str, Any] = {"broadcast_buffers": False, "gradient_as_bucket_view": True}
    if world.device.type == "cuda":
        options["device_ids"] = [world.device]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.14 renames broadcast_buffers, 2.9 has no other name
        return DistributedDataParallel(suffix, **options)


def exchange(model: nn.Module, now: bool) -> AbstractContextManager[Any]:
    """A context in which gradients are averaged over ranks, or just summed up until the next time."""
    return nullcontext() if now or not isinstance(model, DistributedDataParallel) else model.no_sync()


def synchronised(network: nn.Module, world: World) -> nn.Module:
    """The network with batch norm over all ranks of GPUs; on CPUs `synchronised_batch_norm` sees to it.

    timm's converter, for PyTorch's own takes the activation out of timm's BatchNormAct2d.
    """
    return convert_sync_batchnorm(network) if world.size > 1 and world.device.type == "cuda" else network


def synchronised_batch_norm(world: World, images: int) -> AbstractContextManager[Any]:
    """A context in which batch norm on CPUs uses the statistics of the whole batch, of so many images."""
    counts = world.rank < images
    return _BatchNormOverRanks(counts) if world.size > 1 and world.device.type == "cpu" else nullcontext()


class _FromAllRanks(torch.autograd.Function):
    """The tensors of all ranks, stacked; what flows back is summed, as every rank's loss depends on every part."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, values.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous()
        dist.all_reduce(total)
        return total[dist.get_rank()]


class _BatchNormOverRanks(TorchFunctionMode):
    """Batch norm with the statistics of the whole batch, for ranks on CPUs.

    PyTorch's own SyncBatchNorm needs a GPU. This answers every call of
    `torch.nn.functional.batch_norm` in training mode, whichever module makes it.

    Args:
        counts: whether this rank has a share of the batch; else an image stands in, and is not counted.
    """

    def __init__(self, counts: bool) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.batch_norm:
            return func(*args, **kwargs)
        names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
        passed = dict(zip(names, args, strict=False)) | kwargs
        return self._normalise(**passed) if passed.get("training") else func(*args, **kwargs)

    def _normalise(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = True,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        values = input.float()  # under autocast the input may be of 16 bits; statistics never are
        axes = [axis for axis in range(input.dim()) if axis != 1]
        shape = [1, -1] + [1] * (input.dim() - 2)
        # each rank's mean and squares about it, joined (Chan et al. 1979): one exchange, and no cancellation
        own = self.counts * (input.numel() // input.shape[1])
        means = values.sum(axes) * (self.counts / max(1, own))
        squares = (values - means.view(shape)).square().sum(axes) * self.counts
        parts = _FromAllRanks.apply(torch.cat([means, squares, means.new_tensor([float(own)])]))
        counts, (means, squares) = parts[:, -1:].detach(), parts[:, :-1].chunk(2, dim=1)
        count = counts.sum()
        mean = (counts * means).sum(0) / count
        variance = (squares + counts * (means - mean).square()).sum(0) / count
        centred = values - mean.view(shape)
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean, momentum)
                running_var.lerp_(variance * count / (count - 1), momentum)
        normal = centred * (variance + eps).rsqrt().view(shape)
        if weight is not None and bias is not None:
            normal = normal * weight.view(shape) + bias.view(shape)
        return normal.to(input.dtype)
