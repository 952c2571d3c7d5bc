"""Train a trial phase after phase, each at its own cut, with a fresh optimizer, from where the last one ended.

Most trials have one phase. Trials that share their first phases (a linear probe that every
depth starts from) train them once: the first to come writes the trained tensors and rows to
the run folder, the others read them.

A phase reads stored features where that was decided. If an earlier phase trained part of
its prefix, the features are the trial's own and are made when the phase begins.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..data.sources import joined
from ..features.compute import is_cacheable, make_features, stored_split
from ..features.stored import FeatureOverflowError, Stored
from ..files import write_text
from ..recipe import Features, Trial
from .ddp import World
from .loop import Training
from .measures import Measures
from .metrics import Labelled, Predictions
from .network import SplitNetwork, assemble, labelled

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
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


class Fit:
    """One trial's training; `network` is as the last phase left it."""

    network: SplitNetwork

    def __init__(self, trial: Trial, sharing: Sharing, world: World, refit: Sequence[int] | None = None) -> None:
        """With `refit`, the epochs of each phase, train + val are trained on and nothing is validated on.

        A phase of a refit halts after its epochs, at the learning rates that the trial had there.
        """
        self.trial, self.sharing, self.world, self.refit = trial, sharing, world, refit
        self.predictions: Predictions | None = None
        """Of the validation images, after the last epoch; None in a refit."""
        self.is_over = False
        """Whether the last epoch was the trial's last."""

    def epochs(self) -> Iterator[Measures]:
        """Train, yielding what was measured after every epoch; epochs are counted through all phases."""
        state: dict[str, Tensor] = {}
        epoch, phases = 0, self.trial.phases() if self.refit is None else self.trial.phases()[: len(self.refit)]
        for index, phase in enumerate(phases):
            if index + 1 < len(phases) and self.world.size == 1 and self.sharing.folder is not None:
                shared = self._shared(phases[: index + 1], state, epoch + 1)
                for measures, self.predictions in zip(shared.epochs, shared.predictions, strict=True):
                    epoch = measures.epoch
                    yield measures
                state = shared.state
            else:
                for measures in self._phase(phase, index + 1, state, epoch + 1):
                    epoch = measures.epoch  # a phase may run out of patience before its last
                    yield measures
                state = state | self.network.state()

    def _phase(self, phase: Trial, number: int, state: dict[str, Tensor], first_epoch: int) -> Iterator[Measures]:
        self.network = assemble(phase, self.world, state)
        training, validation, cached = self._splits(phase)
        halt = None if self.refit is None else self.refit[number - 1]
        classes = len(self.network.task.dataset.class_names)
        network = self.network
        run = Training(
            phase, network.suffix, training, validation, classes, self.world, network.draws, first_epoch, halt
        )
        for measures in run.epochs():
            self.predictions = run.predictions
            self.is_over = run.is_over and number == len(self.trial.phases())
            yield measures.model_copy(update={"phase": number, "cached": cached})

    def _splits(self, phase: Trial) -> tuple[Labelled, Labelled | None, bool]:
        """Images to train on and to validate on, and whether both come from stored features."""
        stored = self._stored(phase)
        if self.refit is not None and "hflip" in phase.data.augment:
            stored[1] = None  # validation images are mirrored here alone: that view is not stored
        first, second = (
            labelled(self.network, phase, split, self.world.device, source)
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
        except FeatureOverflowError:
            return [None, None]  # the prefix is computed as the images are asked for
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            return [None, None]
        return self._open(phase)

    def _open(self, phase: Trial) -> list[Stored | None]:
        settings, device, own = self.sharing.features, self.world.device, self.network.own_prefix()
        return [stored_split(phase, split, settings, device, own) for split in ("train", "val")]

    def _shared(self, phases: Sequence[Trial], state: dict[str, Tensor], first_epoch: int) -> SharedPhase:
        """The last of these phases, trained by whichever trial comes first."""
        assert self.sharing.folder is not None
        names = "".join([*(phase.name for phase in phases), str(self.refit)])
        path = self.sharing.folder / hashlib.sha256(names.encode()).hexdigest()[:12]
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if path.with_suffix(".json").is_file():
                return SharedPhase.read(path)
            epochs: list[Measures] = []
            predictions: list[Predictions | None] = []
            for measures in self._phase(phases[-1], len(phases), state, first_epoch):
                epochs.append(measures)
                predictions.append(self.predictions)
            found = SharedPhase(tuple(epochs), state | self.network.state(), tuple(predictions))
            found.write(path)
            return found


@dataclass(frozen=True)
class SharedPhase:
    """What a phase that several trials begin with came to."""

    epochs: tuple[Measures, ...]
    state: dict[str, Tensor]
    """All tensors trained so far, by name."""
    predictions: tuple[Predictions | None, ...]
    """Of the validation images, after each of the epochs; None in a refit."""

    def write(self, path: Path) -> None:
        """Write files whose names begin with `path`; the JSON file comes last, and says that all are there."""
        predicted = {
            f"{PREDICTED}{number}/{name}": value
            for number, one in enumerate(self.predictions)
            for name, value in ({} if one is None else vars(one)).items()
        }
        beside = path.with_suffix(".part")
        save_file({name: value.contiguous() for name, value in (self.state | predicted).items()}, beside)
        beside.replace(path.with_suffix(".safetensors"))
        rows = [measures.model_dump(mode="json") for measures in self.epochs]
        write_text(path.with_suffix(".json"), json.dumps(rows))

    @classmethod
    def read(cls, path: Path) -> SharedPhase:
        """What `write` wrote. Its seconds count for every trial, so that cost does not tell who came first."""
        tensors = load_file(path.with_suffix(".safetensors"))
        rows = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        predicted: list[dict[str, Tensor]] = [{} for _ in rows]
        for key in [name for name in tensors if name.startswith(PREDICTED)]:
            number, _, name = key.removeprefix(PREDICTED).partition("/")
            predicted[int(number)][name] = tensors.pop(key)
        epochs = tuple(Measures.model_validate(row | {"shared": True}) for row in rows)
        return cls(epochs, tensors, tuple(Predictions(**one) if one else None for one in predicted))
