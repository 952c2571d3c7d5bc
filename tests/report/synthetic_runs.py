"""A synthetic run folder, written through the ledger as a sweep would write it."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raysweep.files import write_text
from raysweep.recipe import depth_label
from raysweep.sweep.ledger import RESULT, Ledger, Row
from raysweep.sweep.rows import Configuration, EpochRow, FinalResult

EPOCHS = 6
TOTAL = 400_000


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
        "trainable_parameters": TOTAL if depth == "all" else 8_000 * layers, "total_parameters": TOTAL,
        "first_trainable": "conv", "epochs_planned": EPOCHS, "phases": "", "image_size": 32, "batch_norm": "frozen",
        "keep": "last", "weights": "pretrained", "head": "linear", "axes": axes,
    }  # fmt: skip
    return Configuration(**fields | {axis: axes[axis] for axis in axes if axis in Configuration.model_fields})


def epoch_rows(
    plan: Configuration, accuracy: float, epochs: int = EPOCHS, gap: float = 0.02, seconds: float = 1.0
) -> list[EpochRow]:
    """A saturating curve that ends at exactly `accuracy` in its last epoch planned."""
    rows = []
    for epoch in range(1, epochs + 1):
        rise = 1.0 - 0.5**epoch + 0.5**plan.epochs_planned * epoch / plan.epochs_planned
        rows.append(EpochRow(
            trial=plan.trial, epoch=epoch, seconds=seconds, val_images=360, workers=1, cached=True, device="cpu", pid=7,
            val_accuracy=accuracy * rise, train_accuracy=min(1.0, (accuracy + gap) * rise),
            val_loss=1 - accuracy * rise, train_loss=1 - (accuracy + gap) * rise, lr_epoch=plan.lr,
        ))  # fmt: skip
    return rows


Outcome = tuple[Configuration, str, list[EpochRow]]
"""A trial's plan, its last state, its epochs."""


def write_run(folder: Path, outcomes: Sequence[Outcome], final: FinalResult | None = None, **more: Any) -> Path:
    """Write a run folder; a state of "planned" leaves the trial unstarted."""
    with Ledger(folder) as ledger:
        ledger.describe(about(**more))
        ledger.plan([plan for plan, _, _ in outcomes])
        for plan, state, rows in outcomes:
            if state != "planned":
                ledger.trial(plan.trial, "running")
            for row in rows:
                ledger.epoch(row)
            if state not in ("planned", "running"):
                error = {"error": "CUDA <out> of memory"} if state == "failed" else {}
                ledger.trial(plan.trial, state, **error)  # type: ignore[arg-type]
    if final is not None:
        write_text(folder / RESULT, final.model_dump_json())
    return folder


def digits_outcomes(seeds: Sequence[int] = (0, 1), lrs: Sequence[float] = (1e-3, 1e-2)) -> list[Outcome]:
    """Five depths of a pretrained network, the larger learning rate stopped by ASHA, and a small CNN trained whole."""
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
        outcomes.append((plan, "finished", epoch_rows(plan, 0.93 + 0.004 * seed, gap=0.05, seconds=2.0)))
    return outcomes


def final_result(classes: int = 10) -> FinalResult:
    """A final fit of depth 33 with a few confusions; 36 test images a class."""
    confusion = [[36 if row == column else 0 for column in range(classes)] for row in range(classes)]
    confusion[8][8], confusion[8][1] = 30, 6
    confusion[3][3], confusion[3][5] = 34, 2
    return FinalResult(
        trial="0" * 12, backbone="tf_efficientnet_lite0", depth=33, depth_label="33", layers=33, lr=1e-3, seed=0,
        epochs=EPOCHS, test_accuracy=1 - 8 / (36 * classes), test_accuracy_without_duplicates=None,
        duplicated_test_images=0, test_loss=0.1, test_images=36 * classes, train_images=1437, train_loss=0.1,
        workers=2, seconds=30.0, class_names=tuple(str(k) for k in range(classes)), confusion=confusion,
    )  # fmt: skip
