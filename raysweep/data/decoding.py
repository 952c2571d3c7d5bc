"""Every image of a data set decoded, on all cores, into the arrays that a pool maps.

Images of 8 bits are decoded in one pass. Those of more wait until the range of values of all
of them is known, and are read a second time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from ..recipe import RecipeError
from .cache import cache_folder
from .decode import Size, ValueRange, decode, is_deep, is_truncated, values_of
from .names import write_names
from .stages import stage

AT_ONCE = 32
"""Images that a thread decodes before it takes the next."""
LEAST_LEVELS = 64
"""Data of images with 16 bits a colour that are left with fewer levels is refused."""


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
    value_range: ValueRange | None = None
    """Of images with more than 8 bits; that of their values when None."""


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What became of one image."""

    index: int
    problem: str = ""
    span: ValueRange | None = None
    """Lowest and highest value of an image with more than 8 bits."""
    is_waiting: bool = False
    """Whether the range of values is to be known first."""
    is_flat: bool = False
    """Whether it is stored as one grey throughout."""
    brightest: int | None = None
    """Of an image whose colours have 16 bits: the highest of the levels that Pillow makes of them."""


class _Arrays(NamedTuple):
    """What images are decoded into."""

    images: np.ndarray  # (n, 3, height, width) uint8
    labels: np.ndarray  # (n,) int64
    digests: np.ndarray  # (n,) of 16 bytes each


def decode_all(folder: Path, encoded: Encoded) -> None:
    """Decode every image into images.npy, labels.npy, digests.npy and about.json of an empty folder.

    Raises:
        RecipeError: images that cannot be read or differ in size, the first five by name; a full disk;
            images that are all empty.
    """
    total = len(encoded.names)
    size = encoded.size or _upright_size(encoded)
    arrays = _Arrays(_reserve(folder, encoded, size), np.zeros(total, dtype=np.int64), np.zeros(total, dtype="V16"))
    outcomes = _pass(encoded, range(total), arrays, encoded.value_range)
    spans = [one.span for one in outcomes if one.span]
    held = (min(low for low, _ in spans), max(high for _, high in spans)) if spans else None
    value_range = (encoded.value_range or _widened(held)) if held else None
    if waiting := [one.index for one in outcomes if one.is_waiting]:
        outcomes = [one for one in outcomes if not one.is_waiting] + _pass(encoded, waiting, arrays, value_range)
    _refuse_flat(encoded, outcomes, held)
    arrays.images.flush()  # type: ignore[attr-defined]
    np.save(folder / "labels.npy", arrays.labels, allow_pickle=False)
    np.save(folder / "digests.npy", arrays.digests, allow_pickle=False)
    write_names(folder / "names.npy", encoded.names)
    about = {"counts": encoded.counts, "class_names": encoded.class_names}
    notes = list(_notes(encoded, outcomes, held, len(spans)))
    text = json.dumps(about | {"value_range": value_range, "notes": notes})
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


