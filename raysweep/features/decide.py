"""Whether storing a cut's features pays: decided from measured rates before the trials start.

Without features every epoch of every trial passes its images through the frozen prefix
again; with them the images pass once and what crosses the cut is read each time. A late
cut is small and saves much. A wide early cut can take longer to read than to compute, or
not fit. Rates are measured on this machine, once: seconds an image of every node of the network
(all zeros: arithmetic does not care), and how fast stored rows are read, from
memory while all features fit there, else from disk.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import torch

from ..data import dataset as datasets
from ..data.augment import Augmentation
from ..data.cache import keep, recall
from ..data.prefetch import CPU, moved
from ..nets.backbones import outline
from ..nets.cut import Cut, cut
from ..nets.layers import select
from ..nets.precision import autocast, gpu_settings
from ..nets.task import weights_seed
from ..nets.tracing import seconds_per_node
from ..recipe import Depth, Features, Frozen, Model, Precision, Trial, depth_label
from .compute import is_cacheable, store_of, views_of
from .spec import STORED_AS

KEPT = "rates"
"""Folder of the cache; what is in it is measured anew when it is removed."""
PROBE_BYTES = 1 << 23
"""Written and read back to measure the disk and the memory."""
MARGIN_S = 1.0
"""A smaller predicted loss is noise: stored, so that a small sweep goes the same way, bit for bit, each time."""
TIMED_PIXELS = 2**17
"""Of the batch on which a network is timed."""
GPU_FACTOR = 8
"""How many times larger that batch is on a GPU, which a small one would leave idle."""
TIMED_VIEWS = 16
"""Random views that are timed; which operation is drawn differs from one to the next."""
DEFAULT_IMAGE_SIZE = 224
"""Side at which a network is traced where only the data can tell its images' size."""


@dataclass(frozen=True)
class Rates:
    """What this machine does in a second."""

    memory_bytes: float
    """Bytes of stored rows gathered from the page cache."""
    disk_bytes: float
    """Bytes read from the disk."""


class Decision(Frozen):
    """One cut of one backbone, and whether its features are stored."""

    schema_version: Literal[2] = 2
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
    precision: str = "float32"
    """In which the prefix is computed."""
    stored_as: str = "float32"


def decide(trials: Sequence[Trial], settings: Features, device: torch.device = CPU) -> list[Decision]:
    """A decision for every cut of the sweep, in the order of its trials.

    Args:
        trials: of the sweep.
        settings: where and how features are stored.
        device: that trials will run on; it is this process's, and its rates are measured.
    """
    by_cut: dict[Hashable, list[tuple[str, Trial]]] = {}
    epochs: dict[Hashable, dict[tuple[str, ...], int]] = {}
    for trial in trials:
        for phase in shared_phases(trial):
            key = cut_key(phase)
            by_cut.setdefault(key, []).append((trial.name, phase))
            epochs.setdefault(key, {})[_training_of(trial, phase)] = phase.train.epochs
    found = [_weigh(pairs, sum(epochs[key].values()), settings, device) for key, pairs in by_cut.items()]
    if settings.cache == "never":
        return [_changed(one, False, "features.cache=never") for one in found]
    if problem := unwritable(settings, device):
        return [_changed(one, False, problem) if one.store else one for one in found]
    room = store_of(settings).room_bytes()
    for place, decision in sorted(enumerate(found), key=lambda pair: -pair[1].predicted_saving_s):
        needed = int(decision.mebibytes * 2**20)
        if decision.store and needed > room:
            short = f"needs {decision.mebibytes:,.0f} MiB and {room / 2**20:,.0f} MiB may be used"
            found[place] = _changed(decision, False, short)
        elif decision.store:
            room -= needed
    return found


def unwritable(settings: Features, device: torch.device = CPU) -> str:
    """Why features cannot be stored at all; empty where they can."""
    try:
        measured_rates(settings, device)
    except OSError as error:
        return f"the features' folder cannot be written to ({error.strerror or error})"
    return ""


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
    return (*group_key(trial), trial.depth, trial.train.mixes_images)


