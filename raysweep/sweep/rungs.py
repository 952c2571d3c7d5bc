"""Successive halving as plain arithmetic: rows in, decisions out, without process, clock or Ray.

Asynchronous successive halving stops a trial at a rung when it is not among the best that
were there before it. Over a whole grid of depths that removes the slow starters, which are
the shallow ones, from a figure about depth. Here each stratum, the trials that are equal in
the axes named by `compare_within`, has rungs of its own. Asked twice about the same epoch
of the same trial, the answer stays what it was, so that a run can be replayed from its rows.

Reference: Li et al. 2020, arXiv:1810.05934.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["continue", "stop"]


def milestones(grace: int, most: int, factor: float) -> tuple[float, ...]:
    """Epochs at which trials are compared, ascending: grace, grace × factor, …, at most `most`."""
    found, at = [], float(grace)
    while at <= most * (1 + 1e-9):
        found.append(at)
        at *= factor
    return tuple(found)


def quantile(values: Iterable[float], share: float) -> float:
    """The linearly interpolated quantile (numpy's default)."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@dataclass
class Rungs:
    """Asynchronous successive halving over one stratum."""

    grace: int
    most: int
    factor: float
    reached: dict[float, dict[str, float]] = field(init=False)
    """Values of the trials that reached each rung."""
    verdicts: dict[tuple[str, float], Verdict] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.reached = {at: {} for at in milestones(self.grace, self.most, self.factor)}

    def decide(self, trial: str, epoch: int, value: float) -> Verdict:
        """What happens to a trial after an epoch with this value, of which more is better."""
        at = max((rung for rung in self.reached if rung <= epoch), default=None)
        if at is None:
            return "continue"
        before = self.verdicts.get((trial, at))
        if before is not None:
            return before if epoch < at + 1 else "continue"
        others = self.reached[at]
        stops = bool(others) and value < quantile(others.values(), 1 - 1 / self.factor)
        others[trial] = value
        self.verdicts[trial, at] = "stop" if stops else "continue"
        return self.verdicts[trial, at]


class Strata:
    """A `Rungs` for each stratum.

    Args:
        strata: the stratum of each trial, by name.
        epochs: how many epochs each trial runs unless it is stopped, by name.
        grace: no trial is stopped before it has so many.
        factor: the reduction factor.
    """

    def __init__(self, strata: Mapping[str, Hashable], epochs: Mapping[str, int], grace: int, factor: float) -> None:
        self._strata, self._epochs = strata, epochs
        most = max(epochs.values())
        self._settings = (min(grace, most), most, factor)
        self._rungs: dict[Hashable, Rungs] = {}
        self.stopped: set[str] = set()
        """Names of trials stopped before their last epoch."""

    def decide(self, trial: str, epoch: int, value: float) -> Verdict:
        """What happens to a trial after an epoch; its last one is no rung, for it ends by itself."""
        if epoch >= self._epochs[trial]:
            return "continue"
        rungs = self._rungs.setdefault(self._strata[trial], Rungs(*self._settings))
        verdict = rungs.decide(trial, epoch, value)
        if verdict == "stop":
            self.stopped.add(trial)
        return verdict
