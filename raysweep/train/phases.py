"""Train a trial phase after phase, each at its own cut, with a fresh optimizer, from where the last one ended.

Most trials have one phase. Trials that share their first phases (a linear probe that every
depth starts from) train them once: the first to come writes the trained tensors and rows to
the run folder, the others read them.

A phase reads stored features where that was decided. If an earlier phase trained part of
its prefix, the features are the trial's own and are made when the phase begins.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors.torch import load_file
from torch import Tensor

from ..data.sources import joined
from ..features.compute import is_cacheable, make_features, stored_split
from ..features.residency import Residency
from ..features.stored import FeatureOverflowError, Stored
from ..files import NO_ROOM, write_text
from ..recipe import Features, Trial
from . import checkpoint
from .checkpoint import Checkpoint, prefixed, write_tensors
from .ddp import World
from .loop import Training
from .measures import Measures
from .metrics import Labelled, Predictions
from .network import SplitNetwork, assemble, labelled

PREDICTED = "predictions of validation/"
"""Begins the names of tensors that are none of the network's, in the file of a shared phase."""


@dataclass(frozen=True)
class Sharing:
    """What a trial shares with others of its sweep."""

    features: Features
    stored: frozenset[str] = frozenset()
    """Names of the phases (`Trial.name` of each of `Trial.phases()`) that read stored features."""
    folder: Path | None = None
    """Where phases that several trials begin with are kept; None trains them anew."""


@dataclass(frozen=True)
class Saving:
    """How a fit is saved in the middle of an epoch."""

    due: Callable[[], bool] = lambda: False
    """Whether to save now; asked after every optimizer step, with the same answer on every rank."""
    keep: Callable[[Checkpoint], None] = lambda checkpoint: None
    """Called with `Fit.state` on every rank."""


