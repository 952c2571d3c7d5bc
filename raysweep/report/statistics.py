"""Which depth is enough: the comparison of configurations from what each says of every validation image.

A configuration is one network, depth and learning rate, trained with several seeds. Its
evidence is an array (seeds, images): for accuracy whether each image is classified right,
for other objectives each image's contribution to the score. Configurations that were
measured on the same images are compared image by image, which is far more precise than
comparing two averages, and the luck of the seed is estimated over all depths together.

Two errors are told apart. That of the *images* would vanish with more validation images,
that of the *seeds* with more seeds. A depth is *enough* if, with the confidence asked for,
no configuration tried is better by more than the tolerance; *too shallow* if, with the same
confidence, some other depth is; else *open*.

Everything is a pure function of its arguments: fractions from 0 to 1, more is better.
Measured by simulation: see `tests/report/test_statistics.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from scipy.stats import norm

V0 = 1 / 5000
"""Variance that the choice of a seed is assumed to add to accuracy, as a share of a (1 - a)."""
PRIOR_WEIGHT = 2.0
"""Degrees of freedom that the assumption counts for beside what the seeds show."""
POWER = 0.8
"""Probability with which a run that is advised should decide."""
DRAWS = 20_000
"""Of the simulation that tells how lucky the best of several is."""
MOST_SEEDS = 10
MOST_TIMES_IMAGES = 20
"""Limits of what is advised to run next."""

Status = Literal["enough", "open", "too shallow"]


@dataclass(frozen=True)
class Evidence:
    """What one configuration says of the validation images."""

    row: int
    """The depth it belongs to; rows are numbered from the cheapest to the dearest."""
    network: str
    """Configurations of one network share the estimate of what a seed does."""
    lr: float
    contributions: np.ndarray
    """(seeds, images) float or bool."""
    val_key: str = ""
    """Equal where the images and their labels are the same; never paired where it differs or is empty."""

    @property
    def seeds(self) -> int:
        """How many seeds."""
        return len(self.contributions)

    @property
    def images(self) -> int:
        """How many validation images."""
        return self.contributions.shape[1]

    @cached_property
    def mean_by_image(self) -> np.ndarray:
        """(images,), the mean over seeds."""
        return np.asarray(self.contributions, dtype=float).mean(0)

    @cached_property
    def score(self) -> float:
        """The mean over seeds and images."""
        return float(self.mean_by_image.mean())

    @cached_property
    def unit_variance(self) -> float:
        """Variance of one image's contribution: a (1 - a) of a slightly smoothed accuracy."""
        values = np.asarray(self.contributions, dtype=float)
        if np.isin(values, (0.0, 1.0)).all():
            smoothed = (self.images * self.score + 1) / (self.images + 2)
            return smoothed * (1 - smoothed)
        return max(float(values.var()), 1e-12)

    @cached_property
    def disagreement(self) -> float:
        """Variance of an image's contribution from seed to seed, mean over images; NaN for one seed."""
        if self.seeds < 2:
            return math.nan
        return float(np.asarray(self.contributions, dtype=float).var(0, ddof=1).mean())

    @cached_property
    def seed_variance(self) -> tuple[float, float]:
        """Of the seeds' scores, beyond what their disagreement on single images explains, and what that
        explains; both as a share of `unit_variance`."""
        of_scores = float(np.asarray(self.contributions, dtype=float).mean(1).var(ddof=1))
        explained = max(0.0, self.disagreement - of_scores) / (self.images - 1)
        return (of_scores - explained) / self.unit_variance, explained / self.unit_variance


@dataclass(frozen=True)
class Plan:
    """A run that would decide: so many seeds on so many validation images."""

    seeds: int
    images: int


@dataclass(frozen=True)
class Verdict:
    """What the evidence says. Rows and configurations go by their indices."""

    scores: tuple[float, ...]
    """Of each configuration."""
    chosen: tuple[int, ...]
    """The configuration that each row stands for: its best learning rate."""
    status: tuple[Status, ...]
    """Of each row."""
    upper: tuple[float, ...]
    """Of each row: how much the best configuration tried may be better, at most."""
    lower: tuple[float, ...]
    """Of each row: how much some other row is better, at least."""
    recommended: int
    """The cheapest row that is enough; where none is, the cheapest that measures within the tolerance of the best."""
    best: int
    """The row with the highest score."""
    optimism: float
    """How much the highest score owes, on average, to being the highest of several."""
    errors: tuple[float, ...]
    """Standard error of each row's score."""
    image_errors: tuple[float, ...]
    """Their parts that more validation images would make smaller."""
    seed_errors: tuple[float, ...]
    """Their parts that more seeds would make smaller."""
    differences: tuple[tuple[float, float], ...]
    """Of each row: its score minus the recommended one's, and the standard error of that."""
    paired: bool
    """Whether all rows were measured on the same images."""
    plans: tuple[Plan, ...]
    """What to run next: with the seeds there are, with the images there are, and with few seeds on some more images."""

    @property
    def error(self) -> float:
        """Standard error of the recommended row's score."""
        return self.errors[self.recommended]

    @property
    def is_decided(self) -> bool:
        """Whether a row is enough."""
        return "enough" in self.status


