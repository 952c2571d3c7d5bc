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
import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor

from raysweep import assembly
from raysweep.assembly import Parts, Shard
from raysweep.features import Spec, Stored
from raysweep.ledger import write_text
from raysweep.recipe import Features, Trial
from raysweep.sources import Joined
from raysweep.training import Labelled, Row, World, train


@dataclass(frozen=True)
class Sharing:
    """What a trial shares with others of its sweep."""

    features: Features
    stored: frozenset[str] = frozenset()
    """Names of the phases (`Trial.name` of each of `Trial.phases()`) that read stored features."""
    folder: Path | None = None
    """Where phases that several trials begin with are kept; None trains them anew."""


class Fit:
    """One trial's training; `parts` is the network as the last phase left it."""

    parts: Parts

    def __init__(self, trial: Trial, sharing: Sharing, world: World, *, refit: bool = False) -> None:
        """With `refit` the training images are train + val, and nothing is validated on."""
        self.trial, self.sharing, self.world, self.refit = trial, sharing, world, refit

    def rows(self) -> Iterator[Row]:
        """Train, yielding a row after every epoch; epochs are counted through all phases."""
        state: dict[str, Tensor] = {}
        epoch, phases = 0, self.trial.phases()
        for index, phase in enumerate(phases):
            rows: Iterable[Row]
            shared = index + 1 < len(phases) and self.world.size == 1 and self.sharing.folder is not None
            if shared:
                rows, state = self._shared(phases[: index + 1], state, epoch + 1)
            else:
                rows = self._phase(phase, index + 1, state, epoch + 1)
            for row in rows:
                epoch = row["epoch"]  # a phase may run out of patience before its last
                yield row
            if not shared:
                state = self._trained(state)

    def _phase(self, phase: Trial, number: int, state: dict[str, Tensor], first_epoch: int) -> Iterator[Row]:
        self.parts = assembly.assemble(phase, self.world.device, state)
        training, validation = self._splits(phase)
        about = {"phase": number, "cached": self._cached}
        if validation is not None:
            about["val_images"] = len(validation.labels)
        for row in train(
            self.parts.suffix,
            phase.train,
            phase.lr,
            phase.seed,
            training,
            validation,
            batch_norm=phase.model.batch_norm,
            flip="hflip" in phase.data.augment,
            first_epoch=first_epoch,
            world=self.world,
        ):
            yield row | about

    def _splits(self, phase: Trial) -> tuple[Labelled, Labelled | None]:
        first, second = self._labelled(phase, ("train", "val"))
        if not self.refit:
            return first, second
        return Labelled(Joined(first.source, second.source), torch.cat([first.labels, second.labels])), None

    def _labelled(self, phase: Trial, splits: Sequence[str]) -> list[Labelled]:
        """Splits as training sees them: from stored features where there are, else through the prefix."""
        stored = self._stored(phase, splits)
        if self.refit and "hflip" in phase.data.augment:
            stored[1] = None  # validation images are mirrored here alone: that view is not stored
        self._cached = all(source is not None for source in stored)
        device = self.world.device
        return [
            assembly.labelled(self.parts, phase, split, device, source)
            for split, source in zip(splits, stored, strict=True)
        ]

    def _stored(self, phase: Trial, splits: Sequence[str]) -> list[Stored | None]:
        """Stored features of the splits, made here if this node has none; None where there is no room for them."""
        settings = self.sharing.features
        if self.parts.own_prefix:  # trained by an earlier phase: no other trial has it
            pays = settings.cache != "never" and phase.train.epochs > 1
        else:
            pays = phase.name in self.sharing.stored
        if not pays or not assembly.is_cacheable(phase, self.parts.cut):
            return [None] * len(splits)
        found = self._open(phase, splits)
        if all(source is not None for source in found):
            return found
        try:
            compute = partial(self._compute, phase)
            assembly.make_features([phase], settings, compute, images=sys.maxsize, parts=self.parts)
        except OSError:  # no room: the prefix is computed as the images are asked for
            return [None] * len(splits)
        return self._open(phase, splits)

    def _open(self, phase: Trial, splits: Sequence[str]) -> list[Stored | None]:
        settings, device = self.sharing.features, self.world.device
        return [assembly.stored_source(phase, split, settings, device, self.parts) for split in splits]

    def _compute(self, phase: Trial, shards: list[Shard], files: dict[Spec, Path]) -> None:
        for shard in shards:
            assembly.compute_shard(phase, shard, files, self.world.device, self.parts)

    def _trained(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """All tensors that training has changed so far, on the CPU."""
        parts = self.parts
        moved = {} if parts.prefix is None or not parts.own_prefix else parts.prefix.state_dict()
        now = moved | parts.suffix.state_dict()
        return state | {name: value.detach().cpu().clone() for name, value in now.items()}

    def _shared(
        self, phases: Sequence[Trial], state: dict[str, Tensor], first_epoch: int
    ) -> tuple[list[Row], dict[str, Tensor]]:
        """The last of these phases, trained by whichever trial comes first: its rows, and the tensors after it."""
        assert self.sharing.folder is not None
        key = hashlib.sha256("".join([*(one.name for one in phases), str(self.refit)]).encode()).hexdigest()[:12]
        tensors = self.sharing.folder / f"{key}.safetensors"
        about = tensors.with_suffix(".json")
        tensors.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(tensors.with_suffix(".lock")):
            if about.is_file():
                rows = [row | {"seconds": 0.0, "shared": True} for row in json.loads(about.read_text(encoding="utf-8"))]
                return rows, load_file(tensors)
            rows = list(self._phase(phases[-1], len(phases), state, first_epoch))
            trained = self._trained(state)
            beside = tensors.with_suffix(".part")
            save_file({name: value.contiguous() for name, value in trained.items()}, beside)
            beside.replace(tensors)
            write_text(about, json.dumps(rows))
            return rows, trained


def shorten(trial: Trial, rows: Sequence[Row]) -> Trial:
    """The trial with as many epochs in each phase as there are rows of it."""
    counts = Counter(row["phase"] for row in rows)
    if not trial.train.phases:
        change: dict[str, Any] = {"epochs": counts.total()}
    else:
        phases = enumerate(trial.train.phases, start=1)
        change = {"phases": tuple(one.model_copy(update={"epochs": n}) for at, one in phases if (n := counts[at]))}
    return trial.model_copy(update={"train": trial.train.model_copy(update=change)})


def kept(rows: Sequence[Row], keep: str) -> list[Row]:
    """The rows up to the epoch that a trial counts with: its last, or that of the lowest validation loss."""
    if keep == "last":
        return list(rows)
    best = min(rows, key=lambda row: row["val_loss"] if math.isfinite(row["val_loss"]) else math.inf)
    return [row for row in rows if row["epoch"] <= best["epoch"]]