def _changed(one: Decision, store: bool, reason: str) -> Decision:
    return one.model_copy(update={"store": store, "reason": reason})


def _weigh(pairs: Sequence[tuple[str, Trial]], epochs: int, settings: Features, device: torch.device) -> Decision:
    """What storing one cut costs and saves, room left out of account.

    `pairs` are trials' names and phases that train at the cut, `epochs` all that they train for.
    """
    phases = [phase for _, phase in pairs]
    first, cut, shape = phases[0], _cut_of(phases[0]), datasets.shape(phases[0].data)
    per_image = _prefix_seconds(first, cut, settings.precision, device)
    counts = {"train": shape.train, "val": shape.val}
    computed = sum(counts[split] for split, _ in views_of(first))
    an_epoch = shape.train + min(shape.val, shape.train) + shape.val
    size = cut.numbers_per_image * np.dtype(STORED_AS[settings.stored_as]).itemsize
    saving = 0.0
    if is_cacheable(first, cut):
        saving = _saving_s(per_image, size, computed, epochs * an_epoch, settings, device)
    if is_cacheable(first, cut) and Augmentation.of(first.data).is_random:  # made once, or in every epoch
        saving += shape.train * (epochs - (first.data.views or 0)) * _view_seconds(first)
    store, reason = _verdict(first, cut, saving, settings)
    return Decision(
        backbone=first.backbone,
        depth_label=depth_label(first.depth),
        trials=tuple(dict.fromkeys(name for name, _ in pairs)),
        phases=tuple(dict.fromkeys(phase.name for phase in phases)),
        mebibytes=computed * size / 2**20 if cut.prefix is not None else 0.0,
        prefix_ms_per_image=1000 * per_image,
        images_computed=computed,
        images_an_epoch=an_epoch,
        images_read=epochs * an_epoch,
        predicted_saving_s=saving,
        store=store,
        reason=reason,
        precision=settings.precision,
        stored_as=settings.stored_as,
    )


def _saving_s(per_image: float, size: int, computed: int, read: int, settings: Features, device: torch.device) -> float:
    """Seconds that storing saves.

    Args:
        per_image: seconds that an image takes through the prefix.
        size: bytes that are stored of an image.
        computed: images that pass once.
        read: images that are read instead of computed.
        settings: where features are stored.
        device: where they are read to.
    """
    if unwritable(settings, device):
        return 0.0
    rates = measured_rates(settings, device)
    fits = computed * size < psutil.virtual_memory().available / 2
    read_s = size / (rates.memory_bytes if fits else rates.disk_bytes)
    return read * (per_image - read_s) - computed * (per_image + size / rates.disk_bytes)


def _verdict(first: Trial, cut: Cut, saving: float, settings: Features) -> tuple[bool, str]:
    """Whether to store, and why."""
    if cut.prefix is None:
        whole = "the network could not be traced"
        return False, whole if cut.whole else "nothing is frozen before the first trained layer"
    if not is_cacheable(first, cut):
        return False, _what_changes(first)
    if settings.cache == "always":
        return True, "features.cache=always"
    if saving <= -MARGIN_S:
        return False, "reading would take longer than computing again"
    return True, "saves time" if saving > 0 else "is as fast"


def _what_changes(phase: Trial) -> str:
    """Why an image's features are never the same twice."""
    if phase.model.batch_norm == "training":
        return "batch_norm=training changes with every batch"
    if phase.train.mixes_images:
        return "mixup and cutmix mix other images in every step"
    return f"no view of augment={'+'.join(phase.data.augment)} comes twice; data.views would store some"


def _image_size(trial: Trial) -> int:
    return trial.data.image_size or datasets.shape(trial.data).image_size or DEFAULT_IMAGE_SIZE


