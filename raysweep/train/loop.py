"""Train one configuration, one row an epoch: plain PyTorch, one rank or many.

Every random choice of an epoch (order, flips, dropout) is drawn from the trial's seed
and the epoch, for the whole batch, of which a rank takes every world-size-th image. The
loss is a sum over images divided by the size of the whole batch, and batch norm uses the
statistics of the whole batch, so one rank and many compute the same step.

Train accuracy is measured like validation accuracy, in eval mode, on a fixed sample of
the training images of validation's size: their difference is the generalization gap.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from raysweep.depth import set_modes
from raysweep.kernels import arrange
from raysweep.recipe import Train
from raysweep.sources import Source

Row = dict[str, Any]
EVAL_BATCH = 128


class DivergedError(ArithmeticError):
    """The training loss is no number any more."""


@dataclass(frozen=True)
class World:
    """This process among those that train one configuration together."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

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


@dataclass(frozen=True)
class Labelled:
    """A split as training sees it."""

    source: Source
    labels: Tensor
    """(n,) int64, on the CPU."""


def train(
    suffix: nn.Module,
    settings: Train,
    lr: float,
    seed: int,
    training: Labelled,
    validation: Labelled | None,
    *,
    batch_norm: str = "frozen",
    flip: bool = False,
    first_epoch: int = 1,
    world: World | None = None,
) -> Iterator[Row]:
    """Train `suffix` in place and yield a row after every epoch.

    Args:
        suffix: frontier tensors → (batch, classes); its frozen parameters have requires_grad False.
        settings: epochs, optimizer, schedule and the like.
        lr: the learning rate that the schedule starts from.
        seed: draws order, flips and dropout.
        training: the images to learn from.
        validation: the images to measure on; None for the final fit, whose rows then carry training alone.
        batch_norm: see `depth.set_modes`.
        flip: mirror every training image with probability one half.
        first_epoch: what the first row's epoch is called, after earlier phases.
        world: the ranks that train together.

    Raises:
        DivergedError: the loss became infinite or not a number.
    """
    world = world or World()
    suffix = arrange(suffix, world.device)
    trained = [parameter for parameter in suffix.parameters() if parameter.requires_grad]
    optimizer = _optimizer(settings, trained, lr)
    schedule = _schedule(settings, optimizer)
    scaler = torch.amp.GradScaler(world.device.type, enabled=settings.autocast == "float16")
    model = _parallel(torch.compile(suffix) if settings.compile else suffix, world)  # type: ignore[arg-type]
    sample = _sample(settings, training, validation)
    patience = _Patience(settings.patience)
    steps = 0
    for epoch in range(first_epoch, first_epoch + settings.epochs):
        torch.manual_seed(_mix(seed, epoch, world.rank))  # of dropout
        started = time.perf_counter()
        rate = optimizer.param_groups[0]["lr"]
        set_modes(suffix, batch_norm)
        loss_sum = torch.zeros((), dtype=torch.float64, device=world.device)
        between: list[dict[str, float]] = []
        count = len(training.labels)
        batches = _batches(count, settings.batch_size, seed, epoch, flip)
        for number, (batch, flips) in enumerate(batches, start=1):
            with _synchronised_batch_norm(world):
                loss_sum += _step(model, trained, training, batch, flips, settings, optimizer, scaler, world)
            steps += 1
            if validation is not None and settings.validate_every_steps and steps % settings.validate_every_steps == 0:
                loss, accuracy = evaluate(suffix, validation, settings, world)
                at = epoch - 1 + number / -(-count // settings.batch_size)
                between.append({"step": steps, "epoch": at, "val_loss": loss, "val_accuracy": accuracy})
                set_modes(suffix, batch_norm)
        schedule.step()
        train_loss = float(world.sum(loss_sum)) / count
        if not math.isfinite(train_loss):
            raise DivergedError(
                f"the training loss is {train_loss} in epoch {epoch}: lower lr={lr} or set train.clip_norm"
            )
        row: Row = {"epoch": epoch, "train_loss": train_loss, "lr_epoch": rate}
        if validation is not None:
            _, row["train_accuracy"] = evaluate(suffix, training, settings, world, sample)
            row["val_loss"], row["val_accuracy"] = evaluate(suffix, validation, settings, world)
        if between:
            row["val_by_step"] = between
        yield row | {"seconds": time.perf_counter() - started}
        if validation is not None and patience.is_out(row["val_loss"]):
            return


def evaluate(
    suffix: nn.Module, split: Labelled, settings: Train, world: World, positions: Tensor | None = None
) -> tuple[float, float]:
    """Mean cross-entropy and accuracy in eval mode over all ranks, each image counted once."""
    scores, labels = predict(suffix, split, settings, world, positions)
    sums = torch.tensor(
        [F.cross_entropy(scores, labels, reduction="sum"), (scores.argmax(1) == labels).sum(), len(labels)],
        dtype=torch.float64,
    )
    loss, right, count = world.sum(sums).tolist()
    return loss / count, right / count


@torch.no_grad()
def predict(
    suffix: nn.Module, split: Labelled, settings: Train, world: World, positions: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Logits (n, classes) and labels (n,) of this rank's share of the images, on the CPU, in eval mode."""
    suffix.eval()
    own = world.share(torch.arange(len(split.labels)) if positions is None else positions)
    size = settings.eval_batch_size or max(settings.batch_size, EVAL_BATCH)
    scores = []
    for chunk in own.split(size):
        inputs = split.source.batch(chunk, None, training=False)
        with _autocast(settings, world.device):
            scores.append(suffix(*inputs).float().cpu())
    classes = scores[0].shape[1] if scores else 1
    return torch.cat(scores) if scores else torch.zeros(0, classes), split.labels[own]


def _step(
    model: nn.Module,
    trained: list[nn.Parameter],
    training: Labelled,
    batch: Tensor,
    flips: Tensor | None,
    settings: Train,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    world: World,
) -> Tensor:
    """One optimizer step on this rank's share of a batch; returns the share's summed loss."""
    own = world.share(batch)
    inputs = training.source.batch(own, None if flips is None else world.share(flips), training=True)
    labels = training.labels[own].to(world.device, non_blocking=True)
    optimizer.zero_grad(set_to_none=True)
    with _autocast(settings, world.device):
        loss = F.cross_entropy(model(*inputs), labels, reduction="sum", label_smoothing=settings.label_smoothing)
    # DistributedDataParallel averages gradients over ranks; the step wants their sum over the whole batch's size
    scaler.scale(loss * (world.size / len(batch))).backward()
    if settings.clip_norm is not None:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(trained, settings.clip_norm)
    scaler.step(optimizer)
    scaler.update()
    return loss.detach()


def _mix(*numbers: int) -> int:
    """One seed from several numbers."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 1_000_003 + number + 1) % (2**63 - 1)
    return mixed


def _batches(count: int, size: int, seed: int, epoch: int, flip: bool) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The epoch's batches of positions, with which of them to mirror; no batch of one image, for batch norm's sake."""
    generator = torch.Generator().manual_seed(_mix(seed, epoch))
    order = torch.randperm(count, generator=generator)
    flips = torch.rand(count, generator=generator) < 0.5 if flip else None
    starts = list(range(0, count, size))
    if len(starts) > 1 and count - starts[-1] == 1:
        starts.pop()
    for start, end in zip(starts, [*starts[1:], count], strict=True):
        yield order[start:end], None if flips is None else flips[start:end]


def _sample(settings: Train, training: Labelled, validation: Labelled | None) -> Tensor | None:
    """Positions of the training images that train accuracy is measured on, the same in every trial; None for all."""
    if validation is None or settings.train_accuracy_on == "all":
        return None
    count, wanted = len(training.labels), len(validation.labels)
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:wanted].sort().values


def _optimizer(settings: Train, trained: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    common: dict[str, Any] = {"lr": lr, "weight_decay": settings.weight_decay, "fused": True}  # one pass over memory
    if settings.optimizer == "sgd":
        return torch.optim.SGD(trained, momentum=settings.momentum, **common)
    return (torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam)(trained, **common)


def _schedule(settings: Train, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    if settings.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=settings.epochs)
    if settings.schedule == "step":
        return torch.optim.lr_scheduler.StepLR(optimizer, settings.step_epochs, settings.step_gamma)
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def _autocast(settings: Train, device: torch.device) -> AbstractContextManager[Any]:
    if settings.autocast == "none":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, settings.autocast))


