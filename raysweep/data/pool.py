"""All images of a data set, decoded once and mapped by every process of the node.

Data on disk is decoded into `<cache>/images/`, a folder of plain `.npy` files that every
process maps read-only: the pages are shared by the kernel, so ten trials hold one copy.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image
from rich.console import Console
from rich.progress import track

from ..recipe import RecipeError
from .cache import cache_folder
from .decode import Size, decode

AT_ONCE = 32
"""Images that a thread decodes before it takes the next."""


@dataclass(frozen=True)
class Labelling:
    """The labels alone, ordered by the data's own splits: enough to count and to split."""

    labels: np.ndarray  # (n,) int64
    counts: dict[str, int]  # images of the data's own splits, in order; keys of train, val, test
    classes: int


@dataclass(frozen=True)
class Pool(Labelling):
    """All images of a data set."""

    images: np.ndarray  # (n, 3, height, width) uint8
    names: tuple[str, ...]
    class_names: tuple[str, ...]
    digest: str  # of images and labels


@dataclass(frozen=True)
class Encoded:
    """The images of a data set as they lie on disk, before they are decoded."""

    names: tuple[str, ...]
    counts: dict[str, int]
    """Images of the data's own splits, in order."""
    class_names: tuple[str, ...]
    read: Callable[[int], tuple[Image.Image, int]]
    """The opened image and the label at a position."""
    size: Size | None
    """See `decode`; None asks that all images have one size."""
    where: str
    """How an error begins: the recipe's field and the folder."""


def cached_pool(key: list[Any], open_encoded: Callable[[], Encoded]) -> Pool:
    """The pool stored under `key`, decoded first if need be; two processes never decode one at once.

    Raises:
        RecipeError: see `_decode_all`.
    """
    name = hashlib.blake2b(json.dumps([1, key]).encode(), digest_size=16).hexdigest()
    folder = cache_folder() / "images" / name
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.is_dir():
                _build(folder, open_encoded)
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
    labels = np.load(folder / "labels.npy", allow_pickle=False)
    classes = tuple(about["class_names"])
    return Pool(labels, about["counts"], len(classes), images, tuple(about["names"]), classes, about["digest"])


def _build(folder: Path, open_encoded: Callable[[], Encoded]) -> None:
    """Decode into a folder beside, then rename it."""
    unfinished = folder.with_suffix(".part")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    unfinished.mkdir()
    try:
        _decode_all(unfinished, open_encoded())
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _decode_all(folder: Path, encoded: Encoded) -> None:
    """Decode every image, on all cores, into images.npy, labels.npy and about.json of an empty folder.

    Raises:
        RecipeError: images that cannot be read or differ in size, the first five by name; a full disk.
    """
    size = encoded.size or _upright_size(encoded)
    images = _reserve(folder, encoded, size)
    labels = np.zeros(len(encoded.names), dtype=np.int64)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    starts = range(0, len(encoded.names), AT_ONCE)
    with ThreadPoolExecutor(cores) as threads:
        found = threads.map(lambda start: list(_decode_some(encoded, start, images, labels)), starts)
        screen = Console(stderr=True)
        bar = track(found, "decoding images", len(starts), console=screen, disable=not screen.is_terminal)
        problems = [problem for some in bar for problem in some]
    if problems:
        more = [f"{encoded.where}: {len(problems) - 5} more images cannot be used"] if len(problems) > 5 else []
        raise RecipeError(*problems[:5], *more)
    images.flush()
    np.save(folder / "labels.npy", labels, allow_pickle=False)
    about = {"names": encoded.names, "counts": encoded.counts, "class_names": encoded.class_names}
    text = json.dumps(about | {"digest": pixels_digest(images, labels)})
    (folder / "about.json").write_text(text, encoding="utf-8")


def _reserve(folder: Path, encoded: Encoded, size: Size) -> np.memmap:
    """The empty array of all images, mapped; a map that meets a full disk would kill the process."""
    total = len(encoded.names) * 3 * size[0] * size[1]
    free = shutil.disk_usage(folder).free
    if total > free:
        raise RecipeError(
            f"{encoded.where}: {len(encoded.names)} decoded images of {size[0]}×{size[1]} pixels take "
            f"{total / 1e9:.1f} GB, {cache_folder()} has {free / 1e9:.1f} GB free; lower data.image_size or set "
            "RAYSWEEP_CACHE"
        )
    shape = (len(encoded.names), 3, *size)
    return np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=shape)


def _decode_some(encoded: Encoded, start: int, images: np.ndarray, labels: np.ndarray) -> Iterator[str]:
    """Decode `AT_ONCE` images from `start` into the arrays, yielding what is wrong with them."""
    height, width = images.shape[2:]
    for index in range(start, min(start + AT_ONCE, len(encoded.names))):
        name = encoded.names[index]
        try:
            image, label = encoded.read(index)
            with image:
                array = decode(image, encoded.size)
        except Exception as error:  # PIL's decoders raise nearly anything
            yield _unreadable(encoded, name, error)
            continue
        if array.shape[1:] == (height, width):
            images[index], labels[index] = array, int(label)
        else:
            yield (
                f"{encoded.where}: {name} is {array.shape[2]}×{array.shape[1]} pixels, {encoded.names[0]} is "
                f"{width}×{height}; set data.image_size to bring all images to one size"
            )


def _upright_size(encoded: Encoded) -> Size:
    """Height and width of the first image."""
    try:
        with encoded.read(0)[0] as image:
            _, height, width = decode(image, None).shape
    except Exception as error:  # PIL's decoders raise nearly anything
        raise RecipeError(_unreadable(encoded, encoded.names[0], error)) from error
    return height, width


def _unreadable(encoded: Encoded, name: str, error: Exception) -> str:
    return f"{encoded.where}: {name} is not a readable image ({one_line(error)}); replace or remove it"


def pixels_digest(images: np.ndarray, labels: np.ndarray) -> str:
    """32 hexadecimal digits, determined by the pixels and labels."""
    digest = hashlib.blake2b(f"{images.shape}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(images).data)
    digest.update(np.ascontiguousarray(labels).data)
    return digest.hexdigest()


def one_line(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
