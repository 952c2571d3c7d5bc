"""When a training that gets no better ends."""

from __future__ import annotations

import math


class Patience:
    """Counts epochs without a lower validation loss."""

    def __init__(self, epochs: int | None) -> None:
        self.epochs, self.best, self.waited = epochs, math.inf, 0

    def see(self, loss: float) -> None:
        """Note the loss of an epoch."""
        self.waited = 0 if loss < self.best else self.waited + 1
        self.best = min(self.best, loss)

    @property
    def is_out(self) -> bool:
        """Whether it has waited long enough."""
        return self.epochs is not None and self.waited >= self.epochs
