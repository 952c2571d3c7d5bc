"""Small sweeps with known truth: whether an image is classified right is a sum of normal effects above zero.

An image has a difficulty, each depth, learning rate and seed finds other images hard, and a
seed moves the whole. The shares are such that at 95 % accuracy two seeds of one configuration
disagree on 3.3 % of images, two learning rates on 3.9 %, two depths on 4.2 % (neighbours) to
4.8 % (first and last).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from raysweep.report.statistics import Evidence

ACCURACY = 0.95
SAME_CONFIGURATION, SAME_DEPTH, NEXT_DEPTH, LAST_DEPTH = 0.9176, 0.8838, 0.8644, 0.8204
"""Correlations of what two trials find hard, solved for the disagreements above."""


@dataclass(frozen=True)
class Sweep:
    """One simulated sweep."""

    evidence: list[Evidence]
    truth: np.ndarray
    """(configurations,), the accuracy of each over all images and seeds there could be."""


def sweeps(
    count: int, images: int = 288, seeds: int = 2, depths: int = 4, rates: int = 2, differ: float = 1.0
) -> Iterator[Sweep]:
    """Sweeps one after the other.

    In every third, all depths are equally good, they rise towards the deepest, or they are good at random. A seed
    moves true accuracy by 0.1 to 0.6 points, learning rates differ by 0 to 1.

    Args:
        count: how many.
        images: of validation.
        seeds: of each configuration.
        depths: how many.
        rates: of each depth.
        differ: scales all true differences; with 0 every configuration is equally good.
    """
    generator = np.random.default_rng(0)
    for number in range(count):
        yield _sweep(generator, number, images, seeds, depths, rates, differ)


def _sweep(
    generator: np.random.Generator, number: int, images: int, seeds: int, depths: int, rates: int, differ: float
) -> Sweep:
    level = norm.ppf(ACCURACY)
    a_point = 0.01 / norm.pdf(level)
    rise = -4 * np.exp(-np.arange(depths) / generator.uniform(0.5, 3))
    of_depth = (np.zeros(depths), rise, generator.normal(0, generator.choice([0.3, 1, 2]), depths))[number % 3]
    of_rate = generator.normal(0, generator.choice([0, 0.3, 1]), (depths, rates))
    mean = level + differ * a_point * (of_depth[:, None] + of_rate)
    by_seed = a_point * generator.uniform(0.1, 0.6)
    hard = generator.standard_normal((images, depths)) @ np.linalg.cholesky(_between(depths)).T
    evidence = []
    for depth in range(depths):
        for rate in range(rates):
            own = hard[:, depth] + np.sqrt(SAME_CONFIGURATION - SAME_DEPTH) * generator.standard_normal(images)
            of_trial = np.sqrt(1 - SAME_CONFIGURATION) * generator.standard_normal((seeds, images))
            moved = mean[depth, rate] + by_seed * generator.standard_normal((seeds, 1))
            evidence.append(Evidence(depth, "network", 10.0**-rate, moved + own + of_trial > 0, "all"))
    return Sweep(evidence, norm.cdf(mean / np.sqrt(1 + by_seed**2)).ravel())


def _between(depths: int) -> np.ndarray:
    """(depths, depths), covariance of what depths find hard."""
    apart = np.abs(np.subtract.outer(np.arange(depths), np.arange(depths)))
    step = (NEXT_DEPTH - LAST_DEPTH) / max(1, depths - 2)
    return np.where(apart == 0, SAME_DEPTH, NEXT_DEPTH - step * (apart - 1))
