"""Helper: a small feature of made-up values."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from raysweep.features.spec import Spec
from raysweep.features.store import Store
from raysweep.features.stored import write_batch
from raysweep.recipe import Statistics

SPEC = Spec(
    data="d0", split="train", count=6, image_size=32, statistics=Statistics(mean=(0, 0, 0), std=(1, 1, 1)),
    view="", network="n0", node="layer4", shape=(4, 3, 2), dtype="float32",
    precision="float32",
)  # fmt: skip
BYTES = 6 * 4 * 3 * 2 * 4
FILE = BYTES + 128
"""With the header of a .npy file."""


def named(*names: str) -> list[Spec]:
    """The feature at other nodes."""
    return [replace(SPEC, node=name) for name in names]


def values(spec: Spec = SPEC, seed: int = 0) -> torch.Tensor:
    """What a network would give for all images."""
    return torch.randn(spec.count, *spec.shape, generator=torch.Generator().manual_seed(seed))


def as_stored(spec: Spec = SPEC, seed: int = 0) -> np.ndarray:
    """The same as a float32 array, channels last."""
    return values(spec, seed).permute(0, 2, 3, 1).numpy()


def fill(path: Path, spec: Spec = SPEC, seed: int = 0) -> None:
    """Write the values into an array file, in two batches."""
    array = np.load(path, mmap_mode="r+")
    write_batch(array, 0, values(spec, seed)[:4], spec.dtype)
    write_batch(array, 4, values(spec, seed)[4:], spec.dtype)
    array.flush()


def make(store: Store, *specs: Spec) -> list[Spec]:
    """Make what is missing of the features; returns it."""
    with store.making(specs) as making:
        for spec, path in making.files.items():
            fill(path, spec)
    return list(making.files)
