"""A name or a folder → uint8 images, labels, class names, split into train, val and test.

Images stay uint8 at one size; other code resizes, flips and normalises them in batches on
the device. All splits index one pool of images (see `raysweep.data.pool`), and none of it
is copied until `Split.images` gathers a batch. Do not send a `Split` to another process,
which would pickle the mapped pages: call `load` there.

Only CIFAR is unpickled, by torchvision, after its MD5 sums were verified.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ..recipe import Data, RecipeError, Statistics
from . import hugging_face, tables
from .builtin import digits, fake, fake_counts
from .catalogue import (
    CIFAR100_SUPERCLASS_OF,
    CIFAR100_SUPERCLASSES,
    SPLIT_FOLDERS,
    Known,
    known,
)
from .decode import ValueRange
from .folders import ImageFiles, folder_pool, scan
from .groups import grouped, unrepresented
from .names import Names
from .pool import Labelling, Pool
from .splits import split
from .torchvision_data import torchvision_pool
from .unique import without_copies

NAMES_AT_ONCE = 4096
"""Names that are hashed at a time, so that not all are in memory."""


@dataclass(frozen=True)
class Split:
    """One of train, val and test: rows of a pool of images that all three share."""

    pool: np.ndarray
    """(all images, 3, height, width) uint8, read-only; a memory map where the data came from disk."""
    rows: np.ndarray
    """(n,) int64, ascending: where this split's images are in the pool."""
    labels: np.ndarray
    """(n,) int64."""
    names: Sequence[str]
    """What to call each image to a person: its file below data.root, or such as `train/17`, its
    index in the data set's own order."""

    def __len__(self) -> int:
        return len(self.rows)

    def images(self, positions: np.ndarray | Sequence[int] | slice = slice(None)) -> np.ndarray:
        """A fresh, writable copy of the images at `positions` of this split: (n, 3, height, width) uint8."""
        return np.asarray(self.pool[self.rows[positions]])


@dataclass(frozen=True)
class Dataset:
    """Images, labels and class names, split."""

    train: Split
    val: Split
    test: Split
    class_names: tuple[str, ...]
    fingerprint: str
    """32 hexadecimal digits, determined by the images, labels and rows of all splits."""
    drawn: tuple[str, ...] = ()
    """Splits that the data does not have itself: they were drawn from its training images."""
    superclasses: tuple[str, ...] | None = None
    """Of CIFAR-100: the coarse name of each class."""
    known_statistics: Statistics | None = None
    value_range: ValueRange | None = None
    """By which images with more than 8 bits were scaled; None where there are none."""
    notes: tuple[str, ...] = ()
    """What a person must know of how the data was read: what was ignored, scaled or dropped."""
    folder: Path | None = None
    """Of the decoded images; None where they are in no file."""

    @cached_property
    def statistics(self) -> Statistics:
        """Channel statistics of the data set: its published ones, else of up to 2,048 training images."""
        return self.known_statistics or channel_statistics(self.train)


@dataclass(frozen=True)
class Shape:
    """What `load` would give, told without decoding or fetching anything."""

    classes: int
    image_size: int | None
    """Side in pixels of the images as stored; None where only the data can tell."""
    train: int
    val: int
    test: int
    notes: tuple[str, ...] = ()
    """See `Dataset`; what the names alone tell."""


def load(data: Data, image_size: int | None = None) -> Dataset:
    """Read the data, fetching and decoding it if that was not done before, and split it.

    Args:
        data: what to load and how to split it.
        image_size: side in pixels, instead of `data.image_size`; images that differ in size are
            resized and cropped to it, images of one size keep theirs.

    Raises:
        RecipeError: the data is missing, corrupt, unreadable or cannot be split as asked.
    """
    found, name = known(data.dataset)
    _refuse_unused(data)
    pool = _pool(data, found, name, image_size or data.image_size)
    kept, counts, notes = np.arange(len(pool.labels)), pool.counts, pool.notes
    if data.drop_duplicates:
        kept, counts, dropped = without_copies(pool, data)
        notes = (*notes, dropped)
    groups = None if pool.groups is None else pool.groups[kept]
    rows = {part: kept[places] for part, places in split(pool.labels[kept], counts, data, groups).items()}
    if groups is not None:
        notes = (*notes, *unrepresented(rows, pool.labels, pool.classes))
    fine = name == "CIFAR100" and pool.classes == len(CIFAR100_SUPERCLASS_OF)
    return Dataset(
        **{part: _part(pool, rows[part]) for part in rows},
        class_names=pool.class_names,
        fingerprint=_fingerprint(pool, rows),
        drawn=tuple(part for part in ("val", "test") if part not in pool.counts),
        superclasses=tuple(CIFAR100_SUPERCLASSES[index] for index in CIFAR100_SUPERCLASS_OF) if fine else None,
        known_statistics=found.statistics if found else None,
        value_range=pool.value_range,
        notes=notes,
        folder=pool.folder,
    )


