"""What determines a stored feature, and the name that follows from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from ..recipe import Statistics

FORMAT = 2
"""Of the files, and of how images become the network's input; a change makes all features anew."""
STORED_AS = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
"""numpy has no bfloat16: its bits are kept."""


@dataclass(frozen=True)
class Spec:
    """Everything that determines a stored feature: one tensor of a cut's frontier, of one split in one view."""

    data: str
    """Fingerprint of the images and their split."""
    split: str
    count: int
    image_size: int
    statistics: Statistics
    view: str
    """What `Augmentation.name` says of the view; empty for the images themselves."""
    network: str
    """Hash of the network's tensors and of the batch-norm policy's effect on them."""
    node: str
    """Name of the frontier tensor in the traced graph."""
    shape: tuple[int, ...]
    """Of one image."""
    dtype: str
    """That it is stored in."""
    precision: str
    """That it is computed in."""

    @property
    def digest(self) -> str:
        """32 hexadecimal digits."""
        facts = self.facts() | {"format": FORMAT, "versions": _versions()}
        return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()

    def facts(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self) | {"statistics": self.statistics.model_dump(mode="json")}

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of the array, channels last: so are tensors with two spatial axes trained."""
        shape = (*self.shape[1:], self.shape[0]) if len(self.shape) == 3 else self.shape
        return (self.count, *shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return int(np.prod(self.stored_shape)) * np.dtype(STORED_AS[self.dtype]).itemsize


def joint_digest(specs: Sequence[Spec]) -> str:
    """32 hexadecimal digits that name several specs together, in any order."""
    return hashlib.blake2b("".join(sorted(spec.digest for spec in specs)).encode(), digest_size=16).hexdigest()


@cache
def _versions() -> list[str]:
    """Of the libraries whose operations compute features."""
    return [torch.__version__, version("torchvision"), version("timm")]
