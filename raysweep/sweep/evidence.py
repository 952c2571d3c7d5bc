"""What a trial says of every validation image: its predictions on disk, and their contributions to an objective.

The comparison of depths works image by image (see `raysweep.report.statistics`). A trial
therefore leaves its prediction for each validation image, and the rows of its rungs carry
the contributions that early stopping compares. No torch is needed here.
"""

from __future__ import annotations

import base64
import io
import zlib
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from zipfile import BadZipFile

import numpy as np

from ..files import write_bytes
from ..recipe import Objective

FOLDER = "predictions"
LABELS = "validation"
"""Name of the file that holds the labels of the validation images."""
UNREADABLE = (
    OSError,
    TypeError,
    ValueError,
    KeyError,
    EOFError,
    RuntimeError,
    SyntaxError,
    BadZipFile,
    TokenError,
    zlib.error,
)
"""What numpy and zipfile raise of a file that is missing, cut off or changed; numpy reads Python in its header."""


@dataclass(frozen=True)
class ImagePredictions:
    """A trial's predictions of the n validation images, in their order, at the epoch it counts with."""

    epoch: int
    predicted: np.ndarray
    """(n,) int32, the predicted classes."""
    true_probability: np.ndarray
    """(n,) float32, the probability of the true class."""
    val_key: str
    """Determined by the images and their labels; see `data.dataset.split_key`."""


def predictions_file(trial: str, found: ImagePredictions) -> tuple[str, bytes]:
    """Name within the run folder, and content, of the file of a trial's predictions."""
    file = io.BytesIO()
    np.savez_compressed(
        file,
        epoch=np.int64(found.epoch),
        predicted=found.predicted.astype(np.int32),
        true_probability=found.true_probability.astype(np.float32),
        val_key=np.str_(found.val_key),
    )
    return f"{FOLDER}/{trial}.npz", file.getvalue()


def read_predictions(folder: Path, trial: str) -> ImagePredictions | None:
    """A trial's predictions in a run folder; None where there are none, or none that can be read."""
    try:
        with np.load(folder / FOLDER / f"{trial}.npz", allow_pickle=False) as file:
            found = ImagePredictions(
                int(file["epoch"]), file["predicted"], file["true_probability"], str(file["val_key"])
            )
            return found if _is_sound(found) else None
    except UNREADABLE:
        return None


def _is_sound(found: ImagePredictions) -> bool:
    """Whether these are predictions: classes and probabilities, one of each for an image."""
    classes, sure = found.predicted, found.true_probability
    kinds = classes.dtype.kind in "iu" and sure.dtype.kind == "f" and classes.ndim == 1 and classes.shape == sure.shape
    return bool(kinds and np.all(classes >= 0) and np.all((sure >= 0) & (sure <= 1 + 1e-6)))


def write_labels(folder: Path, labels: np.ndarray, classes: int, val_key: str) -> None:
    """Write the labels (n,) of the validation images into a run folder."""
    file = io.BytesIO()
    np.savez_compressed(file, labels=labels.astype(np.int32), classes=np.int64(classes), val_key=np.str_(val_key))
    write_bytes(folder / FOLDER / f"{LABELS}.npz", file.getvalue())


def read_labels(folder: Path) -> tuple[np.ndarray, int, str] | None:
    """Labels (n,), number of classes and key of the validation images; None where they are not there."""
    try:
        with np.load(folder / FOLDER / f"{LABELS}.npz", allow_pickle=False) as file:
            labels, classes = file["labels"], int(file["classes"])
            sound = labels.dtype.kind in "iu" and labels.ndim == 1 and np.all((labels >= 0) & (labels < classes))
            return (labels, classes, str(file["val_key"])) if sound else None
    except UNREADABLE:
        return None


def contributions(
    objective: Objective, predicted: np.ndarray, true_probability: np.ndarray, labels: np.ndarray, classes: int
) -> np.ndarray:
    """What each image adds to the objective, whose value is the mean over images; more is better.

    Args:
        objective: accuracy: 1 where the prediction is right. balanced_accuracy: the same, weighted so that
            every class that occurs weighs the same. macro_f1: the jackknife pseudo-value of each image
            (Efron & Tibshirani 1993, An Introduction to the Bootstrap, section 11.5). loss: the logarithm of
            the true class's probability, minus the cross-entropy.
        predicted: (n,) classes.
        true_probability: (n,).
        labels: (n,) classes.
        classes: how many there are.

    Returns:
        (n,) bool for accuracy, else float64.
    """
    right = predicted == labels
    if objective == "accuracy":
        return right
    if objective == "loss":
        return np.log(np.maximum(true_probability.astype(float), 1e-12))
    if objective == "balanced_accuracy":
        counts = np.bincount(labels, minlength=classes)
        return right * (len(labels) / (np.count_nonzero(counts) * counts[labels]))
    return _f1_pseudo_values(predicted, labels, classes)


def _f1_pseudo_values(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """n θ - (n - 1) θ without the image, for θ the macro-F1. Images of one label and prediction have one value."""
    outputs = max(classes, int(predicted.max(initial=0)) + 1)
    table = np.zeros((outputs, outputs))
    np.add.at(table, (labels, predicted), 1)
    n, whole = len(labels), _macro_f1(table, classes)
    values = np.zeros_like(table)
    for true, guess in zip(*np.nonzero(table), strict=True):
        table[true, guess] -= 1
        values[true, guess] = n * whole - (n - 1) * _macro_f1(table, classes)
        table[true, guess] += 1
    return values[labels, predicted]


def _macro_f1(table: np.ndarray, classes: int) -> float:
    """Mean F1 over classes of a table (true, predicted); 0 for a class that neither occurs nor is predicted."""
    hits, sums = np.diag(table)[:classes], table.sum(0)[:classes] + table.sum(1)[:classes]
    return float((2 * hits / np.maximum(sums, 1)).mean())


def pack(values: np.ndarray) -> str:
    """Contributions as text for a row: a bit each where they are bool, else half-precision numbers."""
    if values.dtype == bool:
        return f"bits:{len(values)}:" + base64.b64encode(np.packbits(values).tobytes()).decode()
    return f"half:{len(values)}:" + base64.b64encode(values.astype(np.float16).tobytes()).decode()


def unpack(text: str) -> np.ndarray:
    """What `pack` was given: (n,) bool or float16.

    Raises:
        ValueError: text that `pack` did not make.
    """
    kind, _, rest = text.partition(":")
    count, _, encoded = rest.partition(":")
    raw = base64.b64decode(encoded, validate=True)
    if kind == "bits":
        return np.unpackbits(np.frombuffer(raw, np.uint8), count=int(count)).astype(bool)
    if kind == "half":
        return np.frombuffer(raw, np.float16, count=int(count))
    raise ValueError(f"{text[:12]}… holds no contributions")
