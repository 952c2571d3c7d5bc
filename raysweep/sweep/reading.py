"""What can be read of the files of a run folder, with a sentence for everything that cannot.

A run folder is copied, cut off and edited. What is not as a sweep writes it is left out: a
field, a line, a file. The rest is read.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from ..recipe import Objective, yaml_core
from ..recipe.yaml_core import YamlError
from .rows import Configuration, EpochRow, FinalResult, TrialRow

Row = dict[str, Any]
Unread = list[str]
"""Sentences that begin with the file, and the line where it has lines."""
M = TypeVar("M", bound=BaseModel)
MOST_LINES = 5
"""Lines of one file that are named."""
TELLS_A_TRIAL = ("backbone", "depth", "layers", "lr", "seed", "trainable_parameters", "total_parameters")
"""Columns without which nothing can be said of a trial."""


class Lenient(BaseModel):
    """Base of what is looked for in a file that may hold more, or less."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, strict=True)


def _line(name: str, *rows: type[BaseModel]) -> type[BaseModel]:
    """The fields of rows, none of which has to be there."""
    fields = {key: (field.annotation | None, None) for row in rows for key, field in row.model_fields.items()}  # type: ignore[operator]
    return create_model(name, __base__=Lenient, **fields)  # type: ignore[call-overload, no-any-return]


LINES = {
    "epochs.jsonl": (_line("EpochLine", Configuration, EpochRow), ("trial", "epoch")),
    "trials.jsonl": (_line("TrialLine", Configuration, TrialRow), ("trial", "state")),
}
"""The fields of a line, and those without which it says nothing."""


class _DataPart(Lenient):
    dataset: str | None = None
    root: str | None = None
    val_fraction: float | None = None


class _FeaturesPart(Lenient):
    dtype: str | None = None


class _FinalPart(Lenient):
    enabled: bool | None = None


class _RecipePart(Lenient):
    data: _DataPart | None = None
    features: _FeaturesPart | None = None
    final: _FinalPart | None = None
    objective: Objective | None = None
    tolerance: Annotated[float, Field(ge=0, le=100)] | None = None
    confidence: Annotated[float, Field(gt=0.5, lt=1)] | None = None


class _ImagesPart(Lenient):
    drawn: list[str] | None = None


class About(Lenient):
    """What is read of recipe.yaml."""

    recipe: _RecipePart | None = None
    images: _ImagesPart | None = None
    versions: dict[str, str] | None = None
    command: str | None = None


class StoredCut(Lenient):
    """What is read of a decision of features.json."""

    backbone: str
    depth_label: str
    trials: list[str]
    store: bool
    mebibytes: float
    prefix_ms_per_image: float
    images_computed: int
    images_an_epoch: int
    predicted_saving_s: float
    reason: str


class Pass(Lenient):
    """What is read of a pass of features.json."""

    images: int
    seconds: float
    lanes: int
    problem: str


class FeaturesFile(Lenient):
    """What is read of features.json."""

    decisions: list[StoredCut]
    made: list[Pass]


def about(path: Path, unread: Unread) -> Row:
    """recipe.yaml, without the fields that are not as they should be.

    Raises:
        YamlError: it is no YAML, or no mapping.
    """
    content = text(path, unread)
    tree = yaml_core.loads(content or "")
    if not isinstance(tree, dict):
        raise YamlError("it holds no mapping")
    unread.extend(f"{path.name} has no {key}" for key in ("recipe", "started") if key not in tree)
    for place in _wrong_places(About, tree):
        unread.append(f"{path.name}: {'.'.join(map(str, place))} is not as a sweep writes it")
        _remove(tree, place)
    return {key: value for key, value in tree.items() if value is not None}


def features(path: Path, unread: Unread) -> Row | None:
    """features.json, without the decisions and passes that are not as they should be; None where there is none."""
    tree = json_of(path, unread) if path.is_file() else None
    if tree is None:
        return None
    parts: Row = {key: tree.get(key) if isinstance(tree, dict) else None for key in FeaturesFile.model_fields}
    wrong = _wrong_places(FeaturesFile, parts)
    if any(len(place) < 2 for place in wrong):
        unread.append(f"{path.name} is not as a sweep writes it")
        return None
    for key, number in sorted({place[:2] for place in wrong}, reverse=True):
        unread.append(f"{path.name}: number {int(number) + 1} of {key} is not as a sweep writes it")
        del parts[str(key)][int(number)]
    return parts


def final(path: Path, name: str, unread: Unread) -> FinalResult | None:
    """The result of a final fit; None where it cannot be read."""
    found = validated(path, FinalResult, unread, name)
    if found is not None and not _agrees(found):
        unread.append(f"{name}: its table of confusions does not fit its classes and images")
        return None
    return found


