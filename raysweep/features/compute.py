"""The prefix pass: images through the frozen prefix, once, into the store.

This is the one way in which features are made, whoever asks: a task of the sweep on each
node before the trials, or a trial that needs features nobody else has. The work is cut into
shards of fixed size, so that every batch is the same whoever computes it; processes and threads
claim them one by one.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from threading import Event

import numpy as np
import torch
from torch import Tensor, nn

from ..data.augment import Augmentation
from ..data.sources import Images
from ..nets.cut import Cut
from ..nets.precision import InPrecision, gpu_settings
from ..nets.task import cut_of, outputs_of, task_of
from ..nets.tracing import channels_last
from ..recipe import Features, Precision, Trial
from .batch_norm import recalibrated
from .residency import Residency
from .spec import Spec
from .store import Making, Store, folder_of
from .stored import Stored, write_batch

SHARD = 256
"""Images that are claimed at a time."""
PIXELS_AT_ONCE = 2**18
"""Of a batch that passes through the frozen prefix: bounds its memory."""


@dataclass(frozen=True)
class OwnPrefix:
    """A prefix that one trial alone has, as earlier phases trained part of it."""

    network: nn.Module
    """Images → the tensors of the cut's frontier."""
    digest: str
    """Hash of its tensors."""


@dataclass(frozen=True)
class _Shard:
    split: str
    view: str
    """See `Spec`."""
    start: int
    end: int

    @property
    def name(self) -> str:
        view = hashlib.blake2b(self.view.encode(), digest_size=6).hexdigest() if self.view else "plain"
        return f"{self.split}-{view}-{self.start}"


def is_cacheable(phase: Trial, cut: Cut) -> bool:
    """Whether there is a prefix, it is a fixed function of the image, and images have a fixed set of views."""
    fixed = phase.model.batch_norm != "training" and not phase.train.mixes_images
    return cut.prefix is not None and fixed and Augmentation.of(phase.data).is_finite


def store_of(settings: Features) -> Store:
    """The store that the recipe's settings name."""
    budget = None if settings.budget_gb is None else int(settings.budget_gb * 1e9)
    return Store(folder_of(settings.dir), budget, settings.verify)


def views_of(phase: Trial) -> list[tuple[str, int]]:
    """Splits and numbers of the views that training reads: other ones than 0 of the training images alone."""
    return [("train", 0), ("val", 0), *(("train", number) for number in Augmentation.of(phase.data).numbers)]


def specs_of(phase: Trial, split: str, view: int, settings: Features, own: OwnPrefix | None = None) -> list[Spec]:
    """The stored features, one a frontier tensor, that a phase reads of a split in one view."""
    task, cut = task_of(phase), cut_of(phase)
    return [
        Spec(
            data=task.dataset.fingerprint,
            split=split,
            count=len(getattr(task.dataset, split)),
            image_size=task.preparation.image_size,
            statistics=task.preparation.statistics,
            view=Augmentation.of(phase.data).name(view),
            network=own.digest if own else task.digest,
            node=node,
            shape=shape,
            dtype=settings.stored_as,
            precision=settings.precision,
        )
        for node, shape in zip(cut.frontier, cut.shapes, strict=True)
    ]


def stored_split(
    phase: Trial,
    split: str,
    settings: Features,
    device: torch.device,
    own: OwnPrefix | None = None,
    residency: Residency | None = None,
) -> Stored | None:
    """A split's stored features, or None if they are not all there; they stay on the device if `residency` has room."""
    store = store_of(settings)
    numbers = [number for name, number in views_of(phase) if name == split]
    views = [[store.open(spec) for spec in specs_of(phase, split, number, settings, own)] for number in numbers]
    whole = [[array for array in view if array is not None] for view in views]
    if not views or any(len(a) != len(b) for a, b in zip(whole, views, strict=True)):
        return None
    nbytes = sum(array.nbytes for view in whole for array in view)
    return Stored(whole, settings.stored_as, device, store, residency is not None and residency.takes(nbytes))


def make_features(
    phases: Sequence[Trial],
    settings: Features,
    devices: Sequence[torch.device],
    own: OwnPrefix | None = None,
) -> Iterator[Progress]:
    """Make what is missing of the features of phases that share their task, yielding the progress of this process.

    Args:
        phases: one for each depth to store.
        settings: where and how to store.
        devices: a thread computes on each; the same one may be named several times.
        own: see `OwnPrefix`; `phases` is then that trial's one phase.

    Raises:
        OSError: there is no room for the features.
    """
    if not devices:
        raise ValueError("features need a device to be computed on")
    if own is None:
        recalibrated(phases[0], settings, devices[0])
    with store_of(settings).making(_specs(phases, settings, own)) as making:
        shards = _shards(making)
        total = sum(shard.end - shard.start for shard in shards)
        nbytes = sum(spec.nbytes for spec in making.files)
        done = 0
        yield Progress(done, total, nbytes)
        passes = [_Pass(phases[0], making.files, device, own, settings.precision) for device in devices if shards]
        with gpu_settings(settings.precision, devices[0]), closing(_claimed(making, shards, passes)) as counts:
            for count in counts:
                done += count
                yield Progress(done, total, nbytes)


