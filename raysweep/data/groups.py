"""Groups of images that never part over splits: photographs of one patient, scene or video.

Another image of a patient in train makes a test image easy for the wrong reason, as a copy does.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy.sparse import csr_array

from ..recipe import Data, RecipeError
from .folders import ImageFiles
from .layout import listed_names


def grouped(files: ImageFiles, data: Data) -> ImageFiles:
    """The files with the groups that a table's column or the pattern of `data.group` says.

    Raises:
        RecipeError: `data.group` is neither, or leaves a file without a group, or a group is in two splits.
    """
    values = files.group_values
    if values is None and data.group is not None:
        values = _by_pattern(data.group, files)
    if values is None:
        return files
    groups = group_numbers(values, files.names, files.counts)
    return replace(files, groups=groups, notes=(*files.notes, told(groups)))


def _by_pattern(pattern: str, files: ImageFiles) -> tuple[str, ...]:
    """What the first group of a regular expression finds in each file's name."""
    no_column = f"no column of the table ({', '.join(files.columns)}) and " if files.columns else ""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise RecipeError(f"data.group={pattern} is {no_column}no regular expression ({error})") from None
    if not compiled.groups:
        raise RecipeError(
            f"data.group={pattern} is {no_column}no regular expression with a group in brackets, "
            r"such as (patient\d+)_, which is what images of one group have in common"
        )
    found = [compiled.search(name) for name in files.names]
    without = [name for name, match in zip(files.names, found, strict=True) if not match or not match.group(1)]
    if without:
        raise RecipeError(
            f"data.group={pattern} finds no group in {len(without):,} of {len(found):,} file names: "
            f"{listed_names(without)}"
        )
    return tuple(match.group(1) for match in found if match)


def group_numbers(values: Sequence[str], names: Sequence[str], counts: Mapping[str, int]) -> np.ndarray:
    """Groups as numbers: (n,) int64, in the order of the data's own splits.

    Raises:
        RecipeError: a group is in two given splits.
    """
    parts = np.repeat(list(counts), list(counts.values()))
    where: dict[str, dict[str, str]] = defaultdict(dict)
    for value, part, name in zip(values, parts, names, strict=True):
        where[value].setdefault(str(part), name)
    parted = {value: examples for value, examples in where.items() if len(examples) > 1}
    if parted:
        value, examples = next(iter(parted.items()))
        others = f" and {len(parted) - 1:,} more groups are" if len(parted) > 1 else " is"
        named = ", ".join(f"{name} in {part}" for part, name in examples.items())
        raise RecipeError(
            f"data.group: group {value}{others} in several splits ({named}): what is measured would be what was learnt "
            "by heart. Keep each group in one split, or leave the splits out to have them drawn group by group"
        )
    numbers = {value: number for number, value in enumerate(where)}
    return np.array([numbers[value] for value in values], dtype=np.int64)


def told(groups: np.ndarray) -> str:
    """How many groups there are, in words."""
    sizes = np.unique(groups, return_counts=True)[1]
    span = f"{sizes.min():,}" if sizes.min() == sizes.max() else f"{sizes.min():,} to {sizes.max():,}"
    return f"{len(sizes):,} groups of {span} images, each in one split (data.group)"


def draw_groups(
    groups: np.ndarray, labels: np.ndarray, rows: np.ndarray, fraction: float, leave: int, seed: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Draw whole groups that make up `fraction` of each class, as nearly as they can; return (drawn, rest), ascending.

    Groups are gone through at random, large ones first, and one is drawn if that brings the classes
    nearer to their shares of what was gone through; so the small ones level out what the large ones
    left. Each class keeps `leave` groups in the rest, and is drawn from at least once if it has more.
    """
    members, own = np.unique(groups[rows], return_inverse=True)
    images = csr_array((np.ones(len(rows)), (own, labels[rows])))
    images.sum_duplicates()
    order = np.random.RandomState(seed).permutation(len(members))
    order = order[np.argsort(-images.sum(1)[order], kind="stable")]
    draw = _Draw(images, leave)
    draw.in_proportion(order, fraction)
    draw.of_each_class(order)
    taken = draw.drawn[own]
    return rows[taken], rows[~taken]


class _Draw:
    """Groups that are drawn, by their images of each class: (groups, classes)."""

    def __init__(self, images: csr_array, leave: int) -> None:
        self.images, self.leave = images, leave
        self.total = images.sum(0)
        self.held = np.zeros(len(self.total))
        """Images drawn of each class."""
        self.left = np.bincount(images.indices, minlength=len(self.total))
        """Groups of each class that are not drawn."""
        self.drawn = np.zeros(images.shape[0], dtype=bool)

    def in_proportion(self, order: np.ndarray, fraction: float) -> None:
        """Draw each group that brings the classes nearer to their share of what was gone through."""
        seen = np.zeros(len(self.total))
        for group in order:
            classes, images = self._content(group)
            seen[classes] += images
            off = (self.held[classes] - fraction * seen[classes]) / self.total[classes]
            if ((off + images / self.total[classes]) ** 2).sum() < (off**2).sum():
                self._take(group)

    def of_each_class(self, order: np.ndarray) -> None:
        """Draw a group, the last in order, of each class that has none."""
        by_class, rank = self.images.tocsc(), np.argsort(order)
        for missing in np.flatnonzero((self.total > 0) & (self.held == 0)):
            candidates = by_class.indices[by_class.indptr[missing] : by_class.indptr[missing + 1]]
            for group in candidates[np.argsort(-rank[candidates])]:
                if not self.held[missing]:
                    self._take(group)

    def _take(self, group: int) -> None:
        """Draw a group, unless a class would be left too few."""
        classes, images = self._content(group)
        if not self.drawn[group] and (self.left[classes] > self.leave).all():
            self.drawn[group] = True
            self.held[classes] += images
            self.left[classes] -= 1

    def _content(self, group: int) -> tuple[np.ndarray, np.ndarray]:
        """The classes of a group, and how many images it has of each."""
        span = slice(self.images.indptr[group], self.images.indptr[group + 1])
        return self.images.indices[span], self.images.data[span]


def unrepresented(rows: Mapping[str, np.ndarray], labels: np.ndarray, classes: int) -> list[str]:
    """In words, splits without images of some classes."""
    found = {part: classes - len(np.unique(labels[places])) for part, places in rows.items()}
    return [
        f"{part} has no images of {number:,} of {classes:,} classes: their groups are in other splits (data.group)"
        for part, number in found.items()
        if number
    ]
