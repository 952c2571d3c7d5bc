"""A synthetic run folder, written through the ledger as a sweep would write it."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raysweep.files import write_text
from raysweep.recipe import depth_label
from raysweep.sweep.evidence import ImagePredictions, contributions, write_labels
from raysweep.sweep.ledger import FINAL, RESULT, Ledger, Row
from raysweep.sweep.rows import Configuration, EpochRow, FinalResult, Stop
from tests.sweep.stored_predictions import write_predictions

EPOCHS = 6
TOTAL = 400_000
IMAGES = 1_000
"""Of validation, so that an accuracy of three decimals is a whole number of images."""
CLASSES = 3
LABELS = np.arange(IMAGES) ** 2 % 10 % CLASSES
"""Unequal classes, so that accuracy, balanced accuracy and macro-F1 differ."""
VAL_KEY = "these images"


def about(**more: Any) -> Row:
    """What recipe.yaml holds."""
    return {
        "recipe": {"name": "synthetic", "data": {"dataset": "digits"}, "grid": {"depth": [1, 3]}},
        "versions": {"torch": "2.9", "raysweep": "0.1.0"},
        "host": {"cpus": 2},
        "command": "python -m raysweep.grid synthetic",
        "started": "2025-01-01T00:00:00",
    } | more


def planned(
    depth: Any = 1,
    backbone: str = "tf_efficientnet_lite0",
    lr: float = 1e-3,
    seed: int = 0,
    layers: int | None = None,
    **axes: Any,
) -> Configuration:
    """A planned trial; its name tells what it is."""
    label = depth_label(depth)
    layers = layers or (depth if isinstance(depth, int) else 50 if depth == "all" else 1)
    fields: dict[str, Any] = {
        "trial": f"{zlib.crc32(repr((backbone, label, lr, seed, axes)).encode()):012x}",
        "backbone": backbone, "depth": depth, "depth_label": label, "layers": layers, "network_layers": 50,
        "lr": lr, "seed": seed, "trainable_tensors": 2 * layers,
        "trainable_parameters": TOTAL if depth == "all" else min(8_000 * layers, TOTAL), "total_parameters": TOTAL,
        "first_trainable": "conv", "epochs_planned": EPOCHS, "phases": "", "image_size": 32, "batch_norm": "frozen",
        "keep": "last", "weights": "pretrained", "head": "linear", "axes": axes,
    }  # fmt: skip
    return Configuration(**fields | {axis: axes[axis] for axis in axes if axis in Configuration.model_fields})


def predictions_of(plan: Configuration, accuracy: float) -> ImagePredictions:
    """Predictions of which exactly this share is right.

    What is hard is nearly the same for all trials: images have a difficulty, to which each trial adds its own
    noise, and the hardest are wrong.
    """
    hard = np.random.default_rng(0).standard_normal(IMAGES)
    own = np.random.default_rng(int(plan.trial, 16)).standard_normal(IMAGES)
    wrong = np.argsort(-(hard + 0.3 * own))[: IMAGES - round(accuracy * IMAGES)]
    predicted, sure = LABELS.copy(), np.linspace(0.8, 0.99, IMAGES)
    predicted[wrong] = (LABELS[wrong] + 1) % CLASSES
    sure[wrong] = 0.1
    return ImagePredictions(plan.epochs_planned, predicted, sure.astype(np.float32), VAL_KEY)


def scores_of(found: ImagePredictions) -> dict[str, float]:
    """The scores of predictions by the names of `Measures`; macro-F1 by its definition."""
    hits = [np.sum((found.predicted == k) & (k == LABELS)) for k in range(CLASSES)]
    sums = [np.sum(found.predicted == k) + np.sum(k == LABELS) for k in range(CLASSES)]
    parts = (found.predicted, found.true_probability, LABELS, CLASSES)
    return {
        "val_accuracy": float(np.mean(found.predicted == LABELS)),
        "val_balanced_accuracy": float(contributions("balanced_accuracy", *parts).mean()),
        "val_macro_f1": float(np.mean([2 * hit / total for hit, total in zip(hits, sums, strict=True)])),
        "val_loss": -float(contributions("loss", *parts).mean()),
    }


def epoch_rows(
    plan: Configuration, accuracy: float, epochs: int = EPOCHS, gap: float = 0.02, seconds: float = 1.0
) -> list[EpochRow]:
    """A saturating curve that ends at exactly `accuracy`, and at the scores of `predictions_of`, in its last epoch."""
    rows = []
    final = scores_of(predictions_of(plan, accuracy))
    for epoch in range(1, epochs + 1):
        rise = 1.0 - 0.5**epoch + 0.5**plan.epochs_planned * epoch / plan.epochs_planned
        scores = {name: value * rise for name, value in final.items()} | {"val_loss": final["val_loss"] * (2 - rise)}
        rows.append(EpochRow(
            trial=plan.trial, epoch=epoch, seconds=seconds, workers=1, cached=True, device="cpu", pid=7,
            val_images=IMAGES, **scores, train_accuracy=min(1.0, (accuracy + gap) * rise),
            train_loss=0.9 * scores["val_loss"], lr_epoch=plan.lr, over=epoch == plan.epochs_planned,
        ))  # fmt: skip
    return rows


Outcome = tuple[Configuration, str, list[EpochRow]]
"""A trial's plan, its last state, its epochs."""


