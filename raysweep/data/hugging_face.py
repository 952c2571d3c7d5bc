"""Data sets in Hugging Face's format: a folder that `save_to_disk` wrote, or a name on the hub.

Arrow files are mapped and images decoded by Pillow; no code of a data set is run.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..recipe import Data, RecipeError, near
from .catalogue import split_of
from .decode import Size
from .decoding import Encoded, one_line
from .folders import file_stamp
from .groups import group_numbers, told
from .layout import listed_names
from .pool import Labelling, Pool, cached_pool
from .tables import SPLITS, absent, in_order, refuse_few

IMAGES = ("image", "img")
"""Names of the column of images, where several hold images."""


@dataclass(frozen=True)
class _Opened(Labelling):
    """A data set of which the labels were read."""

    parts: tuple[Any, ...]
    """A `datasets.Dataset` for each split."""
    image: str
    """Name of the column of images."""
    class_names: tuple[str, ...]
    notes: tuple[str, ...]


def hub_labelling(data: Data) -> tuple[Labelling, tuple[str, ...]]:
    """Labels and notes. A data set on the hub is fetched for it: nothing else tells its classes.

    Raises:
        RecipeError: see `hub_pool`.
    """
    opened = _opened(data)
    return opened, opened.notes


def hub_pool(data: Data, size: Size | None) -> Pool:
    """The images, decoded at a size (see `decode`).

    Raises:
        RecipeError: `datasets` is not installed, there is no such data set, or its columns are not those of
            labelled images.
    """
    opened = _opened(data)
    names = _names(opened.counts)
    ends = np.cumsum(list(opened.counts.values()))
    stamps = [(path, *file_stamp(Path(path))) for part in opened.parts for path in _files(part)]

    def read(index: int) -> tuple[Image.Image, int]:
        part = int(np.searchsorted(ends, index, side="right"))
        row = opened.parts[part][index - int(ends[part]) + len(opened.parts[part])]
        return _open(row[opened.image]), int(opened.labels[index])

    encoded = Encoded(names, opened.counts, opened.class_names, read, size, _where(data), data.value_range)
    labels = [data.labels, opened.image, opened.class_names, opened.counts]
    pool = cached_pool(["hf", stamps, labels, size, data.value_range], lambda: encoded)
    return replace(pool, notes=(*opened.notes, *pool.notes), groups=opened.groups)


def _where(data: Data) -> str:
    return f"data.dataset={data.dataset}"


def _files(part: Any) -> list[str]:
    return [file["filename"] for file in part.cache_files]


def _open(stored: Mapping[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(stored["bytes"]) if stored["bytes"] else stored["path"])


def _opened(data: Data) -> _Opened:
    try:
        return _labelled(_splits(data), data)
    except RecipeError as error:
        raise RecipeError(*(f"{_where(data)}: {problem}" for problem in error.problems)) from None


def _splits(data: Data) -> dict[str, Any]:
    """The data set's splits by its own names for them."""
    if importlib.util.find_spec("datasets") is None:
        raise RecipeError("the package datasets is not installed; pip install datasets")
    import datasets

    name = data.dataset.removeprefix("hf:")
    folder = Path(name).expanduser()
    if not folder.is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise RecipeError("there is no such folder; give one that save_to_disk wrote, or the name of a data set")
    try:
        # no code of a data set is run: such data sets are refused by the package itself
        found = datasets.load_from_disk(str(folder)) if folder.is_dir() else datasets.load_dataset(name)
    except Exception as error:  # no network, no such name, no folder of a data set, damaged files
        how = "did save_to_disk write the folder?" if folder.is_dir() else "is the name right, and is there a network?"
        raise RecipeError(f"it cannot be opened ({one_line(error)}); {how}") from None
    return dict(found) if isinstance(found, datasets.DatasetDict) else {"train": found}


def _labelled(splits: Mapping[str, Any], data: Data) -> _Opened:
    import datasets

    named = {name: split_of(name) for name in splits}
    parts = {part: splits[name] for part in SPLITS for name in splits if named[name] == part}
    if "train" not in parts:
        raise RecipeError(f"it has no split train, but {listed_names(list(splits))}")
    notes = [f"ignored the split {name}" for name, part in named.items() if part is None]
    features = parts["train"].features
    image, label = _image_column(features, datasets.Image), _label_column(features, data.labels, datasets.ClassLabel)
    if data.group is not None and data.group not in features:
        raise RecipeError(f"data.group={data.group} is not one of its columns; {near(data.group, features)}")
    said = {part: _labels(one, label) for part, one in parts.items()}
    for part in [part for part, values in said.items() if part != "train" and not any(values)]:
        notes.append(f"ignored the split {part}: it has no labels")
        del said[part], parts[part]
    values = [value for part in said.values() for value in part]
    if without := values.count(""):
        raise RecipeError(f"{without:,} of {len(values):,} images have no label (column {label}); remove them")
    used = set(values)
    known = getattr(features[label], "names", None)
    classes = tuple(name for name in known if name in used) if known else in_order(used)
    index = {name: number for number, name in enumerate(classes)}
    labels = np.array([index[value] for value in values], dtype=np.int64)
    counts = {part: len(one) for part, one in said.items()}
    refuse_few(labels, counts, classes)
    notes += absent(labels, counts, classes)
    groups = _groups(parts, counts, data.group) if data.group else None
    notes += [] if groups is None else [told(groups)]
    raw = tuple(one.select_columns([image]).cast_column(image, datasets.Image(decode=False)) for one in parts.values())
    return _Opened(labels, counts, len(classes), raw, image, classes, tuple(notes), groups=groups)


def _image_column(features: Mapping[str, Any], kind: type) -> str:
    found = [name for name, feature in features.items() if isinstance(feature, kind)]
    if len(found) > 1:
        found = [name for name in IMAGES if name in found][:1]
    if not found:
        raise RecipeError(f"none of its columns holds images, or several do: {listed_names(list(features))}")
    return found[0]


def _label_column(features: Mapping[str, Any], asked: str | None, kind: type) -> str:
    if asked is not None:
        if asked not in features:
            raise RecipeError(f"data.labels={asked} is not one of its columns; {near(asked, features)}")
        return asked
    if "label" in features:
        return "label"
    found = [name for name, feature in features.items() if isinstance(feature, kind)]
    if len(found) != 1:
        raise RecipeError(
            "it has no column label; data.labels says which of its columns is meant: "
            f"{listed_names(found or list(features))}"
        )
    return found[0]


def _labels(part: Any, column: str) -> list[str]:
    """The label of each image as text; empty where there is none, which is -1 in numbers of classes."""
    names: Sequence[str] | None = getattr(part.features[column], "names", None)
    values = _values(part, column)
    if names is None:
        return ["" if value is None else str(value).strip() for value in values]
    return ["" if value is None or value < 0 else names[value] for value in values]


def _values(part: Any, column: str) -> list[Any]:
    return list(part.with_format(None).select_columns([column])[:][column])


def _groups(parts: Mapping[str, Any], counts: Mapping[str, int], column: str) -> np.ndarray:
    values = [str(value) for part in parts.values() for value in _values(part, column)]
    return group_numbers(values, _names(counts), counts)


def _names(counts: Mapping[str, int]) -> tuple[str, ...]:
    """What to call each image: the data set has no files with names."""
    return tuple(f"{part}/{index}" for part, count in counts.items() for index in range(count))
