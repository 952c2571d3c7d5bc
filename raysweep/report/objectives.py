"""What configurations are compared by, as tables and figures know it."""

from __future__ import annotations

from dataclasses import dataclass

from ..recipe import Objective


@dataclass(frozen=True)
class Metric:
    """An objective in words and columns."""

    column: str
    """Of the trials and depths tables."""
    name: str
    scale: float
    """From the column to what is drawn: percent, or the loss itself."""
    unit: str

    @property
    def axis(self) -> str:
        """Label of an axis."""
        return f"validation {self.name}" + (f" ({self.unit})" if self.unit else "")


METRICS: dict[Objective, Metric] = {
    "accuracy": Metric("val_accuracy", "accuracy", 100, "%"),
    "balanced_accuracy": Metric("val_balanced_accuracy", "balanced accuracy", 100, "%"),
    "macro_f1": Metric("val_macro_f1", "macro-F1", 100, "%"),
    "loss": Metric("val_loss", "loss", 1, ""),
}
