"""The section on duplicates and leaks, from audit.json, audit.csv and audit_pairs.png of a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from ...data.fonts import undrawn_classes
from ...sweep.reading import Lenient, validated
from ...sweep.rows import FinalResult
from .. import wording
from ..facts import Facts, Section
from ..figures.style import DPI
from ..pictures import picture

NOTABLE_IMBALANCE = 3.0
"""Largest to smallest class of the training images from which on it is worth a sentence."""
LISTED = 20
"""Contradicting pairs that are named."""
COLUMNS = ["kind", "split_a", "split_b", "name_a", "name_b", "label_a", "label_b"]
"""What is read of audit.csv, beside same_label."""


class _Pairs(Lenient):
    kind: str
    split_a: str
    split_b: str
    pairs: int


class _Images(Lenient):
    val: int
    test: int


class _Imbalance(Lenient):
    train: float


class _Counts(Lenient):
    train: dict[str, int]


class Audit(Lenient):
    """What is read of audit.json."""

    images: _Images
    pairs: tuple[_Pairs, ...]
    duplicated_test: tuple[int, ...]
    val_with_copy_in_train: int
    contradicting_labels: int
    imbalance: _Imbalance
    class_counts: _Counts
    notes: tuple[str, ...] = ()
    """The first edition has none."""


def audit(facts: Facts) -> Section | None:
    """Duplicates within and across the splits, and what they do to test accuracy."""
    there = [(run, run.folder / "audit.json") for run in facts.runs]
    read = [(run, validated(path, Audit, facts.unread)) for run, path in there if path.is_file()]
    audited, found = [run for run, one in read if one], [one for _, one in read if one]
    if not found:
        return None
    if any(each != found[0] for each in found):  # runs on different images, side by side
        names = [name for name, run in zip(facts.names, facts.runs, strict=True) if run in audited]
        rows = ({"run": name, **row} for name, each in zip(names, found, strict=True) for row in _counts(each))
        texts = (f"{name}: {copies(each)} {reading(each)}".rstrip() for name, each in zip(names, found, strict=True))
        return Section("Duplicates", " ".join(texts), table=tuple(rows))
    run = audited[0]
    return Section(
        "Duplicates",
        " ".join(filter(None, _sentences(found[0], list(run.finals.values())))),
        _picture(run.folder / "audit_pairs.png", facts.unread),
        tuple(_counts(found[0])),
        _contradicting(run.folder / "audit.csv", found[0].contradicting_labels, facts.unread),
    )


def _sentences(found: Audit, finals: Sequence[FinalResult]) -> tuple[str, ...]:
    only = finals[0] if len(finals) == 1 else None
    undrawn = undrawn_classes(list(found.class_counts.train)) if found.pairs else ""
    return copies(found), accuracies(only), imbalance(found), _legend(found), undrawn, reading(found)


def copies(found: Audit) -> str:
    """How many test and validation images are not new to the network."""
    tests, vals = found.images.test, found.images.val
    leaked, known = len(found.duplicated_test), found.val_with_copy_in_train
    if not found.pairs:
        return "No image was found to be a copy of another, within or across train, val and test."
    if not leaked and not known:
        return "No test image has a copy in train or val, and no validation image has one in train."
    return (
        f"{wording.percent(leaked / max(tests, 1))} of the {wording.count(tests, 'test image')} ({leaked:,}) have a "
        f"copy in train or val, and {wording.percent(known / max(vals, 1))} of the "
        f"{wording.count(vals, 'validation image')} ({known:,}) have one in train: there the network is asked about "
        "images that it was trained on."
    )


def accuracies(final: FinalResult | None) -> str:
    """Test accuracy with and without the duplicated images."""
    without = final.test_accuracy_without_duplicates if final else None
    if not final or without is None or not final.duplicated_test_images:
        return ""
    with_them = wording.percent(final.test_accuracy)
    return f"Test accuracy is {with_them} with them and {wording.percent(without)} without."


def imbalance(found: Audit) -> str:
    """The class sizes, where they are far from equal."""
    if found.imbalance.train < NOTABLE_IMBALANCE:
        return ""
    counts = found.class_counts.train
    most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    return (
        f"The classes are unequal: {most} has {wording.count(counts[most], 'training image')}, {least} has "
        f"{counts[least]:,}. Look at the confusions of the small classes, not at accuracy alone."
    )


def reading(found: Audit) -> str:
    """How the data was read: what was ignored, scaled or dropped."""
    return " ".join(f"{note[0].upper()}{note[1:]}." for note in found.notes if note)


def _legend(found: Audit) -> str:
    if not found.pairs:
        return ""
    return (
        "Exact copies are equal pixel for pixel, mirrored ones after a left-right flip; near ones are the same picture "
        "stored or cropped a little differently, found by comparison: judge them by the pictures. audit.csv lists all; "
        "data.drop_duplicates=true leaves exact copies out."
    )


def _counts(found: Audit) -> list[dict[str, str]]:
    return [
        {
            "kind": pair.kind,
            "splits": " – ".join(dict.fromkeys((pair.split_a, pair.split_b))),
            "pairs": wording.value(pair.pairs),
        }
        for pair in found.pairs
    ]


def _contradicting(table: Path, number: int, unread: list[str]) -> tuple[tuple[str, str], ...]:
    """A heading and a line for each pair of equal images whose labels differ."""
    if not number or not table.is_file():
        return ()
    try:
        pairs = pd.read_csv(table, dtype=str, keep_default_na=False)
        pairs = pairs.loc[pairs["same_label"] == "False", COLUMNS]
    except (ValueError, KeyError, OSError):  # pandas' parser errors are ValueErrors
        unread.append(f"{table.name} cannot be read as the table of an audit")
        return ()
    if len(pairs) != number:
        unread.append(f"{table.name} has {len(pairs)} contradicting pairs where audit.json has {number}")
    lines = [
        f"{row['name_a']} ({row['split_a']}) is labelled {row['label_a']}, "
        f"{row['name_b']} ({row['split_b']}) {row['label_b']}: {row['kind']}"
        for row in pairs.head(LISTED).to_dict("records")
    ]
    more = [f"and {number - len(lines):,} more in audit.csv"] if number > len(lines) else []
    noun = "pair of copies has" if number == 1 else "pairs of copies have"
    return ((f"{number:,} {noun} contradicting labels", "\n".join(lines + more)),)


def _picture(path: Path, unread: list[str]) -> Figure | None:
    """The picture of the worst pairs, pixel for pixel as a figure."""
    pixels = picture(path, path.name, unread) if path.is_file() else None
    if pixels is None:
        return None
    height, width = pixels.shape[:2]
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    figure.figimage(pixels)
    return figure