def are_stored(phases: Sequence[Trial], settings: Features) -> bool:
    """Whether all features of phases that share their task are there; they are then the last to make way."""
    return not store_of(settings).missing(_specs(phases, settings, None))


def _specs(phases: Sequence[Trial], settings: Features, own: OwnPrefix | None) -> list[Spec]:
    specs = {
        spec: None for phase in phases for view in views_of(phases[0]) for spec in specs_of(phase, *view, settings, own)
    }
    return list(specs)


@dataclass(frozen=True)
class Progress:
    """How far the prefix pass is."""

    images: int
    """Passed by this process."""
    total: int
    """Of all processes together; nothing where all features were there."""
    nbytes: int
    """Of all features that are made."""


def _shards(making: Making) -> list[_Shard]:
    wanted = sorted({(spec.split, spec.view, spec.count) for spec in making.files})
    return [
        _Shard(split, view, start, min(start + SHARD, count))
        for split, view, count in wanted
        for start in range(0, count, SHARD)
    ]


def _claimed(making: Making, shards: Sequence[_Shard], passes: Sequence[_Pass]) -> Generator[int, None, None]:
    """Compute the shards that no other process does, yielding their numbers of images, until all are done."""
    stop, done = Event(), Queue[int]()

    def work(one: _Pass) -> None:
        for wait in (False, True):  # what others have taken on is looked at again at the end
            for shard in shards:
                if stop.is_set():
                    return
                with making.claim(shard.name, wait) as mine:
                    if mine:
                        done.put(one.compute(shard))

    def ended(future: Future[None]) -> None:
        if future.exception():
            stop.set()
        done.put(0)

    with ThreadPoolExecutor(max(1, len(passes))) as pool:
        running = [pool.submit(work, one) for one in passes]
        for future in running:
            future.add_done_callback(ended)
        try:
            left = len(running)
            while left:
                count = done.get()
                left -= count == 0
                if count:
                    yield count
            for future in running:
                future.result()
        finally:
            stop.set()


class _Pass:
    """The frozen prefix of one thread, writing every frontier tensor that is wanted."""

    def __init__(
        self,
        phase: Trial,
        files: dict[Spec, Path],
        device: torch.device,
        own: OwnPrefix | None,
        precision: Precision,
    ) -> None:
        self.task, self.device, self.precision = task_of(phase), device, precision
        self.files = files
        self.augmentation = Augmentation.of(phase.data)
        self.numbers = {self.augmentation.name(number): number for _, number in views_of(phase)}
        self.networks = {view: self._network(phase, own, view) for view in {(s.split, s.view) for s in files}}

    def _wanted(self, view: tuple[str, str]) -> list[Spec]:
        return [spec for spec in self.files if (spec.split, spec.view) == view]

    def _network(self, phase: Trial, own: OwnPrefix | None, view: tuple[str, str]) -> nn.Module:
        nodes = [spec.node for spec in self._wanted(view)]
        network = outputs_of(phase, nodes) if own is None else _Picked(own.network, cut_of(phase).frontier, nodes)
        if own is None and self.device.type != "cpu":
            network = copy.deepcopy(network)  # the process's own stays where the next trial expects it
        return InPrecision(channels_last(network.to(self.device)), self.precision).eval()

    @torch.no_grad()
    def compute(self, shard: _Shard) -> int:
        """Pass a shard's images through; returns their number."""
        wanted = self._wanted((shard.split, shard.view))
        arrays = [np.load(self.files[spec], mmap_mode="r+", allow_pickle=False) for spec in wanted]
        split = getattr(self.task.dataset, shard.split)
        network = self.networks[shard.split, shard.view]
        source = Images(
            split.pool, split.rows, self.task.preparation, self.device, network, augmentation=self.augmentation
        )
        size = max(8, min(128, PIXELS_AT_ONCE // self.task.preparation.image_size**2))
        for positions in torch.arange(shard.start, shard.end).split(size):
            views = self.augmentation.views(self.numbers[shard.view], len(positions))
            for spec, array, values in zip(wanted, arrays, source.batch(positions, views, False), strict=True):
                write_batch(array, int(positions[0]), values, spec.dtype)
        for array in arrays:
            array.flush()
        return shard.end - shard.start


class _Picked(nn.Module):
    """A prefix, giving the wanted of its frontier tensors."""

    def __init__(self, prefix: nn.Module, frontier: Sequence[str], wanted: Sequence[str]) -> None:
        super().__init__()
        self.prefix, self.places = prefix, [frontier.index(node) for node in wanted]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        frontier = self.prefix(images)
        return tuple(frontier[place] for place in self.places)