class _Patience:
    """Counts epochs without a lower validation loss."""

    def __init__(self, epochs: int | None) -> None:
        self.epochs, self.best, self.waited = epochs, math.inf, 0

    def is_out(self, loss: float) -> bool:
        self.waited = 0 if loss < self.best else self.waited + 1
        self.best = min(self.best, loss)
        return self.epochs is not None and self.waited >= self.epochs


def _parallel(suffix: nn.Module, world: World) -> nn.Module:
    if world.size == 1:
        return suffix
    options: dict[str, Any] = {"broadcast_buffers": False, "gradient_as_bucket_view": True}
    if world.device.type == "cuda":
        suffix = nn.SyncBatchNorm.convert_sync_batchnorm(suffix)
        options["device_ids"] = [world.device]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.14 renames broadcast_buffers, 2.9 has no other name
        return DistributedDataParallel(suffix, **options)


def _synchronised_batch_norm(world: World) -> AbstractContextManager[Any]:
    return _BatchNormOverRanks() if world.size > 1 and world.device.type == "cpu" else nullcontext()


class _SumOverRanks(torch.autograd.Function):
    """The sum of a tensor over ranks; what flows back is summed too, as every rank's loss depends on every part."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous()
        dist.all_reduce(total)
        return total


class _BatchNormOverRanks(TorchFunctionMode):
    """Batch norm with the statistics of the whole batch, for ranks on CPUs.

    PyTorch's own SyncBatchNorm needs a GPU. This answers every call of
    `torch.nn.functional.batch_norm` in training mode, whichever module makes it.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.batch_norm:
            return func(*args, **kwargs)
        names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
        given = dict(zip(names, args, strict=False)) | kwargs
        return self._normalise(**given) if given.get("training") else func(*args, **kwargs)

    @staticmethod
    def _normalise(
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
        # sums about a point near the mean, the same on every rank: one exchange, and no cancellation
        shift = torch.zeros(input.shape[1]) if running_mean is None else running_mean.detach().clone()
        shifted = values - shift.view(shape)
        own = torch.tensor([float(input.numel() // input.shape[1])])
        sums = _SumOverRanks.apply(torch.cat([shifted.sum(axes), shifted.square().sum(axes), own]))
        count = sums[-1].detach()
        offset, square = sums[:-1].view(2, -1) / count
        mean, variance = shift + offset, square - offset.square()
        centred = values - mean.view(shape)
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean, momentum)
                running_var.lerp_(variance * count / (count - 1), momentum)
        normal = centred * (variance + eps).rsqrt().view(shape)
        if weight is not None and bias is not None:
            normal = normal * weight.view(shape) + bias.view(shape)
        return normal.to(input.dtype)
