"""Whether storing a cut's features pays: decided from measured rates before the trials start.

Without features every epoch of every trial passes its images through the frozen prefix
again; with them the images pass once and what crosses the cut is read each time. A late
cut is small and saves much. A wide early cut can take longer to read than to compute, or
not fit. Rates are measured on this machine: seconds an image of every node of the network
(all zeros: arithmetic does not care), and how fast stored rows are read, from
memory while all features fit there, else from disk.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import psutil

from raysweep import datasets, depth
from raysweep.assembly import is_cacheable, store_of, views_of, weights_seed
from raysweep.features import STORED_AS
from raysweep.plan import Planned, outline
from raysweep.recipe import Features, Model, Recipe, Trial, depth_label

PROBE_BYTES = 1 << 23
"""Written and read back to measure the disk and the memory."""
MARGIN_S = 1.0
"""A smaller predicted loss is noise: stored, so that a small sweep goes the same way, bit for bit, each time."""
TIMED_PIXELS = 2**17
"""Of the batch on which a network is timed."""


@dataclass(frozen=True)
class Rates:
    """What this machine does in a second."""

    memory_bytes: float
    """Bytes of stored rows gathered from the page cache."""
    disk_bytes: float
    """Bytes read from the disk."""


@dataclass(frozen=True)
class Decision:
    """One cut of one backbone, and whether its features are stored."""

    backbone: str
    depth_label: str
    trials: tuple[str, ...]
    """Names of the trials that train at this cut."""
    phases: tuple[str, ...]
    """Names of the phases of those trials that do (`Trial.phases`)."""
    mebibytes: float
    """Size of the features of all splits and views."""
    prefix_ms_per_image: float
    images_computed: int
    """Images that pass through the prefix once if the features are stored."""
    images_an_epoch: int
    """Images that a trial asks for in an epoch: to train on and to measure on."""
    images_read: int
    """Images that the trials ask for in all their epochs, if none is stopped early."""
    predicted_saving_s: float
    """Seconds of one lane."""
    store: bool
    reason: str


def decide(planned: Sequence[Planned], recipe: Recipe) -> list[Decision]:
    """A decision for every cut of the sweep, in the order of its trials."""
    settings = recipe.features
    by_cut: dict[Any, list[tuple[str, Trial]]] = {}
    epochs: dict[Any, dict[tuple[str, ...], int]] = {}
    for one in planned:
        for phase in shared_phases(one.config):
            key = cut_key(phase)
            by_cut.setdefault(key, []).append((one.trial, phase))
            epochs.setdefault(key, {})[_training_of(one.config, phase)] = phase.train.epochs
    found = [_weigh(pairs, sum(epochs[key].values()), settings) for key, pairs in by_cut.items()]
    if settings.cache == "never":
        return [_changed(one, False, "features.cache=never") for one in found]
    room = store_of(settings).room_bytes()
    for place, cut in sorted(enumerate(found), key=lambda pair: -pair[1].predicted_saving_s):
        needed = int(cut.mebibytes * 2**20)
        if cut.store and needed > room:
            short = f"needs {cut.mebibytes:,.0f} MiB and {room / 2**20:,.0f} MiB may be used"
            found[place] = _changed(cut, False, short)
        elif cut.store:
            room -= needed
    return found


def shared_phases(trial: Trial) -> list[Trial]:
    """The phases of a trial whose prefix is the backbone's own, untouched by earlier phases."""
    shared, touched = [], frozenset[str]()
    for phase in trial.phases():
        cut = _cut_of(phase)
        if cut.prefix is None or not touched & {name for name, _ in cut.prefix.named_parameters()}:
            shared.append(phase)
        touched |= cut.trained
    return shared


def _training_of(trial: Trial, phase: Trial) -> tuple[str, ...]:
    """Equal for phases that are trained once: trials share what they begin with, but for their last phase."""
    names = [one.name for one in trial.phases()]
    upto = names.index(phase.name) + 1
    return tuple(names[:upto]) if upto < len(names) else (trial.name, phase.name)


def group_key(trial: Trial) -> tuple[Any, ...]:
    """Equal for trials whose features one pass over the images can make."""
    return (trial.backbone, trial.model, weights_seed(trial), trial.data)


def cut_key(trial: Trial) -> tuple[Any, ...]:
    """Equal for trials that read the same features."""
    return (*group_key(trial), trial.depth)


def _changed(one: Decision, store: bool, reason: str) -> Decision:
    return replace(one, store=store, reason=reason)


