"""One of each image: exact copies left out before the data is split."""

from __future__ import annotations

import numpy as np

from ..recipe import Data, RecipeError
from .layout import least_of_a_class, listed_names
from .pool import Pool

KEPT_FIRST = ("test", "val", "train")
"""Whose image stays where splits share one: what is measured on does not depend on what is trained on."""


def without_copies(pool: Pool, data: Data) -> tuple[np.ndarray, dict[str, int], str]:
    """Drop every image whose pixels are those of another.

    Returns:
        The rows that stay, ascending; how many of each of the data's own splits; what was dropped, in words.

    Raises:
        RecipeError: a class has too few images left.
    """
    starts = dict(zip(pool.counts, np.cumsum([0, *pool.counts.values()]).tolist(), strict=False))
    order = np.concatenate(
        [np.arange(starts[part], starts[part] + pool.counts[part]) for part in KEPT_FIRST if part in starts]
    )
    _, first, group = np.unique(pool.digests[order], return_index=True, return_inverse=True)
    kept = np.sort(order[first])
    ends = np.cumsum(list(pool.counts.values()))
    sizes = np.diff([0, *np.searchsorted(kept, ends)])
    counts = dict(zip(pool.counts, sizes.tolist(), strict=True))
    _refuse_too_few(pool, data, kept[: counts["train"]])
    differ = int((pool.labels[order] != pool.labels[order[first]][group]).sum())
    return kept, counts, _told(len(order) - len(kept), differ)


def _refuse_too_few(pool: Pool, data: Data, train: np.ndarray) -> None:
    left = np.bincount(pool.labels[train], minlength=pool.classes)
    needed = least_of_a_class("train", pool.counts)
    few = [name for name, count in zip(pool.class_names, left, strict=True) if count < needed]
    if few:
        raise RecipeError(
            f"data.drop_duplicates=true: without exact copies too few training images are left of {listed_names(few)} "
            f"in {data.root or data.dataset}; {needed} of each class is the least: add images of these, or remove "
            "their folders"
        )


def _told(dropped: int, differ: int) -> str:
    if not dropped:
        return "data.drop_duplicates: no image is an exact copy of another"
    copies = "1 exact copy" if dropped == 1 else f"{dropped:,} exact copies"
    labels = f", {differ:,} of them with another label than the one that was kept" if differ else ""
    return f"dropped {copies} (data.drop_duplicates){labels}"