def judge(evidence: Sequence[Evidence], tolerance: float, confidence: float) -> Verdict:
    """Compare configurations.

    Args:
        evidence: at least one configuration in every row 0, 1, …
        tolerance: what the user would give up for a cheaper row.
        confidence: between one half and one.
    """
    return _Comparison(evidence, tolerance, confidence).verdict()


class _Comparison:
    """The steps of `judge`; names in formulas as in the specification: y, u, C, g, h, v."""

    def __init__(self, evidence: Sequence[Evidence], tolerance: float, confidence: float) -> None:
        self.evidence, self.tolerance = evidence, tolerance
        self.z = float(norm.ppf(confidence))
        self.z_power = float(norm.ppf(POWER))
        self.confidence = confidence
        self.y = np.array([one.score for one in evidence])
        self.u = np.array([one.unit_variance for one in evidence])
        self.seeds = np.array([one.seeds for one in evidence])
        self.images = np.array([one.images for one in evidence])
        self.rows = range(max(one.row for one in evidence) + 1)
        self.chosen = [self._best_of(row) for row in self.rows]
        self.v = self._seed_shares()
        self.from_images = self._image_covariance()
        self.from_seeds = self.v * self.u / self.seeds
        self.covariance = self.from_images + np.diag(self.from_seeds + 1 / (2 * self.images.astype(float) ** 2))

    def verdict(self) -> Verdict:
        """All of it together."""
        upper, lower = [self._upper(row) for row in self.rows], [self._lower(row) for row in self.rows]
        status = [self._status(one, other) for one, other in zip(upper, lower, strict=True)]
        tops = self.y[self.chosen]
        recommended = status.index("enough") if "enough" in status else self._cheapest_near(tops)
        pick = self.chosen[recommended]
        return Verdict(
            scores=tuple(self.y.tolist()),
            chosen=tuple(self.chosen),
            status=tuple(status),
            upper=tuple(upper),
            lower=tuple(lower),
            recommended=recommended,
            best=int(tops.argmax()),
            optimism=self._optimism(),
            errors=tuple(np.sqrt(np.diag(self.covariance)[self.chosen]).tolist()),
            image_errors=tuple(np.sqrt(np.diag(self.from_images)[self.chosen]).tolist()),
            seed_errors=tuple(np.sqrt(self.from_seeds[self.chosen]).tolist()),
            differences=tuple((float(tops[row] - self.y[pick]), self._h(self.chosen[row], pick)) for row in self.rows),
            paired=len({one.val_key for one in self.evidence}) == 1 and self.evidence[0].val_key != "",
            plans=tuple(self._plans()),
        )

    def _best_of(self, row: int) -> int:
        """The row's highest score; of equals the one with more seeds, then the smaller learning rate."""
        own = [index for index, one in enumerate(self.evidence) if one.row == row]
        return min(own, key=lambda k: (-self.y[k], -self.seeds[k], self.evidence[k].lr))

    def _seed_shares(self) -> np.ndarray:
        """v of every configuration: what a seed adds to the variance of a score, as a share of u; pooled by network."""
        shares = {}
        for network in {one.network for one in self.evidence}:
            several = [self.evidence[k] for k in self.chosen if self.evidence[k].network == network]
            shares[network] = _pooled([one for one in several if one.seeds > 1])
        return np.array([shares[one.network] for one in self.evidence])

    def _image_covariance(self) -> np.ndarray:
        """C: of the scores, by the choice of the images; 0 between configurations on different images."""
        count = len(self.evidence)
        result = np.zeros((count, count))
        groups: dict[tuple[str, int], list[int]] = {}
        for index, one in enumerate(self.evidence):
            alone = index if one.val_key == "" else -1
            groups.setdefault((one.val_key, alone), []).append(index)
        for members in groups.values():
            stacked = np.stack([self.evidence[k].mean_by_image - self.y[k] for k in members])
            n = stacked.shape[1]
            result[np.ix_(members, members)] = stacked @ stacked.T / (n * max(1, n - 1))
        return result

    def _h(self, k: int, d: int) -> float:
        """Standard error of the difference of two scores."""
        total = self.covariance[k, k] + self.covariance[d, d] - 2 * self.covariance[k, d]
        return math.sqrt(max(0.0, total))

    def _upper(self, row: int) -> float:
        d = self.chosen[row]
        others = [k for k in range(len(self.evidence)) if k != d]
        return max([0.0] + [float(self.y[k] - self.y[d] + self.z * self._h(k, d)) for k in others])

    def _lower(self, row: int) -> float:
        d = self.chosen[row]
        others = [k for k in self.chosen if k != d]
        if not others:
            return 0.0
        z = float(norm.ppf(1 - (1 - self.confidence) / len(others)))
        return max([0.0] + [float(self.y[k] - self.y[d] - z * self._h(k, d)) for k in others])

    def _status(self, upper: float, lower: float) -> Status:
        if upper <= self.tolerance:
            return "enough"
        return "too shallow" if lower > self.tolerance else "open"

    def _cheapest_near(self, tops: np.ndarray) -> int:
        return int(np.argmax(tops >= tops.max() - self.tolerance - 1e-12))

    def _optimism(self) -> float:
        """Mean over draws of the winner's error, where winning is by score plus error."""
        count = len(self.evidence)
        if count == 1:
            return 0.0
        values, vectors = np.linalg.eigh(self.covariance)
        root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T  # the symmetric one is the same on every machine
        half = np.random.default_rng(0).standard_normal((DRAWS // 2, count)) @ root
        errors = np.concatenate([half, -half])
        winners = (self.y + errors).argmax(1)
        return float(errors[np.arange(len(errors)), winners].mean())

    def _plans(self) -> list[Plan]:
        """The runs that are advised, without repetition."""
        if len(self.evidence) == 1:
            return []
        have = int(self.images.max())
        wanted = {seeds: self._images_needed(seeds) for seeds in {int(self.seeds.min()), *range(1, MOST_SEEDS + 1)}}
        found = [(int(self.seeds.min()), wanted[int(self.seeds.min())])]
        for most in (have, MOST_TIMES_IMAGES * have):
            found += [(seeds, wanted[seeds]) for seeds in range(1, MOST_SEEDS + 1) if wanted[seeds] <= most][:1]
        return list(dict.fromkeys(Plan(seeds, math.ceil(images)) for seeds, images in found if math.isfinite(images)))

    def _images_needed(self, seeds: int) -> float:
        """Images with which some row would turn out enough, probably, if the differences are as measured."""
        return min(max(self._needed(k, d, seeds) for k in range(len(self.y)) if k != d) for d in self.chosen)

    def _needed(self, k: int, d: int, seeds: int) -> float:
        """The same for a row's configuration d and one rival k."""
        one, other = self.evidence[k], self.evidence[d]
        room = self.tolerance - (self.y[k] - self.y[d])
        if room <= 0:
            return math.inf
        n = int(min(one.images, other.images))
        image_part = self.from_images[k, k] + self.from_images[d, d] - 2 * self.from_images[k, d]
        per_image = n * image_part + 1 / n
        by_seed = one.disagreement + other.disagreement
        by_seed = per_image / 2 if math.isnan(by_seed) else by_seed
        lasting = max(0.0, per_image - by_seed / min(one.seeds, other.seeds))
        need = (room / (self.z + self.z_power)) ** 2
        left = need - (self.v[k] * self.u[k] + self.v[d] * self.u[d]) / seeds
        return (lasting + by_seed / seeds) / left if left > 0 else math.inf


def _pooled(several: Sequence[Evidence]) -> float:
    """v of one network from its rows with two seeds or more; the assumption `V0` where there are none."""
    if not several:
        return V0
    freedom = np.array([one.seeds - 1 for one in several])
    beyond, explained = np.array([one.seed_variance for one in several]).T
    total = freedom.sum()
    shown = max(V0, float((freedom * beyond).sum() / total))
    weight = total * (shown / (shown + float(explained.mean()))) ** 2
    return max(0.0, (PRIOR_WEIGHT * V0 + weight * float((freedom * beyond).sum() / total)) / (PRIOR_WEIGHT + weight))
