"""Which epochs a trial counts with, and how long its refit lasts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from ..train.measures import Measures


def counted(rows: Sequence[Measures], keep: str) -> list[Measures]:
    """The epochs up to the one that a trial counts with.

    Args:
        rows: a trial's epochs in order, at least one.
        keep: `last`, or `best_loss` for the epoch of the lowest validation loss, the first of equals.
    """
    if keep == "last":
        return list(rows)
    best = min(rows, key=lambda row: math.inf if row.val_loss is None else row.val_loss)
    return [row for row in rows if row.epoch <= best.epoch]


def epochs_by_phase(rows: Sequence[Measures]) -> tuple[int, ...]:
    """How many of these epochs each phase has, up to the last phase that has any."""
    counts = Counter(row.phase for row in rows)
    return tuple(counts[phase] for phase in range(1, max(counts) + 1))
