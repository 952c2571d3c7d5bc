"""Images that are no copies of each other, copies of them, and how many of those an audit finds."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import sklearn.datasets
from PIL import Image

from raysweep.data.dataset import Dataset, Split


def dataset_of(images, labels=None, splits=None, classes=2):
    """Names are indices into `images`; split at random in 3 : 1 : 1 unless rows are given."""
    labels = np.arange(len(images)) % classes if labels is None else np.asarray(labels)
    if splits is None:
        order = np.random.RandomState(0).permutation(len(images))
        splits = np.split(order, [3 * len(images) // 5, 4 * len(images) // 5])
    parts = [np.sort(rows) for rows in splits]
    made = [Split(images, rows, labels[rows], tuple(map(str, rows))) for rows in parts]
    digest = hashlib.blake2b(np.ascontiguousarray(images).data, digest_size=16)
    digest.update(str([(rows.tolist(), labels[rows].tolist()) for rows in parts]).encode())
    return Dataset(*made, tuple(f"class{label}" for label in range(classes)), digest.hexdigest())


def textures(count, side=32, seed=0):
    """Random images with the spectrum of natural ones, 1 / frequency: (count, 3, side, side) uint8."""
    random = np.random.RandomState(seed)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    frequency[0, 0] = 1
    shared, own = (
        np.fft.ifft2(np.fft.fft2(random.randn(count, channels, side, side)) / frequency).real for channels in (1, 3)
    )
    images = shared + 0.4 * own
    images *= random.uniform(15, 60, (count, 1, 1, 1)) / images.std((1, 2, 3), keepdims=True)
    return (images + random.uniform(80, 170, (count, 1, 1, 1))).clip(0, 255).astype(np.uint8)


def photographs(cell=40):
    """Pieces of scikit-learn's two photographs that are not flat: (n, 3, 32, 32) uint8."""
    pieces = []
    for name in ("china.jpg", "flower.jpg"):
        with Image.open(Path(sklearn.datasets.__file__).parent / "images" / name) as image:
            for y in range(0, image.height - cell + 1, cell):
                for x in range(0, image.width - cell + 1, cell):
                    piece = image.crop((x, y, x + cell, y + cell)).resize((32, 32), Image.Resampling.BICUBIC)
                    pieces.append(np.asarray(piece).transpose(2, 0, 1))
    images = np.stack(pieces)
    return images[images.mean(1).std((1, 2)) > 8]


def jpeg(image, quality):
    file = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(file, "JPEG", quality=int(quality))
    with Image.open(file) as again:
        return np.asarray(again.convert("RGB")).transpose(2, 0, 1)


def plant(images, copies, seed=0):
    """Add exact, mirrored, JPEG and mirrored JPEG copies; returns all images and the pairs by kind."""
    random = np.random.RandomState(seed)
    quality = iter(random.randint(50, 91, 2 * copies))
    makers = {
        "exact": lambda image: image,
        "mirror": lambda image: image[..., ::-1],
        "jpeg": lambda image: jpeg(image, next(quality)),
        "mirrored jpeg": lambda image: jpeg(np.ascontiguousarray(image[..., ::-1]), next(quality)),
    }
    everything, pairs = list(images), {}
    for kind, make in makers.items():
        pairs[kind] = []
        for source in random.choice(len(images), copies, replace=False):
            pairs[kind].append(frozenset((str(source), str(len(everything)))))
            everything.append(make(images[source]))
    return np.stack(everything), pairs


def found_by(findings, *kinds):
    return {frozenset((pair.a.name, pair.b.name)) for pair in findings.pairs if not kinds or pair.kind in kinds}


def recall(findings, pairs):
    found = found_by(findings)
    return {kind: np.mean([pair in found for pair in planted]) for kind, planted in pairs.items()}


def flagged(findings, *kinds):
    """Share of the images that are in a pair of these kinds."""
    return len(set().union(*found_by(findings, *kinds))) / sum(findings.images.values())
