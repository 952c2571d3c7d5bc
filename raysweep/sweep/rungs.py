"""Early stopping as plain arithmetic: rows in, verdicts out, without process, clock or Ray.

Two rules. `Guard`, the default, compares learning rates that are equal in everything else,
image by image over the seeds that both have, and drops one that is surely behind: it never
chooses between equals, nor by the luck of a seed. `Halving` is asynchronous successive
halving (Li et al. 2020, arXiv:1810.05934) within strata, which stops the lower part of the
trials at every rung.

Both are asked after every epoch, in the order in which rows arrive. Asked again about an
epoch, the answer stays what it was, so that a run is replayed from its rows.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from .evidence import unpack
from .rows import EpochRow, Stop

SEED_VARIANCE = 1 / 5000
"""Variance that the choice of a seed is assumed to add to a score, as a share of that of one image."""
AT_THE_END = 1.0
"""Standard errors by which a rate must be behind at its last epoch to be dropped."""
LAST = -1
"""The rung of trials that ended by themselves."""


class EarlyStopping(Protocol):
    """Decides after every epoch which trials end."""

    stopped: dict[str, Stop]
    """Names of the trials that end, started or not, and why."""

    def report(self, row: EpochRow) -> None:
        """Take note of an epoch; `stopped` then tells what follows, for this trial and for others."""


def milestones(grace: int, most: int, factor: float) -> tuple[int, ...]:
    """Epochs at which trials are compared, ascending: grace, grace × factor, … rounded up, below `most`."""
    found, at = [], float(grace)
    while math.ceil(at) < most:
        found.append(math.ceil(at))
        at *= factor
    return tuple(dict.fromkeys(found))


def quantile(values: Iterable[float], share: float) -> float:
    """The linearly interpolated quantile (numpy's default)."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


# ---- the guard ----


@dataclass(frozen=True)
class Entrant:
    """A trial in the race."""

    group: Hashable
    """Equal for trials that are equal in everything but learning rate and seed."""
    lr: float
    seed: int


@dataclass(frozen=True)
class Difference:
    """How much one configuration is ahead of another, by the images that both predicted."""

    ahead: float
    error: float
    """Its standard error."""


class Guard:
    """Drops learning rates that are surely behind.

    Args:
        entrants: the trials, by name.
        rungs: epochs at which they are compared; they are at their last epoch too.
        tolerance: of the objective, as a fraction.
        errors: standard errors, beside the tolerance, by which a rate must be behind at a rung.
    """

    def __init__(self, entrants: Mapping[str, Entrant], rungs: Sequence[int], tolerance: float, errors: float) -> None:
        self._entrants, self._rungs = entrants, frozenset(rungs)
        self._tolerance, self._errors = tolerance, errors
        self._seen: dict[tuple[Hashable, int], dict[float, dict[int, np.ndarray]]] = {}
        self._dropped: set[tuple[Hashable, float]] = set()
        self.stopped: dict[str, Stop] = {}

    def report(self, row: EpochRow) -> None:
        """See `EarlyStopping`."""
        if row.evidence is None or not (row.over or row.epoch in self._rungs):
            return
        own = self._entrants[row.trial]
        rung = LAST if row.over else row.epoch
        rates = self._seen.setdefault((own.group, rung), {})
        rates.setdefault(own.lr, {})[own.seed] = unpack(row.evidence)
        for other in sorted(rates):
            if other != own.lr and not {(own.group, own.lr), (own.group, other)} & self._dropped:
                self._compare(own.group, own.lr, other, rates, row)

    def _compare(
        self, group: Hashable, lr: float, other: float, rates: Mapping[float, dict[int, np.ndarray]], row: EpochRow
    ) -> None:
        """Drop the one of two rates that is surely behind the other, if one is."""
        found = difference(rates[lr], rates[other])
        if found is None:
            return
        needed = AT_THE_END * found.error if row.over else self._errors * found.error + self._tolerance
        if abs(found.ahead) > needed:
            loser, winner = (other, lr) if found.ahead > 0 else (lr, other)
            self._drop(group, loser, winner, row.epoch, found)

    def _drop(self, group: Hashable, loser: float, winner: float, epoch: int, found: Difference) -> None:
        self._dropped.add((group, loser))
        why = Stop(epoch=epoch, against=f"lr {winner:.3g}", behind=abs(found.ahead), error=found.error)
        for name, entrant in self._entrants.items():
            if (entrant.group, entrant.lr) == (group, loser):
                self.stopped.setdefault(name, why)


def difference(ones: Mapping[int, np.ndarray], others: Mapping[int, np.ndarray]) -> Difference | None:
    """How much one configuration is ahead of another over the seeds of both; None if they share none.

    Args:
        ones, others: (n,) contributions of the images, by seed.
    """
    seeds = sorted(ones.keys() & others.keys())
    if not seeds:
        return None
    mine, theirs = (np.array([one[seed] for seed in seeds], dtype=float) for one in (ones, others))
    apart = (mine - theirs).mean(0)
    n = len(apart)
    unit = (_unit_variance(mine) + _unit_variance(theirs)) / 2
    between = apart.var(ddof=1) / n if n > 1 else 0.0
    variance = between + 2 * SEED_VARIANCE * unit / len(seeds) + 1 / n**2
    return Difference(float(apart.mean()), math.sqrt(variance))


def _unit_variance(values: np.ndarray) -> float:
    """Variance of one image's contribution, of (seeds, n): a (1 - a) of a slightly smoothed accuracy."""
    if ((values == 0) | (values == 1)).all():
        n = values.shape[1]
        smoothed = (n * float(values.mean()) + 1) / (n + 2)
        return smoothed * (1 - smoothed)
    return float(values.var())


# ---- plain successive halving ----


@dataclass
class Rungs:
    """Asynchronous successive halving over one stratum."""

    epochs: Sequence[int]
    """The rungs."""
    factor: float
    """Of so many trials one goes on."""
    reached: dict[int, dict[str, float]] = field(default_factory=dict)
    """Values of the trials that reached each rung."""
    decided: dict[tuple[str, int], bool] = field(default_factory=dict)

    def stops(self, trial: str, epoch: int, value: float) -> bool:
        """Whether a trial stops after an epoch with this value, of which more is better."""
        at = max((rung for rung in self.epochs if rung <= epoch), default=None)
        if at is None:
            return False
        if (trial, at) in self.decided:
            return self.decided[trial, at] and epoch == at
        others = self.reached.setdefault(at, {})
        stops = bool(others) and value < quantile(others.values(), 1 - 1 / self.factor)
        others[trial] = value
        self.decided[trial, at] = stops
        return stops


class Halving:
    """`Rungs` for each stratum.

    Args:
        strata: the stratum of each trial, by name.
        rungs: epochs at which trials are compared.
        factor: the reduction factor.
        value: the objective of a row, of which more is better.
    """

    def __init__(self, strata: Mapping[str, Hashable], rungs: Sequence[int], factor: float, value: str) -> None:
        self._strata, self._epochs, self._factor, self._value = strata, rungs, factor, value
        self._rungs: dict[Hashable, Rungs] = {}
        self.stopped: dict[str, Stop] = {}

    def report(self, row: EpochRow) -> None:
        """See `EarlyStopping`. A trial's last epoch is no rung, for it ends by itself."""
        if row.over:
            return
        rungs = self._rungs.setdefault(self._strata[row.trial], Rungs(self._epochs, self._factor))
        value = getattr(row, self._value)
        if rungs.stops(row.trial, row.epoch, -value if self._value == "val_loss" else value):
            self.stopped.setdefault(row.trial, Stop(epoch=row.epoch, against="the trials before it at this rung"))