def finished(plan: Configuration, accuracy: float, **more: Any) -> Outcome:
    """A trial that ran to its end."""
    return plan, "finished", epoch_rows(plan, accuracy, **more)


def write_run(
    folder: Path,
    outcomes: Sequence[Outcome],
    final: FinalResult | None = None,
    finals: Mapping[str, FinalResult] | None = None,
    predictions: bool = True,
    val_key: str = VAL_KEY,
    **more: Any,
) -> Path:
    """Write a run folder; a state of "planned" leaves the trial unstarted.

    Args:
        folder: to write into.
        outcomes: the trials.
        final: the final fit of the recommended configuration.
        finals: several final fits, by name.
        predictions: whether the trials leave their predictions.
        val_key: of the validation images.
        more: keys of recipe.yaml.
    """
    with Ledger(folder) as ledger:
        ledger.describe(about(**more))
        ledger.plan([plan for plan, _, _ in outcomes])
        for plan, state, rows in outcomes:
            _write_trial(ledger, plan, state, rows)
    if predictions:
        write_labels(folder, LABELS, CLASSES, val_key)
        for plan, _, rows in outcomes:
            if rows and rows[-1].over:
                found = predictions_of(plan, rows[-1].val_accuracy or 0.0)
                kept = ImagePredictions(found.epoch, found.predicted, found.true_probability, val_key)
                write_predictions(folder, plan.trial, kept)
    for name, result in ({"recommended": final} if final else finals or {}).items():
        write_text(folder / FINAL / name / RESULT, result.model_dump_json())
    return folder


def _write_trial(ledger: Ledger, plan: Configuration, state: str, rows: Sequence[EpochRow]) -> None:
    if state not in ("planned", "dropped"):
        ledger.trial(plan.trial, "running")
    for row in rows:
        ledger.epoch(row)
    if state not in ("planned", "running"):
        more: dict[str, Any] = {"error": "CUDA <out> of memory"} if state == "failed" else {}
        if state in ("stopped", "dropped"):
            more = {"stop": Stop(epoch=3, against="lr 0.001", behind=0.071, error=0.012)}
        ledger.trial(plan.trial, state, epochs_completed=len(rows), **more)  # type: ignore[arg-type]


def digits_outcomes(seeds: Sequence[int] = (0, 1), lrs: Sequence[float] = (1e-3, 1e-2)) -> list[Outcome]:
    """Five depths of a pretrained network, the larger learning rates stopped early, and a small CNN trained whole."""
    outcomes: list[Outcome] = []
    accuracies = {1: 0.85, 3: 0.92, 9: 0.94, 21: 0.95, 33: 0.96}
    for (depth, accuracy), lr, seed in itertools.product(accuracies.items(), lrs, seeds):
        plan = planned(depth, lr=lr, seed=seed)
        score = accuracy + (0.006 if seed % 2 else -0.006) - 0.07 * lrs.index(lr)
        stopped = lr != lrs[0]
        rows = epoch_rows(plan, score, 3 if stopped else EPOCHS, gap=0.001 * depth, seconds=0.4 + 0.1 * depth)
        outcomes.append((plan, "stopped" if stopped else "finished", rows))
    for seed in seeds:
        plan = planned("all", backbone="small_cnn", seed=seed, layers=5, weights="none")
        outcomes.append(finished(plan, 0.93 + 0.004 * seed, gap=0.05, seconds=2.0))
    return outcomes


def final_result(classes: int = 10, **changed: Any) -> FinalResult:
    """A final fit of depth 33 with a few confusions; 36 test images a class."""
    confusion = [[36 if row == column else 0 for column in range(classes)] for row in range(classes)]
    confusion[8][8], confusion[8][1] = 30, 6
    confusion[3][3], confusion[3][5] = 34, 2
    fields: dict[str, Any] = {
        "trial": planned(33).trial, "backbone": "tf_efficientnet_lite0", "depth": 33, "depth_label": "33",
        "layers": 33, "lr": 1e-3, "seed": 0, "epochs": EPOCHS, "test_accuracy": 1 - 8 / (36 * classes),
        "test_accuracy_without_duplicates": None, "duplicated_test_images": 0, "test_loss": 0.1,
        "test_images": 36 * classes, "train_images": 1437, "train_loss": 0.1, "workers": 2, "seconds": 30.0,
        "class_names": tuple(str(k) for k in range(classes)), "confusion": confusion,
        "test_balanced_accuracy": 0.977, "test_macro_f1": 0.976, "test_top5": 0.999, "test_calibration_error": 0.021,
        "calibration": ((0.55, 0.4, 20), (0.75, 0.7, 40), (0.95, 0.96, 100), (0.99, 1.0, 200)),
    }  # fmt: skip
    return FinalResult(**fields | changed)