def rows(path: Path, unread: Unread, own: Callable[[Row], Row] = lambda row: row) -> list[Row]:
    """The lines of epochs.jsonl or trials.jsonl, without those and without the fields that are not as they should be.

    A last line without its end is what a sweep leaves that is killed while it writes: it is left out without a word.

    Args:
        path: the file.
        unread: what cannot be read is added to it.
        own: what is kept of a row.
    """
    if not path.is_file():
        return []
    model, needed = LINES[path.name]
    found, wrong = [], dict[int, str]()
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                row, why = _row(line, model, needed)
                if row is not None:
                    found.append(own(row))
                if why and not (row is None and not line.endswith(b"\n")):
                    wrong[number] = why
    except OSError as error:
        unread.append(f"{path.name} cannot be read: {error.strerror}")
    named = [f"{path.name}, line {number}: {why}" for number, why in wrong.items()]
    unread.extend(named[:MOST_LINES])
    if (more := len(named) - MOST_LINES) > 0:
        unread.append(f"{path.name}: {more} more such lines")
    return found


def nameless(rows: Iterable[Row]) -> dict[str, list[str]]:
    """Trials of which no row says what they are, with the columns that are missing."""
    known: dict[str, set[str]] = {}
    for row in rows:
        known.setdefault(row["trial"], set()).update(key for key in TELLS_A_TRIAL if row.get(key) is not None)
    missing = {trial: [key for key in TELLS_A_TRIAL if key not in keys] for trial, keys in sorted(known.items())}
    return {trial: keys for trial, keys in missing.items() if keys}


def validated(path: Path, model: type[M], unread: Unread, name: str = "") -> M | None:
    """A JSON file as a model; None where it cannot be read."""
    tree = json_of(path, unread, name)
    try:
        return None if tree is None else model.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        places = dict.fromkeys(".".join(map(str, item["loc"])) or "its content" for item in error.errors())
        unread.append(f"{name or path.name}: {', '.join(list(places)[:3])} is not as a sweep writes it")
        return None


def json_of(path: Path, unread: Unread, name: str = "") -> Any:
    """What a JSON file holds; None where it cannot be read."""
    content = text(path, unread, name)
    if content is None:
        return None
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        unread.append(f"{name or path.name} is no JSON: {error}")
        return None
    if found is None:
        unread.append(f"{name or path.name} holds nothing but null")
    return found


def text(path: Path, unread: Unread, name: str = "") -> str | None:
    """What a text file holds; None where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        unread.append(f"{name or path.name} cannot be read: {error.strerror}")
    except UnicodeDecodeError:
        unread.append(f"{name or path.name} cannot be read: it is not UTF-8 text")
    return None


def _row(line: bytes, model: type[BaseModel], needed: Sequence[str]) -> tuple[Row | None, str]:
    """A line without the fields that are not as they should be, and what is wrong with it."""
    if not line.strip():
        return None, ""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None, "is no JSON"
    if not isinstance(row, dict):
        return None, "is no row"
    try:
        model.model_validate_json(line)
        wrong = dict[str, None]()
    except ValidationError:
        wrong = dict.fromkeys(str(place[0]) for place in _wrong_places(model, row))
    row = {key: value for key, value in row.items() if key not in wrong}
    if missing := [key for key in needed if row.get(key) is None]:
        return None, f"has no {' and no '.join(missing)}"
    return row, f"{', '.join(wrong)} {'is' if len(wrong) == 1 else 'are'} not as a sweep writes it" if wrong else ""


def _wrong_places(model: type[BaseModel], tree: Any) -> list[tuple[str | int, ...]]:
    """Where a value is not as the model has it, each place once."""
    try:
        model.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        return list(dict.fromkeys(_in_tree(tree, item["loc"]) for item in error.errors()))
    return []


def _in_tree(tree: Any, place: Iterable[str | int]) -> tuple[str | int, ...]:
    """The part of a place that leads through the tree: a union adds the names of its members."""
    found: list[str | int] = []
    for key in place:
        inside = isinstance(tree, dict) and key in tree
        if not inside and not (isinstance(tree, list) and isinstance(key, int) and key < len(tree)):
            break
        found.append(key)
        tree = tree[key]
    return tuple(found)


def _remove(tree: Any, place: Sequence[str | int]) -> None:
    for key in place[:-1]:
        tree = tree.get(key) if isinstance(tree, dict) else None
    if place and isinstance(tree, dict):
        tree.pop(place[-1], None)


def _agrees(found: FinalResult) -> bool:
    """Whether the parts of a final fit belong together."""
    classes = len(found.class_names)
    square = len(found.confusion) == classes and Counter(map(len, found.confusion)) == {classes: classes}
    counts = [count for line in found.confusion for count in line]
    counted = square and classes > 0 and min(counts) >= 0 and 0 < sum(counts) <= found.test_images
    return counted and found.test_images < 2**53 and 0 <= found.test_accuracy <= 1
