"""What the final model says of each test image, and some of them to look at."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.dataset import Dataset
from ..files import write_text
from ..nets.heads import output_names

MOST_EACH = 12
"""Sample images that were classified right, and wrong."""
TILE = 96
"""Side in pixels of a sample."""


def write(folder: Path, dataset: Dataset, predicted: np.ndarray, probabilities: np.ndarray) -> None:
    """Write predictions.csv, and samples.png (one row of tiles) with samples.json beside it.

    Args:
        folder: where to write.
        dataset: whose test split was predicted.
        predicted: (n,) class of each test image.
        probabilities: (n,) probability that the model gave it.
    """
    test = dataset.test
    names = output_names(dataset.class_names, int(predicted.max()) + 1)
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["image", "true", "predicted", "probability"])
    for name, truth, guess, probability in zip(test.names, test.labels, predicted, probabilities, strict=True):
        lines.writerow([name, names[truth], names[guess], f"{probability:.4f}"])
    write_text(folder / "predictions.csv", text.getvalue())
    chosen = _chosen(predicted == test.labels)
    tiles = [Image.fromarray(image.transpose(1, 2, 0)).resize((TILE, TILE)) for image in test.images(chosen)]
    strip = Image.new("RGB", (TILE * max(1, len(tiles)), TILE))
    for index, tile in enumerate(tiles):
        strip.paste(tile, (TILE * index, 0))
    strip.save(folder / "samples.png")
    facts = [
        {
            "image": test.names[i],
            "true": names[test.labels[i]],
            "predicted": names[predicted[i]],
            "probability": round(float(probabilities[i]), 4),
        }
        for i in chosen
    ]
    about = {"tile": TILE, "samples": facts, "superclasses": _superclasses(dataset, predicted)}
    write_text(folder / "samples.json", json.dumps(about, indent=1))


def _chosen(right: np.ndarray) -> Sequence[int]:
    """Positions of some images classified right and some wrong, drawn evenly over the split."""
    picked: list[int] = []
    for outcome in (False, True):
        where = np.flatnonzero(right == outcome)
        picked.extend(where[np.linspace(0, len(where) - 1, min(MOST_EACH, len(where))).astype(int)].tolist())
    return picked


def _superclasses(dataset: Dataset, predicted: np.ndarray) -> dict[str, float] | None:
    """Accuracy over superclasses, where the data set has them, and the share of errors within one."""
    if dataset.superclasses is None:
        return None
    group = np.array(dataset.superclasses)
    truth = dataset.test.labels
    group = np.append(group, "")  # of no superclass
    same, right = group[truth] == group[np.minimum(predicted, len(group) - 1)], truth == predicted
    wrong = max(1, int((~right).sum()))
    return {"accuracy": float(same.mean()), "errors_within": float((same & ~right).sum() / wrong)}
