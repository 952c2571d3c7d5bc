"""Whether stored features stay in a GPU's memory: one budget for a GPU, of which each lane has its share.

Lanes start together and look at the same free memory, so that what is free now tells nothing
of what the others are about to take. A lane's budget therefore follows from the memory that
the GPU has and from the part of the GPU that a worker is given.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

FRACTION = 0.5
"""Of a lane's memory, for features; the rest is for weights, activations and the optimizer."""


def room(total: int, free: int, share: float, used: int) -> int:
    """Bytes that a lane may still keep resident.

    Args:
        total: bytes of the GPU.
        free: bytes of it that nobody has taken, other programs among them.
        share: of the GPU that is the lane's, up to 1 (`resources.gpus_per_worker`).
        used: bytes that the lane keeps already.
    """
    return max(0, min(int(FRACTION * share * total) - used, int(FRACTION * free)))


@dataclass
class Residency:
    """What one lane keeps in the memory of its GPU; nothing on a CPU, where features are mapped from the disk."""

    device: torch.device
    share: float = 1.0
    """See `room`."""
    used: int = 0
    """Bytes so far."""

    def takes(self, nbytes: int) -> bool:
        """Whether so many bytes more may be kept; they then count as used."""
        if self.device.type != "cuda":
            return False
        free, total = torch.cuda.mem_get_info(self.device)
        fits = nbytes <= room(total, free, self.share, self.used)
        self.used += nbytes if fits else 0
        return fits
