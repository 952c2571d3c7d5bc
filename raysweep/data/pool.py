"""All images of a data set, decoded once and mapped by every process of the node.

Data on disk is decoded into `<cache>/images/`, a folder of plain `.npy` files that every
process maps read-only: the pages are shared by the kernel, so ten trials hold one copy.
How they are decoded: `raysweep.data.decoding`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .cache import cache_folder, make_once, name_of
from .decode import ValueRange
from .decoding import Encoded, decode_all
from .names import Names, read_names

FORMAT = 3
"""Of the folder and of how images are decoded; a change decodes all anew."""


@dataclass(frozen=True)
class Labelling:
    """The labels alone, ordered by the data's own splits: enough to count and to split."""

    labels: np.ndarray  # (n,) int64
    counts: dict[str, int]  # images of the data's own splits, in order; keys of train, val, test
    classes: int
    groups: np.ndarray | None = field(default=None, kw_only=True)
    """(n,) int64: images of one number never part over splits. None where each may go anywhere."""


@dataclass(frozen=True)
class Pool(Labelling):
    """All images of a data set."""

    images: np.ndarray  # (n, 3, height, width) uint8
    names: Sequence[str]
    class_names: tuple[str, ...]
    digests: np.ndarray
    """Hash of each image's pixels: (n,) of 16 bytes each."""
    value_range: ValueRange | None = None
    """By which images with more than 8 bits were scaled; None where there are none."""
    notes: tuple[str, ...] = ()
    """What a person must know of how the data was read."""
    folder: Path | None = None
    """Where the decoded images are, for `map_pool`; None where they are in no file."""

    @property
    def digest(self) -> str:
        """32 hexadecimal digits, determined by the pixels and labels."""
        digest = hashlib.blake2b(f"{self.images.shape}".encode(), digest_size=16)
        digest.update(self.digests.tobytes())
        digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()


def cached_pool(key: list[Any], open_encoded: Callable[[], Encoded]) -> Pool:
    """The pool stored under `key`, decoded first if need be; two processes never decode one at once.

    Raises:
        RecipeError: see `decode_all`.
    """
    folder = cache_folder() / "images" / name_of([FORMAT, key])
    make_once(folder, lambda unfinished: decode_all(unfinished, open_encoded()))
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    labels, digests = (np.load(folder / f"{array}.npy", allow_pickle=False) for array in ("labels", "digests"))
    images, names = map_pool(folder)
    return Pool(
        labels=labels,
        counts=about["counts"],
        classes=len(about["class_names"]),
        images=images,
        names=names,
        class_names=tuple(about["class_names"]),
        digests=digests,
        value_range=about["value_range"] and tuple(about["value_range"]),
        notes=tuple(about["notes"]),
        folder=folder,
    )


def map_pool(folder: Path) -> tuple[np.ndarray, Names]:
    """The images of a pool's folder, (n, 3, height, width) uint8, and their names; both are mapped.

    Raises:
        OSError: the folder is not there.
    """
    return np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False), read_names(folder / "names.npy")