def _pool(data: Data, found: Known | None, name: str, side: int | None) -> Pool:
    if found:
        return torchvision_pool(data, name, found, side)
    if data.dataset == "digits":
        return digits()
    if data.dataset == "imagefolder":
        return folder_pool(_files(data), (side, side) if side else None, data.value_range)
    if data.dataset.startswith("hf:"):
        return hugging_face.hub_pool(data, (side, side) if side else None)
    return fake(data, side)


def _files(data: Data) -> ImageFiles:
    """The image files that a folder or a table names, grouped."""
    return grouped(tables.scan(data) if data.labels else scan(data), data)


def _refuse_unused(data: Data) -> None:
    """Raise RecipeError for what only folders of images and Hugging Face's data sets have."""
    if data.dataset == "imagefolder" or data.dataset.startswith("hf:"):
        return
    for name, value in (("labels", data.labels), ("group", data.group)):
        if value is not None:
            raise RecipeError(
                f"data.{name}={value} goes with data.dataset=imagefolder or hf:…, not with {data.dataset}; "
                "set data.dataset, or leave it out"
            )


def _fingerprint(pool: Pool, rows: dict[str, np.ndarray]) -> str:
    """See `Dataset.fingerprint`."""
    digest = hashlib.blake2b(pool.digest.encode(), digest_size=16)
    for part in ("train", "val", "test"):
        digest.update(f"{part} {len(rows[part])}".encode())
        digest.update(rows[part].tobytes())
    return digest.hexdigest()


def shape(data: Data) -> Shape:
    """Classes, image size and the number of images in each split, copies included; opens no image, fetches nothing.

    Raises:
        RecipeError: what can be seen to be wrong from names, folders and counts.
    """
    found, _ = known(data.dataset)
    _refuse_unused(data)
    notes: tuple[str, ...] = ()
    if found:
        counts = {SPLIT_FOLDERS.get(part, "train"): count for part, count in found.counts.items()}
        facts, side = _evenly_labelled(found.classes, counts), found.image_size or data.image_size
    elif data.dataset == "digits":
        facts, side = _evenly_labelled(10, {"train": 1_797}), 8
    elif data.dataset == "imagefolder":
        files = _files(data)
        facts, side, notes = files, data.image_size, files.notes
    elif data.dataset.startswith("hf:"):
        facts, notes = hugging_face.hub_labelling(data)
        side = data.image_size
    else:
        facts, side = _evenly_labelled(*fake_counts(data)), data.image_size or 32
    rows = split(facts.labels, facts.counts, data, facts.groups)
    if facts.groups is not None:
        notes = (*notes, *unrepresented(rows, facts.labels, facts.classes))
    return Shape(facts.classes, side, **{part: len(rows[part]) for part in rows}, notes=notes)


def check(data: Data) -> None:
    """Raise RecipeError for what is wrong with the data, as far as `shape` can see it."""
    shape(data)


def split_key(split: Split) -> str:
    """16 hexadecimal digits, determined by the names of a split's images and their labels, in their order.

    Results on splits of one key can be compared image by image.
    """
    digest = hashlib.blake2b(digest_size=8)
    for start in range(0, len(split.names), NAMES_AT_ONCE):
        some = "\0".join(split.names[start : start + NAMES_AT_ONCE])
        digest.update((("\0" if start else "") + some).encode("utf-8", "surrogateescape"))
    digest.update(split.labels.astype(np.int64).tobytes())
    return digest.hexdigest()


def channel_statistics(images: Split, most: int = 2048) -> Statistics:
    """Channel mean and standard deviation of at most `most` images, evenly spaced, scaled to [0, 1].

    Counts of the 256 values are added up, so the result is exact and the same on every machine.
    """
    step = -(-len(images) // most)
    histogram = np.zeros((3, 256), dtype=np.int64)
    for start in range(0, len(images), 32 * step):
        batch = images.images(slice(start, start + 32 * step, step))
        for channel in range(3):
            histogram[channel] += np.bincount(batch[:, channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    weights = histogram / histogram.sum(axis=1, keepdims=True)
    mean = weights @ values  # (3,)
    std = np.sqrt(np.maximum(weights @ values**2 - mean**2, 0)).clip(min=1 / 255)
    return Statistics(mean=tuple(mean.tolist()), std=tuple(std.tolist()))


def _part(pool: Pool, rows: np.ndarray) -> Split:
    names = pool.names.at(rows) if isinstance(pool.names, Names) else tuple(pool.names[row] for row in rows)
    return Split(pool.images, rows, pool.labels[rows], names)


def _evenly_labelled(classes: int, counts: dict[str, int]) -> Labelling:
    """Labels that stand in for a data set of which only the numbers are known."""
    labels = np.concatenate([np.arange(count) % classes for count in counts.values()])
    return Labelling(labels, counts, classes)