def _pass(encoded: Encoded, indices: Sequence[int], into: _Arrays, value_range: ValueRange | None) -> list[_Outcome]:
    """Decode some images, on all cores.

    Raises:
        RecipeError: images that cannot be used.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    chunks = [indices[start : start + AT_ONCE] for start in range(0, len(indices), AT_ONCE)]
    outcomes: list[_Outcome] = []
    with stage("decoding", "decoded", len(indices)) as advance, ThreadPoolExecutor(cores) as threads:
        for some in threads.map(lambda part: [_decode_one(encoded, i, into, value_range) for i in part], chunks):
            outcomes += some
            advance(len(some))
    problems = [one.problem for one in outcomes if one.problem]
    if problems:
        more = [f"{encoded.where}: {len(problems) - 5} more images cannot be used"] if len(problems) > 5 else []
        raise RecipeError(*problems[:5], *more)
    return outcomes


def _decode_one(encoded: Encoded, index: int, into: _Arrays, value_range: ValueRange | None) -> _Outcome:
    """Decode one image into the arrays, unless the range of its values is to be known first."""
    name = encoded.names[index]
    height, width = into.images.shape[2:]
    try:
        image, label = encoded.read(index)
        with image:
            truncated, span = is_truncated(image), values_of(image) if is_deep(image) else None
            if span and value_range is None:
                return _Outcome(index, span=span, is_waiting=True)
            array = decode(image, encoded.size, value_range)
    except Exception as error:  # PIL's decoders raise nearly anything
        return _Outcome(index, _unreadable(encoded, name, error))
    if array.shape[1:] != (height, width):
        return _Outcome(
            index,
            f"{encoded.where}: {name} is {array.shape[2]}×{array.shape[1]} pixels, {encoded.names[0]} is "
            f"{width}×{height}; set data.image_size to bring all images to one size",
        )
    into.images[index], into.labels[index] = array, int(label)
    into.digests[index] = pixels_digest(array)
    highest = int(array.max())
    return _Outcome(index, "", span, False, highest == int(array.min()), highest if truncated else None)


def _upright_size(encoded: Encoded) -> Size:
    """Height and width of the first image."""
    try:
        with encoded.read(0)[0] as image:
            width, height = ImageOps.exif_transpose(image).size
    except Exception as error:  # PIL's decoders raise nearly anything
        raise RecipeError(_unreadable(encoded, encoded.names[0], error)) from error
    return height, width


def _unreadable(encoded: Encoded, name: str, error: Exception) -> str:
    return f"{encoded.where}: {name} is not a readable image ({one_line(error)}); replace or remove it"


def _widened(held: ValueRange) -> ValueRange:
    """A range that can be divided by."""
    return held if held[0] < held[1] else (held[0], held[0] + 1)


def _refuse_flat(encoded: Encoded, outcomes: Sequence[_Outcome], held: ValueRange | None) -> None:
    """Refuse data in which no image shows anything, saying why.

    Raises:
        RecipeError: every image is one grey throughout, or colours of 16 bits are left too few levels.
    """
    all_of_them = f"{encoded.where}: all {len(outcomes):,} images"
    bright = [one.brightest for one in outcomes if one.brightest is not None]
    if len(bright) > len(outcomes) / 2 and max(bright) < LEAST_LEVELS:
        raise RecipeError(
            f"{encoded.where}: {len(bright):,} images have 16 bits a colour, but their values end below "
            f"{256 * (max(bright) + 1):,}: of the upper 8 bits, which are all that Pillow reads, {max(bright) + 1} "
            "levels would be left; store them with 8 bits a colour, scaled to 0 to 255"
        )
    if not all(one.is_flat for one in outcomes):
        return
    if held and encoded.value_range:
        low, high = encoded.value_range
        raise RecipeError(
            f"data.value_range=[{low:g}, {high:g}] makes each of {all_of_them.partition(': all ')[2]} one grey "
            f"throughout: their values lie from {held[0]:,g} to {held[1]:,g}; give a range that they fill, or leave it "
            "out to have that of all images"
        )
    what = "are one grey throughout"
    if held:
        what = f"hold one value each, {held[0]:,g}" + (f" to {held[1]:,g}" if held[0] < held[1] else "")
    raise RecipeError(f"{all_of_them} {what}, such as {encoded.names[0]}: there is nothing to learn; look at the files")


def _notes(encoded: Encoded, outcomes: Sequence[_Outcome], held: ValueRange | None, deep: int) -> Iterator[str]:
    """How images of more than 8 bits were brought to 8."""
    of = f"{deep:,} of {len(outcomes):,} images have" if deep < len(outcomes) else f"all {deep:,} images have"
    if held and encoded.value_range:
        low, high = encoded.value_range
        yield (
            f"{of} more than 8 bits: values from {held[0]:,g} to {held[1]:,g}, of which {low:,g} to {high:,g} "
            "(data.value_range) are scaled to 256 levels"
        )
    elif held:
        yield (
            f"{of} more than 8 bits: their values, from {held[0]:,g} to {held[1]:,g}, are scaled to 256 levels; "
            "data.value_range=[low, high] sets another range"
        )
    elif encoded.value_range:
        yield "data.value_range is not used: no image has greys of more than 8 bits"
    truncated = sum(one.brightest is not None for one in outcomes)
    if truncated:
        yield f"{truncated:,} images have 16 bits a colour, of which the upper 8 are read"


def pixels_digest(image: np.ndarray) -> bytes:
    """16 bytes, determined by an image's pixels."""
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()


def one_line(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
