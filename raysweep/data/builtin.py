"""Data made in memory: scikit-learn's digits and fake images."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from ..recipe import Data, RecipeError
from .decoding import pixels_digest
from .pool import Pool


def _in_memory(images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]) -> Pool:
    images.setflags(write=False)
    names = tuple(f"train/{index}" for index in range(len(images)))
    digests = np.array([pixels_digest(image) for image in images], dtype="V16")
    return Pool(labels, {"train": len(images)}, len(class_names), images, names, class_names, digests)


def digits() -> Pool:
    """scikit-learn's 1,797 handwritten digits, 8×8, values 0..16 brought to 0..255.

    As `sklearn.datasets.load_digits` reads them, but without importing scikit-learn: that
    would take each lane a second and tens of megabytes.
    """
    package = importlib.util.find_spec("sklearn")
    assert package is not None and package.origin is not None
    table = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    pixels, labels = table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)
    gray = np.rint(pixels * (255 / 16)).astype(np.uint8)  # (n, 8, 8)
    return _in_memory(np.repeat(gray[:, None], 3, axis=1), labels, tuple("0123456789"))


def fake_counts(data: Data) -> tuple[int, dict[str, int]]:
    """Classes, and images of the training split."""
    classes = int(data.dataset.partition(":")[2] or 10)
    if classes < 2:
        raise RecipeError(f"data.dataset={data.dataset} has fewer than 2 classes; write fake:2 or more")
    return classes, {"train": max(512, 4 * classes)}


def fake(data: Data, side: int | None) -> Pool:
    """Noise over one pattern of 4×4 coloured squares a class: learnable, and made in a moment."""
    classes, counts = fake_counts(data)
    side = side or 32
    random = np.random.RandomState(data.split_seed % 2**32)
    labels = np.arange(counts["train"]) % classes
    patterns = random.randint(0, 192, size=(classes, 3, 4, 4), dtype=np.uint8)
    square = np.arange(side) * 4 // side  # (side,), the square each pixel is in
    images = random.randint(0, 64, size=(len(labels), 3, side, side), dtype=np.uint8)
    for label, pattern in enumerate(patterns):
        images[labels == label] += pattern[:, square[:, None], square]
    return _in_memory(images, labels, tuple(f"class{label}" for label in range(classes)))