def _weigh(pairs: Sequence[tuple[str, Trial]], epochs: int, settings: Features) -> Decision:
    """What storing one cut costs and saves, room left out of account.

    `pairs` are trials' names and phases that train at the cut, `epochs` all that they train for.
    """
    phases = [phase for _, phase in pairs]
    first = phases[0]
    shape = datasets.shape(first.data)
    cut = _cut_of(first)
    per_image = _prefix_seconds(first, cut)
    counts = {"train": shape.train, "val": shape.val}
    computed = sum(counts[split] for split, _ in views_of(first))
    an_epoch = shape.train + min(shape.val, shape.train) + shape.val
    read = epochs * an_epoch
    size = cut.numbers_per_image * np.dtype(STORED_AS[settings.dtype]).itemsize
    rates = measured_rates(settings)
    fits = computed * size < psutil.virtual_memory().available / 2
    read_s = size / (rates.memory_bytes if fits else rates.disk_bytes)
    saving = read * (per_image - read_s) - computed * (per_image + size / rates.disk_bytes)
    store = saving > -MARGIN_S
    reason = "saves time" if saving > 0 else "is as fast" if store else "reading would take longer than computing again"
    if not is_cacheable(first, cut):
        whole = "the network could not be traced" if cut.whole else "nothing is frozen before the first trained layer"
        store, reason = False, whole if cut.prefix is None else "batch_norm=training changes with every batch"
    elif settings.cache == "always":
        store, reason = True, "features.cache=always"
    return Decision(
        backbone=first.backbone,
        depth_label=depth_label(first.depth),
        trials=tuple(dict.fromkeys(name for name, _ in pairs)),
        phases=tuple(dict.fromkeys(phase.name for phase in phases)),
        mebibytes=computed * size / 2**20 if cut.prefix is not None else 0.0,
        prefix_ms_per_image=1000 * per_image,
        images_computed=computed,
        images_an_epoch=an_epoch,
        images_read=read,
        predicted_saving_s=saving if is_cacheable(first, cut) else 0.0,
        store=store,
        reason=reason,
    )


def _image_size(trial: Trial) -> int:
    return trial.data.image_size or datasets.shape(trial.data).image_size or 224


def _cut_of(trial: Trial) -> depth.Cut:
    classes = datasets.shape(trial.data).classes
    return _cut(trial.backbone, trial.model, classes, trial.depth, _image_size(trial))


@lru_cache(maxsize=64)
def _cut(name: str, model: Model, classes: int, at: Any, image_size: int) -> depth.Cut:
    backbone = outline(name, model, classes)
    return depth.cut(backbone.network, depth.select(backbone.network, at, backbone.head), image_size)


def _prefix_seconds(first: Trial, cut: depth.Cut) -> float:
    """Seconds that one image takes through a cut's prefix."""
    if cut.prefix is None:
        return 0.0
    nodes = _node_seconds(first.backbone, first.model, datasets.shape(first.data).classes, _image_size(first))
    return sum(nodes.get(node.name, 0.0) for node in cut.prefix.graph.nodes)  # type: ignore[union-attr]


@lru_cache(maxsize=8)
def _node_seconds(name: str, model: Model, classes: int, image_size: int) -> dict[str, float]:
    batch = max(2, min(16, TIMED_PIXELS // image_size**2))
    return depth.seconds_per_node(outline(name, model, classes).network, image_size, batch)


@lru_cache(maxsize=2)
def measured_rates(settings: Features) -> Rates:
    """Write a file where features would be, read it from disk, and gather rows of it from memory."""
    path = store_of(settings).folder / f"probe.part-{os.getpid()}"
    rows = np.random.default_rng(0).standard_normal((PROBE_BYTES // 4096, 1024), dtype=np.float32)
    try:
        with path.open("wb") as file:
            file.write(rows.tobytes())
            file.flush()
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        started = time.perf_counter()
        path.read_bytes()
        disk = time.perf_counter() - started
        mapped = np.asarray(np.memmap(path, np.float32, "r", shape=rows.shape))
        order = np.random.default_rng(1).permutation(len(rows))
        mapped[order]  # maps the pages: a trial does that once
        started = time.perf_counter()
        mapped[order]
        memory = time.perf_counter() - started
    finally:
        path.unlink(missing_ok=True)
    return Rates(memory_bytes=PROBE_BYTES / memory, disk_bytes=PROBE_BYTES / disk)
