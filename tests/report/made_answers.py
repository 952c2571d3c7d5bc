"""Answers made of chosen numbers, to read what is said of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from raysweep.recipe import Objective
from raysweep.report.answer import Answer, Question
from raysweep.report.statistics import Plan, Status, Verdict

TOTAL = 400_000


@dataclass(frozen=True)
class Depth:
    """A depth and what the verdict says of it; numbers in points."""

    label: Any
    score: float
    status: Status = "enough"
    upper: float = 0.0
    lower: float = 0.0
    network: str = "resnet18"
    seeds: int = 3
    cost: float = 10.0
    weights: str = "pretrained"


def answer(
    *depths: Depth,
    recommended: int = 0,
    configurations: int | None = None,
    optimism: float = 0.2,
    error: float = 0.4,
    image_error: float = 0.3,
    seed_error: float = 0.25,
    images: int = 10_000,
    plans: Sequence[Plan] = (),
    paired: bool = True,
    from_predictions: bool = True,
    asked: Objective | None = None,
    **question: Any,
) -> Answer:
    """An answer on these depths, given from the cheapest to the dearest."""
    asking = Question(**question)
    sign = -1 if asking.objective == "loss" else 1
    rows = [_row(place, depth, images, sign) for place, depth in enumerate(depths)]
    scores = [row["score"] for row in rows]
    verdict = Verdict(
        scores=tuple(scores), chosen=tuple(range(len(rows))), status=tuple(row["status"] for row in rows),
        upper=tuple(row["upper"] for row in rows), lower=tuple(row["lower"] for row in rows),
        recommended=recommended, best=scores.index(max(scores)), optimism=optimism / 100,
        errors=(error / 100,) * len(rows), image_errors=(image_error / 100,) * len(rows),
        seed_errors=(seed_error / 100,) * len(rows),
        differences=tuple((score - scores[recommended], 0.005 * (place != recommended))
                          for place, score in enumerate(scores)),
        paired=paired, plans=tuple(plans),
    )  # fmt: skip
    table = pd.DataFrame(rows)
    table = table.assign(
        difference=[value for value, _ in verdict.differences],
        difference_error=[one for _, one in verdict.differences],
        standard_error=verdict.errors,
    )
    tried = pd.concat([table] * -(-(configurations or len(rows)) // len(rows))).head(configurations or len(rows))
    return Answer(asking, tried, table, verdict, from_predictions, asked or asking.objective)


def _row(place: int, depth: Depth, images: int, sign: int) -> dict[str, Any]:
    layers = depth.label if isinstance(depth.label, int) else 50 if depth.label == "all" else 2
    return {
        "row": place, "series": depth.network, "backbone": depth.network, "depth": depth.label,
        "depth_label": "+".join(depth.label) if isinstance(depth.label, tuple) else str(depth.label),
        "layers": layers, "lr": 0.001, "n_seeds": depth.seeds, "val_images": images, "weights": depth.weights,
        "trainable_parameters": TOTAL if depth.label == "all" else min(8_000 * layers, TOTAL - 1),
        "total_parameters": TOTAL, "score": sign * depth.score / 100, "val_accuracy": depth.score / 100,
        "val_loss": depth.score / 100, "status": depth.status, "upper": depth.upper / 100,
        "lower": depth.lower / 100, "cost_seconds": depth.cost,
    }  # fmt: skip
