"""A table of files and labels, CSV or Parquet, in the place of class folders."""

from __future__ import annotations

import csv
import hashlib
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..recipe import Data, RecipeError
from . import layout
from .catalogue import split_of
from .decoding import one_line
from .folders import ImageFiles
from .layout import listed_names

FILE, LABEL, SPLIT, GROUP = "file", "label", "split", "group"
SUFFIXES = (".csv", ".tsv", ".parquet")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class _Row:
    """One image of a table."""

    file: str
    label: str
    split: str
    """As the table says it; empty where it has no such column."""
    group: str


_scanned: dict[tuple[Any, ...], ImageFiles] = {}


def scan(data: Data) -> ImageFiles:
    """The images that the table `data.labels` names, in the order of splits, labels and files.

    Opens no image. While the table does not change it is read once a process.

    Raises:
        RecipeError: the table cannot be read or lacks columns, files that are not there or named twice,
            labels that are missing, contradict each other or are too few, unknown splits.
    """
    assert data.labels is not None
    path = Path(data.labels).expanduser().absolute()
    try:
        stat = path.stat()
        key = (path, data.root, data.group, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size)
        if key not in _scanned:
            found = _scan(data, path, _read(path))
            _scanned.clear()
            _scanned[key] = found
    except RecipeError as error:
        raise RecipeError(*(f"data.labels={data.labels}: {problem}" for problem in error.problems)) from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or one_line(error)
        raise RecipeError(f"data.labels={data.labels} cannot be read ({why}); give a CSV or Parquet file") from None
    return _scanned[key]