class Fit:
    """One trial's training; `network` is as the last phase left it.

    Args:
        trial: what is trained.
        sharing: what it shares with other trials.
        world: the ranks that train it.
        refit: the epochs of each phase of a final fit, which trains on train + val and validates on nothing.
            A phase of it halts after its epochs, at the learning rates that the trial had there.
        saved: where to go on from, as `state` gave it.
        saving: how it is saved in the middle of an epoch.
    """

    network: SplitNetwork

    def __init__(
        self,
        trial: Trial,
        sharing: Sharing,
        world: World,
        refit: Sequence[int] | None = None,
        saved: Checkpoint | None = None,
        saving: Saving | None = None,
    ) -> None:
        self.trial, self.sharing, self.world, self.refit = trial, sharing, world, refit
        self.saved, self.saving = saved, saving or Saving()
        self.predictions: Predictions | None = None
        """Of the validation images, after the last epoch; None in a refit."""
        self.is_over = False
        """Whether the last epoch was the trial's last."""
        self.prefix_precision = sharing.features.precision
        """Of a prefix that is computed as images are asked for."""
        self._stage: _Stage | None = None
        self._own_phase = False

    @property
    def can_be_saved(self) -> bool:
        """Whether a phase of this trial's own has begun; a shared phase is saved where it is shared."""
        return self._own_phase

    def state(self) -> Checkpoint:
        """What a fit of the same trial needs to go on from here, asked for after an epoch or by `Saving.keep`."""
        assert self._stage is not None, "nothing has been trained yet"
        return self._stage.state()

    def epochs(self) -> Iterator[Measures]:
        """Train, yielding what was measured after every epoch; epochs are counted through all phases."""
        phases = self.trial.phases() if self.refit is None else self.trial.phases()[: len(self.refit)]
        saved = self.saved
        state = {} if saved is None else saved.below("before")
        first, epoch = (0, 0) if saved is None else (saved.facts["phase"] - 1, saved.facts["epochs_before"])
        for index, phase in list(enumerate(phases))[first:]:
            if index + 1 < len(phases) and self.world.size == 1 and self.sharing.folder is not None:
                self._own_phase = False
                shared = self._shared(phases[: index + 1], state, epoch + 1)
                for measures, self.predictions in zip(shared.epochs, shared.predictions, strict=True):
                    epoch = measures.epoch
                    yield measures
                state = shared.state
            else:
                self._own_phase = True
                for measures in self._phase(phase, index + 1, state, epoch + 1, saved, self._keep):
                    epoch = measures.epoch  # a phase may run out of patience before its last
                    yield measures
                assert self._stage is not None
                epoch = self._stage.last_epoch
                state = state | self.network.state()
            saved = None

    def _keep(self) -> None:
        self.saving.keep(self.state())

    def _phase(
        self,
        phase: Trial,
        number: int,
        state: Mapping[str, Tensor],
        first_epoch: int,
        saved: Checkpoint | None,
        keep: Callable[[], None],
    ) -> Iterator[Measures]:
        self._stage = None  # what the last phase kept on its device makes way
        trained = {} if saved is None else saved.below("network")
        self.network = assemble(phase, self.world, {**state, **trained}, self.sharing.features)
        training, validation, cached = self._splits(phase)
        halt = None if self.refit is None else self.refit[number - 1]
        classes = len(self.network.task.dataset.class_names)
        network = self.network
        run = Training(
            phase, network.suffix, training, validation, classes, self.world, network.draws, first_epoch, halt,
            after_step=lambda: keep() if self.saving.due() else None, distances=network.distances(),
        )  # fmt: skip
        if saved is not None:
            run.restore(saved)
        self._stage = _Stage(number, state, network, run)
        for measures in run.epochs():
            self.predictions = run.predictions
            self.is_over = run.is_over and number == len(self.trial.phases())
            yield measures.model_copy(update={"phase": number, "cached": cached})

    def _splits(self, phase: Trial) -> tuple[Labelled, Labelled | None, bool]:
        """Images to train on and to validate on, and whether both come from stored features."""
        stored = self._stored(phase)
        if self.refit is not None and phase.data.augment:
            stored[1] = None  # validation images are augmented here alone: those views are not stored
        first, second = (
            labelled(self.network, phase, split, self.world.device, source, self.prefix_precision)
            for split, source in zip(("train", "val"), stored, strict=True)
        )
        cached = all(source is not None for source in stored)
        if self.refit is None:
            return first, second, cached
        return Labelled(joined(first.source, second.source), torch.cat([first.labels, second.labels])), None, cached

    def _stored(self, phase: Trial) -> list[Stored | None]:
        """Stored features of train and val, made here if this node has none; None where there is no room for them."""
        settings = self.sharing.features
        if self.network.has_own_prefix:  # trained by an earlier phase: no other trial has it
            pays = settings.cache != "never" and phase.train.epochs > 1
        else:
            pays = phase.name in self.sharing.stored
        if not pays or not is_cacheable(phase, self.network.cut):
            return [None, None]
        found = self._open(phase)
        if None not in found:
            return found
        try:
            for _ in make_features([phase], settings, [self.world.device], self.network.own_prefix()):
                pass
        except FeatureOverflowError:  # the prefix is computed as the images are asked for, so that it is sound
            self.prefix_precision = "float32"
            return [None, None]
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            return [None, None]
        return self._open(phase)

    def _open(self, phase: Trial) -> list[Stored | None]:
        settings, device, own = self.sharing.features, self.world.device, self.network.own_prefix()
        residency = Residency(device, self.world.gpu_share)
        return [stored_split(phase, split, settings, device, own, residency) for split in ("train", "val")]

    def _shared(self, phases: Sequence[Trial], state: dict[str, Tensor], first_epoch: int) -> SharedPhase:
        """The last of these phases, trained by whichever trial comes first."""
        assert self.sharing.folder is not None
        names = "".join([*(phase.name for phase in phases), str(self.refit)])
        path = self.sharing.folder / hashlib.sha256(names.encode()).hexdigest()[:12]
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if path.with_suffix(".json").is_file():
                return SharedPhase.read(path)
            found = self._train_shared(phases, state, first_epoch, checkpoint.Folder(path))
            found.write(path)
            checkpoint.remove_all(checkpoint.Folder(path))
            return found

    def _train_shared(
        self, phases: Sequence[Trial], state: dict[str, Tensor], first_epoch: int, files: checkpoint.Files
    ) -> SharedPhase:
        """Train the last of these phases, from its checkpoint if a trial that was ended has left one."""
        saved = checkpoint.read(files)
        found = SharedPhase.unfinished(saved)
        epochs, predictions = list(found.epochs), list(found.predictions)

        def keep() -> None:
            own, so_far = self.state(), SharedPhase(tuple(epochs), {}, tuple(predictions))
            facts = {**own.facts, "measures": so_far.rows()}
            with suppress(OSError):  # without it the phase would begin anew
                checkpoint.write(files, Checkpoint({**own.tensors, **so_far.tensors()}, facts))

        for measures in self._phase(phases[-1], len(phases), state, first_epoch, saved, keep):
            epochs.append(measures)
            predictions.append(self.predictions)
            keep()
        return SharedPhase(tuple(epochs), state | self.network.state(), tuple(predictions))