def _cut_of(trial: Trial) -> Cut:
    classes = datasets.shape(trial.data).classes
    return _cut(trial.backbone, trial.model, classes, trial.depth, _image_size(trial))


@lru_cache(maxsize=64)
def _cut(name: str, model: Model, classes: int, at: Depth, image_size: int) -> Cut:
    backbone = outline(name, model, classes, image_size)
    return cut(backbone.network, select(backbone.network, at, backbone.head), image_size)


def _prefix_seconds(first: Trial, cut: Cut, precision: Precision, device: torch.device) -> float:
    """Seconds that one image takes through a cut's prefix."""
    if cut.prefix is None:
        return 0.0
    classes = datasets.shape(first.data).classes
    nodes = _node_seconds(first.backbone, first.model, classes, _image_size(first), precision, device)
    return sum(nodes.get(node.name, 0.0) for node in cut.prefix.graph.nodes)  # type: ignore[union-attr]


def _view_seconds(phase: Trial) -> float:
    """Seconds that a random view of one image takes."""
    return _timed_views(Augmentation.of(phase.data), _image_size(phase))


@lru_cache(maxsize=8)
def _timed_views(augmentation: Augmentation, image_size: int) -> float:
    images, numbers = torch.zeros(TIMED_VIEWS, 3, image_size, image_size), torch.arange(TIMED_VIEWS)
    started = 0.0
    for _ in range(2):  # the first time warms up
        started = time.perf_counter()
        augmentation(images, range(TIMED_VIEWS), numbers)
    return (time.perf_counter() - started) / TIMED_VIEWS


@lru_cache(maxsize=8)
def _node_seconds(
    name: str, model: Model, classes: int, image_size: int, precision: Precision, device: torch.device
) -> dict[str, float]:
    many = GPU_FACTOR if device.type == "cuda" else 1
    batch = many * max(2, min(16, TIMED_PIXELS // image_size**2))
    network = [name, model.model_dump(mode="json"), classes, image_size, batch, precision]
    key = [*_this_machine(device), torch.__version__, *network]
    kept = recall(KEPT, key)
    if not _are_numbers(kept):
        with gpu_settings(precision, device), autocast(precision, device):
            kept = seconds_per_node(outline(name, model, classes, image_size).network, image_size, batch, device)
        keep(KEPT, key, kept)
    return dict(kept)


@lru_cache(maxsize=2)
def measured_rates(settings: Features, device: torch.device = CPU) -> Rates:
    """The rates of the folder of features, measured once a machine and kind of device."""
    key = [*_this_machine(device), str(store_of(settings).folder.resolve())]
    kept = recall(KEPT, key)
    if not _are_numbers(kept) or set(kept) != {"memory_bytes", "disk_bytes"}:
        kept = asdict(_measured(store_of(settings).folder, device))
        keep(KEPT, key, kept)
    return Rates(**kept)


def _this_machine(device: torch.device) -> list[str | int]:
    """What rates are kept by: a lane with other threads has others."""
    gpu = [torch.cuda.get_device_name(device)] if device.type == "cuda" else []
    return [platform.node(), os.cpu_count() or 0, torch.get_num_threads(), *gpu]


def _are_numbers(kept: Any) -> bool:
    """Whether something that was kept names positive numbers, or zeros."""
    return isinstance(kept, dict) and bool(kept) and all(isinstance(x, float) and x >= 0 for x in kept.values())


def _measured(folder: Path, device: torch.device) -> Rates:
    """Write a file where features would be, read it from disk, and gather rows of it from memory, to the device."""
    path = folder / f"probe.part-{os.getpid()}"
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
        started = 0.0
        for _ in range(2):  # the first time maps the pages: a trial does that once
            started = time.perf_counter()
            moved(torch.from_numpy(mapped[order]), device)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        memory = time.perf_counter() - started
    finally:
        path.unlink(missing_ok=True)
    return Rates(memory_bytes=PROBE_BYTES / memory, disk_bytes=PROBE_BYTES / disk)
