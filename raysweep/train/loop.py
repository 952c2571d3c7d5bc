"""Train one configuration, epoch by epoch: plain PyTorch, one rank or many.

Every random choice (order, flips, dropout) is drawn from the trial's seed, the epoch and
the step, for the whole batch, of which a rank takes every world-size-th image: one rank and many
compute the same step.

Train accuracy is measured like validation accuracy, in eval mode, on a fixed sample of
the training images of validation's size: their difference is the generalization gap.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.augment import Augmentation
from ..data.prefetch import CPU, prefetched
from ..nets.layers import BATCH_NORMS, set_modes
from ..nets.precision import autocast, gpu_settings
from ..recipe import Train, Trial
from .batches import Batch, batches, epoch_of, fetched_of, inputs_of, mix, steps_of
from .checkpoint import Checkpoint, optimizer_state, prefixed, restore_optimizer
from .classes import chances, class_weights
from .ddp import World, exchange, parallel, synchronised_batch_norm
from .ema import Averages
from .measures import Measures, StepMeasures
from .metrics import Labelled, Predictions, predict
from .mixing import mixing_of
from .optim import optimizer_of, scaled_rates, schedule_of, warmth
from .patience import Patience
from .randomness import Draws

GRAPHS = "reduce-overhead"
"""Of `train.compile`, and what PyTorch calls it: steps are recorded as CUDA graphs."""
FIRST_SCALE = 2.0**12
"""By which float16 gradients are scaled at first: with PyTorch's own 2 ** 16 the first steps often overflow, and are
skipped; a short training has none to spare."""


class DivergedError(ArithmeticError):
    """A loss is no number any more."""


class Training:
    """The training of one phase of one configuration.

    Args:
        phase: a trial of one phase: its learning rate, seed, batch-norm policy and settings.
        suffix: frontier tensors → (batch, classes), on the world's device; trained in place. Its
            frozen parameters have requires_grad False.
        training: the images to learn from.
        validation: the images to measure on; None for the final fit, which then measures nothing.
        classes: how many there are.
        world: the ranks that train together.
        draws: what the suffix's dropout draws from; None where it draws nothing.
        first_epoch: number of the first epoch, after earlier phases.
        halt: epochs after which to stop, fewer than the phase has; its schedule stays as long as it is.
        after_step: called after every optimizer step, when `state` may be asked for.
        distances: how many layers stand between each parameter and the output; see `optimizer_of`.
    """

    def __init__(
        self,
        phase: Trial,
        suffix: nn.Module,
        training: Labelled,
        validation: Labelled | None,
        classes: int,
        world: World | None = None,
        draws: Draws | None = None,
        first_epoch: int = 1,
        halt: int | None = None,
        after_step: Callable[[], None] = lambda: None,
        distances: Mapping[str, int] | None = None,
    ) -> None:
        self.phase, self.settings, self.world = phase, phase.train, world or World()
        self.suffix, self.training, self.validation, self.classes = suffix, training, validation, classes
        self.draws = draws or Draws(self.world)
        self.first_epoch, self.after_step = first_epoch, after_step
        self.last = self.settings.epochs if halt is None else min(halt, self.settings.epochs)
        self.trained = [parameter for parameter in suffix.parameters() if parameter.requires_grad]
        self.optimizer = optimizer_of(self.settings, suffix, phase.lr, distances)
        self.schedule = schedule_of(self.settings, self.optimizer)
        scaled = self.settings.precision == "float16"
        self.scaler = torch.amp.GradScaler(self.world.device.type, init_scale=FIRST_SCALE, enabled=scaled)
        self.model = parallel(_compiled(suffix, self.settings), self.world)
        weights = class_weights(self.settings, training.labels, classes)
        self.class_weights = None if weights is None else weights.to(self.world.device)
        self.chances = chances(self.settings, training.labels)
        self.sample = _sample(self.settings, training, validation)
        self.steps_an_epoch = steps_of(len(training), self.settings.batch_size)
        self.epochs_done = 0
        self.steps_done = 0
        self.patience = Patience(self.settings.patience)
        self.parts = self.settings.accumulate_steps
        """Into how many parts a batch is divided; their gradients are accumulated."""
        self.averages = None if self.settings.ema is None else Averages(suffix, self.settings.ema)
        self.epoch = EpochSoFar.of(self.world)
        self.predictions: Predictions | None = None
        """Of the validation images, after the last epoch."""

    @property
    def is_over(self) -> bool:
        """Whether there is no further epoch to train."""
        return self.epochs_done >= self.last or self.patience.is_out

    def epochs(self) -> Iterator[Measures]:
        """Train from where it stands, yielding what was measured after every epoch.

        Raises:
            DivergedError: a loss became infinite or not a number.
        """
        while not self.is_over:
            yield self._epoch()

    def state(self) -> Checkpoint:
        """What `restore` needs to go on from here, in the middle of an epoch too; called on every rank."""
        loss_sum = self.world.sum(self.epoch.loss_sum)
        optimizer = optimizer_state(self.optimizer)
        averages = {} if self.averages is None else self.averages.state()
        facts = {
            "epochs_done": self.epochs_done,
            "steps_done": self.steps_done,
            "parts": self.parts,
            "patience": [self.patience.best, self.patience.waited],
            "epoch": {
                "steps": self.epoch.steps,
                "seconds": self.epoch.elapsed(),
                "between": [one.model_dump() for one in self.epoch.between],
            },
            "optimizer": optimizer.facts,
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        return Checkpoint({**optimizer.tensors, **prefixed("ema", averages), "loss_sum": loss_sum}, facts)

    def restore(self, saved: Checkpoint) -> None:
        """Go on from where `state` was called. The network's own tensors are the caller's to restore."""
        facts = saved.facts
        self.epochs_done, self.steps_done = facts["epochs_done"], facts["steps_done"]
        self.parts = facts["parts"]
        self.patience.best, self.patience.waited = facts["patience"]
        restore_optimizer(self.optimizer, saved.tensors, facts["optimizer"])
        self.schedule.load_state_dict(facts["schedule"])
        self.scaler.load_state_dict(facts["scaler"])
        if self.averages is not None:
            self.averages.restore(saved.below("ema"))
        epoch = facts["epoch"]
        loss_sum = saved.tensors["loss_sum"].to(self.world.device) * (self.world.rank == 0)
        between = [StepMeasures.model_validate(one) for one in epoch["between"]]
        self.epoch = EpochSoFar(epoch["steps"], loss_sum, between, time.perf_counter() - epoch["seconds"])

    def _epoch(self) -> Measures:
        epoch, rate = self.first_epoch + self.epochs_done, max(group["lr"] for group in self.optimizer.param_groups)
        if not self.epoch.steps:
            self.epoch = EpochSoFar.of(self.world)
        set_modes(self.suffix, self.phase.model.batch_norm)
        self._steps(epoch)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of an epoch whose steps were done before a restore
            self.schedule.step()
        train_loss = self._finite(float(self.world.sum(self.epoch.loss_sum)) / len(self.training), "training", epoch)
        scores = self._scores(epoch)
        self.epochs_done += 1
        found = Measures(
            epoch=epoch,
            lr_epoch=rate * self._warmth(self.steps_done),
            train_loss=train_loss,
            val_by_step=tuple(self.epoch.between),
            seconds=self.epoch.elapsed(),
            **scores,
        )
        self.epoch = EpochSoFar.of(self.world)
        if self.is_over and self.averages is not None:
            self.averages.give(self.suffix)
        return found

    def _steps(self, epoch: int) -> None:
        """The optimizer steps of an epoch that are still to be done; nothing in them waits for a GPU."""
        parts = -(-len(self.training) // self.settings.batch_size)
        reads_ahead = self.training.source.place.type == "cpu"
        todo = prefetched(self._batches(epoch), self._fetched, self.world.device if reads_ahead else CPU)
        for number, (batch, fetched) in enumerate(todo, start=self.epoch.steps + 1):
            self.epoch.loss_sum += self._step(batch, fetched, mix(self.phase.seed, epoch, number))
            self.steps_done += 1
            self.epoch.steps = number
            if self._validates_now():
                self.epoch.between.append(self._validate_between(epoch - 1 + number / parts))
            self.after_step()

    def _batches(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch that are still to be trained on, mixed where that is asked for."""
        training, seed = self.training, self.phase.seed
        augmentation = Augmentation.of(self.phase.data)
        drawn = epoch_of(len(training), seed, epoch, augmentation, self.chances, training.labels)
        placed, done = drawn.placed(training.source, self.world.device), self.epoch.steps
        for number, batch in enumerate(batches(placed, self.settings.batch_size), start=1):
            if number > done:
                yield batch.mixed(mixing_of(self.settings, mix(seed, epoch, number)))

    def _fetched(self, batch: Batch) -> tuple[Any, ...] | None:
        """What the source fetches of this rank's share; None of a batch in parts, each of which is fetched later."""
        own = batch[self.world.rank :: self.world.size]
        return fetched_of(self.training.source, own) if self.parts == 1 and len(own) else None

    def _step(self, batch: Batch, fetched: tuple[Any, ...] | None, seed: int) -> Tensor:
        """One optimizer step on this rank's share of a batch; returns the share's summed loss.

        Where the device's memory is too small, the step is done once more with the batch in twice
        as many parts, if that is the same step.

        Raises:
            torch.OutOfMemoryError: the parts are too large as well, or would be another step.
        """
        while True:
            try:
                with gpu_settings(self.settings.precision, self.world.device):
                    loss = self._gradients(batch, fetched, seed)
                break
            except torch.OutOfMemoryError:
                if not self._may_divide(batch):
                    raise
                self.parts *= 2
        self._update()
        return loss

    def _gradients(self, batch: Batch, fetched: tuple[Any, ...] | None, seed: int) -> Tensor:
        """Gradients of the mean loss of a batch, part by part; returns the summed loss of this rank's shares."""
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.world.device)
        parts = self._parts_of(len(batch))
        for part in range(parts):
            some = batch[part::parts]
            self.draws.begin(seed, len(batch), part, parts)
            with synchronised_batch_norm(self.world, len(some)), exchange(self.model, now=part == parts - 1):
                total += self._backward(some, fetched if parts == 1 else None, len(batch), seed)
        return total

    def _backward(self, some: Batch, fetched: tuple[Any, ...] | None, images: int, seed: int) -> Tensor:
        """Gradients of this rank's share of some of a batch of so many images; returns their summed loss."""
        own = some[self.world.rank :: self.world.size]
        stands_in = not len(own) and self._may_stand_in()
        if stands_in:
            own = some[:1]
        torch.manual_seed(mix(seed, self.world.rank))  # of what `randomness` leaves alone
        loss = self._loss(own, fetched) * (not stands_in)
        # gradients are averaged over ranks; the step wants their sum over the whole batch's size
        self.scaler.scale(loss * (self.world.size / images)).backward()
        return loss.detach()

    def _parts_of(self, images: int) -> int:
        """Into how many parts to divide a batch; statistics of a part want two images."""
        return max(1, min(self.parts, images // 2 if self.parts > 1 and self._sees_batches else images))

    def _loss(self, own: Batch, fetched: tuple[Any, ...] | None) -> Tensor:
        """Summed loss of some training images."""
        inputs, share = inputs_of(self.training.source, own, fetched)
        if self.settings.compile == GRAPHS:
            torch.compiler.cudagraph_mark_step_begin()  # nothing of the last pass is needed any more
        with autocast(self.settings.precision, self.world.device):
            scores = self.model(*inputs)
            loss = self._cross_entropy(scores, own.labels)
            if own.partners is not None:
                loss = share * loss + (1 - share) * self._cross_entropy(scores, own.partners.labels)
            return loss

    def _cross_entropy(self, scores: Tensor, labels: Tensor | None) -> Tensor:
        """Summed over images, against their labels, smoothed and with the weights of their classes."""
        assert labels is not None
        weights = self.class_weights
        if weights is not None:  # a kept classifier has more outputs than there are classes
            weights = F.pad(weights, (0, scores.shape[1] - len(weights)), value=1.0).to(scores.dtype)
        smoothing = self.settings.label_smoothing
        return F.cross_entropy(scores, labels, weights, reduction="sum", label_smoothing=smoothing)

    def _update(self) -> None:
        """Change the parameters by their gradients."""
        if self.settings.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.trained, self.settings.clip_norm)
        with scaled_rates(self.optimizer, self._warmth(self.steps_done + 1)):
            self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.averages is not None:
            self.averages.update(self.suffix, self.steps_done + 1)

    def _warmth(self, step: int) -> float:
        """See `warmth`; steps are counted from 1."""
        return warmth(self.settings, step, self.steps_an_epoch)

    @property
    def _sees_batches(self) -> bool:
        """Whether statistics of the batch are used in training."""
        by_batch = any(isinstance(module, BATCH_NORMS) and module.training for module in self.suffix.modules())
        return by_batch or self.phase.model.batch_norm == "training"

    def _may_divide(self, batch: Batch) -> bool:
        """Whether a batch in more parts gives the same step: one rank, two images, no statistics of the batch."""
        undivided = self.parts == self.settings.accumulate_steps
        return undivided and self.world.size == 1 and len(batch) > 1 and not self._sees_batches

    def _may_stand_in(self) -> bool:
        """Whether an image may stand in for an empty share, counting for nothing.

        A third of all architectures (Swin, BEiT, EVA …) cannot take an empty batch. SyncBatchNorm
        can, and would count the image.
        """
        if self.world.device.type == "cpu":
            return True
        moving = self.phase.model.batch_norm == "training"
        return not moving and not any(isinstance(x, nn.SyncBatchNorm) and x.training for x in self.suffix.modules())

    @property
    def _measured(self) -> nn.Module:
        """The network that is measured."""
        return self.suffix if self.averages is None else self.averages.network

    def _validates_now(self) -> bool:
        every = self.settings.validate_every_steps
        return self.validation is not None and every is not None and self.steps_done % every == 0

    def _validate_between(self, at: float) -> StepMeasures:
        assert self.validation is not None
        found = predict(self._measured, self.validation, self.settings, self.world)
        set_modes(self.suffix, self.phase.model.batch_norm)
        loss = self._finite(found.loss, "validation", math.ceil(at))
        return StepMeasures(step=self.steps_done, epoch=at, val_loss=loss, val_accuracy=found.accuracy)

    def _scores(self, epoch: int) -> dict[str, Any]:
        """Scores on the training sample and on the validation images, by their names in `Measures`."""
        if self.validation is None:
            return {}
        train = predict(self._measured, self.training, self.settings, self.world, self.sample).scores(self.classes)
        self.predictions = predict(self._measured, self.validation, self.settings, self.world)
        val = self.predictions.scores(self.classes)
        self.patience.see(self._finite(val.loss, "validation", epoch))
        return {
            **{f"val_{name}": value for name, value in asdict(val).items()},
            **{f"train_{name}": value for name, value in asdict(train).items() if name != "loss"},
            "val_images": len(self.validation),
        }

    def _finite(self, loss: float, kind: str, epoch: int) -> float:
        if not math.isfinite(loss):
            raise DivergedError(
                f"the {kind} loss is {loss} in epoch {epoch}: lower lr={self.phase.lr} or set train.clip_norm"
            )
        return loss


@dataclass
class EpochSoFar:
    """How far an epoch is."""

    steps: int
    """Optimizer steps done."""
    loss_sum: Tensor
    """(,) float64, this rank's summed loss, on the device."""
    between: list[StepMeasures]
    started: float
    """By the performance counter, as if it had not been interrupted."""

    @classmethod
    def of(cls, world: World) -> EpochSoFar:
        """The beginning of an epoch."""
        zero = torch.zeros((), dtype=torch.float64, device=world.device)
        return cls(0, zero, [], time.perf_counter())

    def elapsed(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self.started


def _compiled(suffix: nn.Module, settings: Train) -> nn.Module:
    """The suffix as it is trained."""
    if not settings.compile:
        return suffix
    return torch.compile(suffix, mode=GRAPHS if settings.compile == GRAPHS else None)  # type: ignore[return-value]


def _sample(settings: Train, training: Labelled, validation: Labelled | None) -> Tensor | None:
    """Positions of the training images that train accuracy is measured on, the same in every trial; None for all."""
    if validation is None or settings.train_accuracy_on == "all":
        return None
    generator = torch.Generator().manual_seed(0)
    return torch.randperm(len(training), generator=generator)[: len(validation)].sort().values