@dataclass(frozen=True)
class _Stage:
    """The phase that is being trained."""

    number: int
    before: Mapping[str, Tensor]
    """Tensors that earlier phases trained."""
    network: SplitNetwork
    training: Training

    @property
    def last_epoch(self) -> int:
        """Number of the last epoch that is done."""
        return self.training.first_epoch - 1 + self.training.epochs_done

    def state(self) -> Checkpoint:
        """See `Fit.state`."""
        own = self.training.state()
        tensors = {**own.tensors, **prefixed("network", self.network.state()), **prefixed("before", self.before)}
        place = {"phase": self.number, "epochs_before": self.training.first_epoch - 1}
        return Checkpoint(tensors, {**own.facts, **place})


@dataclass(frozen=True)
class SharedPhase:
    """What a phase that several trials begin with came to."""

    epochs: tuple[Measures, ...]
    state: dict[str, Tensor]
    """All tensors trained so far, by name."""
    predictions: tuple[Predictions | None, ...]
    """Of the validation images, after each of the epochs; None in a refit."""

    def rows(self) -> list[dict[str, Any]]:
        """The epochs as plain values."""
        return [measures.model_dump(mode="json") for measures in self.epochs]

    def tensors(self) -> dict[str, Tensor]:
        """The trained tensors, and the predictions by names that begin with `PREDICTED`."""
        predicted = {
            f"{PREDICTED}{number}/{name}": value.contiguous()
            for number, one in enumerate(self.predictions)
            for name, value in ({} if one is None else vars(one)).items()
        }
        return {name: value.contiguous() for name, value in self.state.items()} | predicted

    def write(self, path: Path) -> None:
        """Write files whose names begin with `path`; the JSON file comes last, and says that all are there."""
        write_tensors(path.with_suffix(".safetensors"), self.tensors())
        write_text(path.with_suffix(".json"), json.dumps(self.rows()))

    @classmethod
    def read(cls, path: Path) -> SharedPhase:
        """What `write` wrote. Its seconds count for every trial, so that cost does not tell who came first."""
        rows = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        return cls.of([row | {"shared": True} for row in rows], load_file(path.with_suffix(".safetensors")))

    @classmethod
    def unfinished(cls, saved: Checkpoint | None) -> SharedPhase:
        """The epochs in a checkpoint of the phase, and their predictions."""
        if saved is None:
            return cls((), {}, ())
        predicted = {name: x for name, x in saved.tensors.items() if name.startswith(PREDICTED)}
        return cls.of(saved.facts["measures"], predicted)

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], tensors: dict[str, Tensor]) -> SharedPhase:
        """The inverse of `rows` and `tensors`."""
        predicted: list[dict[str, Tensor]] = [{} for _ in rows]
        for key in [name for name in tensors if name.startswith(PREDICTED)]:
            number, _, name = key.removeprefix(PREDICTED).partition("/")
            predicted[int(number)][name] = tensors.pop(key)
        epochs = tuple(Measures.model_validate(row) for row in rows)
        return cls(epochs, tensors, tuple(Predictions(**one) if one else None for one in predicted))
