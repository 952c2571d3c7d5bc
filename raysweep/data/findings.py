"""What the audit found: pairs of images, and what they mean for the splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from ..recipe import RecipeError
from .dataset import Dataset, Split

SPLITS = ("train", "val", "test")
KINDS = ("exact", "mirror", "near")
EXAMPLES = 3
"""Pairs that an error names."""
COLUMNS = ("kind", "split_a", "split_b", "name_a", "name_b", "label_a", "label_b", "similarity", "same_label")
"""Of audit.csv."""
Kind = Literal["exact", "mirror", "near"]


@dataclass(frozen=True)
class Image:
    """An image of a split."""

    split: str
    position: int
    """In its split."""
    name: str
    label: str


@dataclass(frozen=True)
class Pair:
    """Two images of which one is a copy of the other."""

    kind: Kind
    a: Image
    b: Image
    """Of the same split or of a later one."""
    similarity: float
    """1 for exact and mirror; for near, 1 minus the root mean square difference of the small pictures, of 255."""

    @property
    def same_label(self) -> bool:
        """False where one of the labels must be wrong, or both are right of an ambiguous image."""
        return self.a.label == self.b.label

    def row(self) -> dict[str, Any]:
        """A row of audit.csv."""
        a, b = self.a, self.b
        cells = (self.kind, a.split, b.split, a.name, b.name, a.label, b.label, f"{self.similarity:.4f}")
        return dict(zip(COLUMNS, (*cells, self.same_label), strict=True))


@dataclass(frozen=True)
class Findings:
    """What the audit found."""

    pairs: tuple[Pair, ...]
    """The worst first: leaks into test, then into val, then copies within a split. Of a group of equal
    images each is paired with the group's first in every split, not with every other."""
    class_counts: dict[str, dict[str, int]]
    """Images by split and class."""
    notes: tuple[str, ...] = ()
    """Of the data set."""

    @cached_property
    def images(self) -> dict[str, int]:
        """Images of each split."""
        return {split: sum(counts.values()) for split, counts in self.class_counts.items()}

    @cached_property
    def imbalance(self) -> dict[str, float]:
        """Largest to smallest class of each split; a class without images counts as one image."""
        return {
            split: max(counts.values()) / max(min(counts.values()), 1) for split, counts in self.class_counts.items()
        }

    @cached_property
    def duplicated_test(self) -> tuple[int, ...]:
        """Positions of the test images with a copy in train or val, which the final fit learns from."""
        return tuple(sorted({*self.copied("test", "train"), *self.copied("test", "val")}))

    @property
    def contradicting(self) -> int:
        """Pairs whose labels differ."""
        return sum(not pair.same_label for pair in self.pairs)

    def copied(self, split: str, other: str, kinds: Sequence[str] = KINDS) -> set[int]:
        """Positions of the images of `split` that have a copy in `other`."""
        pairs = [pair for pair in self.pairs if pair.kind in kinds]
        ends = [(pair.a, pair.b) for pair in pairs] + [(pair.b, pair.a) for pair in pairs]
        return {one.position for one, two in ends if (one.split, two.split) == (split, other)}

    def summary(self) -> dict[str, Any]:
        """What audit.json holds."""
        counts = Counter((pair.kind, pair.a.split, pair.b.split) for pair in self.pairs)
        return {
            "images": self.images,
            "pairs": [dict(zip((*COLUMNS[:3], "pairs"), (*key, counts[key]), strict=True)) for key in counts],
            "test_with_copy_in_train": len(self.copied("test", "train")),
            "val_with_copy_in_train": len(self.copied("val", "train")),
            "contradicting_labels": self.contradicting,
            "imbalance": self.imbalance,
            "class_counts": self.class_counts,
            "duplicated_test": self.duplicated_test,
            "notes": self.notes,
        }


def class_counts(dataset: Dataset) -> dict[str, dict[str, int]]:
    """Images by split and class."""
    names = dataset.class_names
    counts = {name: np.bincount(part.labels, minlength=len(names)) for name, part in parts(dataset)}
    return {split: dict(zip(names, number.tolist(), strict=True)) for split, number in counts.items()}


def refuse_overlap(dataset: Dataset, findings: Findings) -> None:
    """Refuse splits that share images: a file that is in both, or most of the smaller one copied exactly.

    Raises:
        RecipeError: with the numbers and what to do, a sentence for each two splits.
    """
    problems = []
    for other, split in (("train", "test"), ("val", "test"), ("train", "val")):
        a, b = getattr(dataset, other), getattr(dataset, split)
        shared = len(np.intersect1d(a.rows, b.rows)) if a.pool is b.pool else 0
        small, large = (split, other) if len(b) <= len(a) else (other, split)
        copied, of = len(findings.copied(small, large, ("exact", "mirror"))), min(len(a), len(b))
        if shared or copied > of / 2:
            problems.append(
                f"{shared or copied} of the {of} {small} images are {large} images too"
                f"{_examples(findings, small, large)}: {split} would measure what was learnt by heart. "
                f"{_way_out(dataset, findings, split, other)}"
            )
    if problems:
        raise RecipeError(*problems)


def _examples(findings: Findings, split: str, other: str) -> str:
    """Some images of one split with their copies in another."""
    pairs = [pair for pair in findings.pairs if {pair.a.split, pair.b.split} == {split, other} and pair.kind != "near"]
    named = [f"{pair.a.name} and {pair.b.name}" for pair in pairs[:EXAMPLES]]
    return f", such as {'; '.join(named)}" if named else ""


def _way_out(dataset: Dataset, findings: Findings, split: str, other: str) -> str:
    """What to do about a split that shares its images with another."""
    exact = bool(findings.copied(split, other, ("exact",)))
    drop = "data.drop_duplicates=true leaves exact copies out before the data is split" if exact else ""
    if split in dataset.drawn:
        return drop or "They are mirrored copies: remove one of each two"
    own = f"Give {split} images of its own, or move its folder away to have {split} images drawn from train"
    return f"{own}; {drop}" if drop else own


def accuracy_without(correct: np.ndarray, duplicated: Sequence[int]) -> dict[str, float | int | None]:
    """Test accuracy with and without the duplicated images, by the names that the report reads.

    Args:
        correct: (n_test,) bool, in the order of the test split.
        duplicated: positions, such as `Findings.duplicated_test`.
    """
    rest = np.delete(np.asarray(correct, dtype=bool), np.asarray(duplicated, dtype=np.int64))
    return {
        "test_accuracy": float(np.mean(correct)),
        "test_accuracy_without_duplicates": float(rest.mean()) if len(rest) else None,
        "duplicated_test_images": len(correct) - len(rest),
    }


def parts(dataset: Dataset) -> list[tuple[str, Split]]:
    """Name and split, train first."""
    return [(name, getattr(dataset, name)) for name in SPLITS]