def _read(path: Path) -> dict[str, list[str]]:
    """The columns of a table by their names in lower case, every cell as text."""
    if path.suffix.lower() not in SUFFIXES:
        raise RecipeError(f"a table is a file that ends in {', '.join(SUFFIXES)}")
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(path)
        return {name.strip().lower(): [_text(cell) for cell in table[name].to_pylist()] for name in table.column_names}
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = list(csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
    header, *rows = lines or [[]]
    numbered = [(number, row) for number, row in enumerate(rows, start=2) if row]
    if wrong := [number for number, row in numbered if len(row) != len(header)]:
        raise RecipeError(
            f"line {wrong[0]} has {len(rows[wrong[0] - 2])} cells where the first line has {len(header)}; "
            "put names with commas in quotes"
        )
    columns = zip(*(row for _, row in numbered), strict=True) if numbered else ([] for _ in header)
    return {name.strip().lower(): [cell.strip() for cell in cells] for name, cells in zip(header, columns, strict=True)}


def _text(cell: Any) -> str:
    """A cell of a Parquet table as a CSV would hold it."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    return str(int(cell) if isinstance(cell, float) and cell.is_integer() else cell).strip()


def _scan(data: Data, path: Path, columns: Mapping[str, list[str]]) -> ImageFiles:
    if lacking := [name for name in (FILE, LABEL) if name not in columns]:
        has = f"it has {listed_names([name or '(no name)' for name in columns])}" if columns else "it is empty"
        raise RecipeError(f"the table has no column {' and no column '.join(lacking)}; {has}")
    group = (data.group or GROUP).lower()
    group = group if group in columns else ""
    size = len(columns[FILE])
    cells = (columns.get(name) or [""] * size for name in (FILE, LABEL, SPLIT, group))
    rows = [_Row(os.path.normpath(file) if file else "", *rest) for file, *rest in zip(*cells, strict=True)]
    root = Path(data.root).expanduser().absolute() if data.root else path.parent
    if problems := [*_wrong_cells(rows, SPLIT in columns, group), *_wrong_files(rows, root, data.root is None)]:
        raise RecipeError(*problems)
    return _ordered(rows, root, path, tuple(columns), bool(group))


def _wrong_cells(rows: Sequence[_Row], has_splits: bool, group: str) -> Iterator[str]:
    """What is empty, contradicts itself or is unknown."""
    if empty := [number for number, row in enumerate(rows, start=1) if not row.file]:
        yield f"{_some(len(empty), 'row')} no file, such as row {empty[0]:,} below the header; fill in or remove it"
    for what in (LABEL, *([group] if group else ())):
        field = LABEL if what == LABEL else GROUP
        if without := [row.file for row in rows if row.file and not getattr(row, field)]:
            yield f"{_some(len(without), 'file')} no {what}: {listed_names(without)}; fill it in or remove the row"
    labels: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        labels[row.file].add(row.label)
    labels.pop("", None)
    if several := {file: found for file, found in labels.items() if len(found - {""}) > 1}:
        named = listed_names([f"{file} ({', '.join(sorted(found))})" for file, found in several.items()])
        yield f"{_some(len(several), 'file')} two labels: {named}; keep one row for each file"
    times = Counter(row.file for row in rows if row.file and row.file not in several)
    if again := [file for file, number in times.items() if number > 1]:
        yield f"{_some(len(again), 'file')} more than one row: {listed_names(again)}; keep one row for each file"
    if unknown := sorted({row.split or "(empty)" for row in rows if not split_of(row.split)}) if has_splits else []:
        yield f"the column split says {listed_names(unknown)}; splits are called {layout.ACCEPTED}"
    yield from _alike({row.label for row in rows})


def _some(number: int, what: str) -> str:
    return f"1 {what} has" if number == 1 else f"{number:,} {what}s have"


def _alike(labels: set[str]) -> list[str]:
    """Labels that look the same, by the check of class folders."""
    found = layout.alike({"": {label: label for label in sorted(labels)}})
    return [problem.replace("class folders", "labels") for problem in found]


def _wrong_files(rows: Sequence[_Row], root: Path, is_tables: bool) -> Iterator[str]:
    if not root.is_dir():
        yield f"data.root={root} is not a folder; give the one that the files of the table are in"
        return
    names = [row.file for row in rows if row.file]
    if unread := layout.unreadable_names(names):
        yield from unread
    elif missing := [name for name in names if not (root / name).is_file()]:
        whose = "the table's folder; data.root says another" if is_tables else "data.root"
        count = "1 file is" if len(missing) == 1 else f"{len(missing):,} of {len(names):,} files are"
        yield f"{count} not there: {listed_names(missing)}; paths are taken below {root}, {whose}"


def in_order(labels: set[str]) -> tuple[str, ...]:
    """Classes in the order of their names; numbers by their size."""
    are_numbers = all(label.isdecimal() for label in labels)
    return tuple(sorted(labels, key=lambda label: (int(label) if are_numbers else 0, label)))


def _ordered(rows: Sequence[_Row], root: Path, path: Path, columns: tuple[str, ...], has_groups: bool) -> ImageFiles:
    classes = in_order({row.label for row in rows})
    index = {label: number for number, label in enumerate(classes)}
    parts = {row: split_of(row.split) or "train" for row in rows}
    ordered = sorted(rows, key=lambda row: (SPLITS.index(parts[row]), index[row.label], row.file))
    found = Counter(parts[row] for row in ordered)
    counts = {part: found[part] for part in SPLITS if found[part]}
    labels = np.array([index[row.label] for row in ordered], dtype=np.int64)
    refuse_few(labels, counts, classes)
    digest = hashlib.blake2b(repr((classes, counts)).encode() + labels.tobytes(), digest_size=16).hexdigest()
    return ImageFiles(
        labels=labels,
        counts=counts,
        classes=len(classes),
        root=root,
        class_names=classes,
        names=tuple(row.file for row in ordered),
        notes=tuple(absent(labels, counts, classes)),
        key=(str(path), digest),
        group_values=tuple(row.group for row in ordered) if has_groups else None,
        columns=columns,
    )


def refuse_few(labels: np.ndarray, counts: Mapping[str, int], classes: Sequence[str]) -> None:
    """Refuse labels that cannot be trained on.

    Raises:
        RecipeError: no train split, fewer than 2 classes, or classes with too few images in train.
    """
    if "train" not in counts:
        raise RecipeError(f"no image is of the split train ({listed_names(list(counts)) or 'there are no images'})")
    if len(classes) < 2:
        raise RecipeError(f"all images have the label {classes[0]}; at least 2 classes are needed")
    found = dict(zip(classes, np.bincount(labels[: counts["train"]], minlength=len(classes)).tolist(), strict=True))
    named = {part: f"split {part}" for part in counts}
    if problems := [*layout.too_few(named, {"train": found}, {"train": {}})]:
        raise RecipeError(*problems)


def absent(labels: np.ndarray, counts: Mapping[str, int], classes: Sequence[str]) -> Iterator[str]:
    """In words, the classes that a given split has no images of."""
    starts = np.cumsum([0, *counts.values()])
    for part, start, count in zip(counts, starts, counts.values(), strict=False):
        found = np.bincount(labels[start : start + count], minlength=len(classes))
        if lacking := [name for name, number in zip(classes, found, strict=True) if not number]:
            yield f"{part} has no images of {listed_names(lacking)}"
