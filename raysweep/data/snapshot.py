"""A data set as it was read once, for the other processes of a sweep.

Reading a folder means to list it and to look at every file. The sweep's own process does so,
and leaves what came of it beside the decoded images: which row is in which split, and what
`Dataset` says of them all. A trial's process is told the snapshot's name, maps the arrays,
and neither lists the folder nor holds anything for every image but its label. On a node that
has no such snapshot the data set is read as if there were none.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..files import write_text
from ..recipe import Data, Statistics
from .cache import cache_folder, make_once, name_of
from .dataset import Dataset, Split
from .findings import SPLITS, parts
from .names import Names
from .pool import map_pool

FORMAT = 1
PLAIN = ("class_names", "fingerprint", "drawn", "superclasses", "value_range", "notes")
"""Fields of a data set that are plain values."""


def save(data: Data, dataset: Dataset) -> str | None:
    """Keep a data set for `opened`.

    Args:
        data: what it was read from.
        dataset: as `dataset.load` gave it.

    Returns:
        The snapshot's name; None where the images are in no file, or there is no room.
    """
    if dataset.folder is None:
        return None
    about = _about(data, dataset)
    name = name_of(about)
    with suppress(OSError):
        make_once(_folder(name), lambda unfinished: _write(unfinished, about, dataset))
        return name
    return None


def opened(data: Data, names: Sequence[str]) -> Dataset | None:
    """The data set that `data` describes, from one of the named snapshots; None if none is here."""
    for name in names:
        folder = _folder(name)
        with suppress(OSError, EOFError, ValueError, LookupError):  # gone, or damaged
            about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
            if about["data"] == _described(data):
                return _read(folder, about)
    return None


def _folder(name: str) -> Path:
    return cache_folder() / "datasets" / name


def _described(data: Data) -> dict[str, Any]:
    return data.model_dump(mode="json")


def _about(data: Data, dataset: Dataset) -> dict[str, Any]:
    statistics = dataset.known_statistics
    plain = {name: getattr(dataset, name) for name in PLAIN}
    described = {"format": FORMAT, "data": _described(data), "pool": str(dataset.folder)}
    return described | plain | {"statistics": statistics and [statistics.mean, statistics.std]}


def _write(folder: Path, about: dict[str, Any], dataset: Dataset) -> None:
    for name, split in parts(dataset):
        np.save(folder / f"{name}.npy", split.rows, allow_pickle=False)
        np.save(folder / f"{name}-labels.npy", split.labels, allow_pickle=False)
    write_text(folder / "about.json", json.dumps(about))


def _read(folder: Path, about: dict[str, Any]) -> Dataset:
    images, names = map_pool(Path(about["pool"]))
    splits: dict[str, Any] = {part: _split(folder, part, images, names) for part in SPLITS}
    plain: dict[str, Any] = {name: _tuple(about[name]) for name in PLAIN}
    statistics = about["statistics"] and Statistics(mean=about["statistics"][0], std=about["statistics"][1])
    return Dataset(**splits, **plain, known_statistics=statistics, folder=Path(about["pool"]))


def _tuple(value: Any) -> Any:
    """JSON's list as the tuple that it was."""
    return tuple(value) if isinstance(value, list) else value


def _split(folder: Path, part: str, images: np.ndarray, names: Names) -> Split:
    rows = np.load(folder / f"{part}.npy", mmap_mode="r", allow_pickle=False)
    return Split(images, rows, np.load(folder / f"{part}-labels.npy", allow_pickle=False), names.at(rows))
