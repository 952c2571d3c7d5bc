"""Which images train, choose and test: seeded, disjoint, stratified by class.

Where the data has no test split, test images are drawn first and validation images from
the rest, so no change of `val_fraction` moves an image into or out of test. scikit-learn's
stratified splits refuse fewer draws than classes and may leave a rare class out of a split,
hence the draw of our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from ..recipe import Data, RecipeError
from .groups import draw_groups


def split(
    labels: np.ndarray, counts: dict[str, int], data: Data, groups: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """The rows of train, val and test, each ascending, disjoint and stratified by class.

    A class has at least one image in train, then one in val, then one in test, as far as it goes.

    Args:
        labels: (n,) of all images, ordered by the data's own splits.
        counts: images in each of the data's own splits; what is missing is drawn from train.
        data: how large they are to be, and the seed.
        groups: (n,) of all images; those of one group are drawn together. By class as well as that allows.

    Raises:
        RecipeError: a limit below the number of classes, or too few groups.
    """
    seed = data.split_seed % 2**32
    drawn = _draw if groups is None else partial(draw_groups, groups)
    starts = np.cumsum([0, *counts.values()])
    rows = {part: np.arange(start, start + count) for (part, count), start in zip(counts.items(), starts, strict=False)}
    if "test" not in counts:
        leave = 1 if "val" in counts else 2
        rows["test"], rows["train"] = drawn(labels, rows["train"], data.test_fraction, leave, [seed, 0])
    if "val" not in counts:
        rows["val"], rows["train"] = drawn(labels, rows["train"], data.val_fraction, 1, [seed, 1])
    _refuse_empty(rows, groups is not None)
    if data.limit is not None and data.limit < len(rows["train"]):
        classes = len(np.unique(labels[rows["train"]]))
        if data.limit < classes:
            raise RecipeError(
                f"data.limit={data.limit} is fewer images than the {classes} classes of {data.dataset}; "
                f"give at least {classes}, or null for all images"
            )
        share = data.limit / len(rows["train"])
        for stage, part in enumerate(("train", "val", "test"), start=2):
            rows[part], _ = _draw(labels, rows[part], share, 0, [seed, stage])
    if data.imbalance is not None:
        rows["train"] = _long_tailed(labels, rows["train"], data.imbalance, [seed, 5])
    return {part: rows[part] for part in ("train", "val", "test")}


def _refuse_empty(rows: dict[str, np.ndarray], are_grouped: bool) -> None:
    if are_grouped and (empty := [part for part in ("test", "val") if not len(rows[part])]):
        raise RecipeError(
            f"data.group: {' and '.join(empty)} would be empty: every group of images is needed in train, so that it "
            "has each class; give each class more groups, or the data splits of its own"
        )


def _long_tailed(labels: np.ndarray, rows: np.ndarray, ratio: float, seed: Sequence[int]) -> np.ndarray:
    """Rows of which the last class has `ratio` times fewer than the largest had, at least one, ascending."""
    order, counts, rank = _by_class(labels, rows, seed)
    present = np.flatnonzero(counts)
    falling = counts.max() * ratio ** (-np.arange(len(present)) / max(1, len(present) - 1))
    quotas = np.maximum(1, np.floor(falling + 0.5).astype(np.int64))
    return np.sort(order[rank < np.repeat(quotas, counts[present])])


def _draw(
    labels: np.ndarray, rows: np.ndarray, fraction: float, leave: int, seed: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Draw `fraction` of `rows` at random, by class in proportion; return (drawn, rest), ascending.

    Of each class at least one image is drawn, unless that would leave fewer than `leave`.
    """
    order, counts, rank = _by_class(labels, rows, seed)
    most = np.maximum(counts - leave, 0)
    least = np.minimum(most, 1)
    room = most - least
    extra = np.clip(round(fraction * len(rows)) - least.sum(), 0, room.sum())
    shares = np.cumsum([0, *room]) * (extra / max(room.sum(), 1))
    quotas = least + np.diff(np.floor(shares + 0.5).astype(np.int64))  # rounding never loses an image
    drawn = rank < np.repeat(quotas, counts)
    return np.sort(order[drawn]), np.sort(order[~drawn])


def _by_class(labels: np.ndarray, rows: np.ndarray, seed: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows class by class, shuffled within; how many each class has; the place of each row in its class.

    RandomState because its numbers never change from one numpy to the next.
    """
    order = np.random.RandomState(seed).permutation(rows)
    order = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels[rows])
    return order, counts, np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
