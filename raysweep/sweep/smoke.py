"""The same recipe, end to end, on little: fake images of its own shape, random weights, one short epoch.

What a recipe asks for stays in it: its grid, phases, heads, image sizes, and as many
durations as it compares, the shortest being one epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..data import dataset as datasets
from ..recipe import Phase, Recipe

IMAGES_PER_CLASS = 1
LEAST_IMAGES = 64
"""Of training; a quarter as many are for validation."""
MOST_IN_A_BATCH = 24
"""So that an epoch has several steps."""
WARMUP_EPOCHS = 0.5
VALIDATE_EVERY_STEPS = 2
"""Where a recipe validates between epochs at all."""


def shrink(recipe: Recipe) -> Recipe:
    """A recipe with the same grid that needs neither data nor weights and ends soon.

    Raises:
        RecipeError: the data set of the recipe is not known.
    """
    shape = datasets.shape(recipe.data)
    size = recipe.data.image_size or shape.image_size or 32
    data = recipe.data.model_copy(
        update={
            "dataset": f"fake:{shape.classes}",
            "root": None,
            "labels": None,
            "group": None,
            "image_size": size,
            "limit": max(LEAST_IMAGES, IMAGES_PER_CLASS * shape.classes),
        }
    )
    train = {axis: _small(axis, [value], [recipe.train.epochs])[0] for axis, value in dict(recipe.train).items()}
    durations = sorted({epochs for block in recipe.grid for epochs in block.extra.get("epochs", ())})
    blocks = tuple(block.model_copy(update={"extra": _small_axes(block.extra, durations)}) for block in recipe.grid)
    return recipe.model_copy(
        update={
            "name": f"{recipe.name}-smoke",
            "data": data,
            "grid": blocks,
            "model": recipe.model.model_copy(update={"weights": "none"}),
            "train": recipe.train.model_copy(update=train),
        }
    )


def _small_axes(extra: dict[str, tuple[Any, ...]], durations: Sequence[int]) -> dict[str, tuple[Any, ...]]:
    return {axis: tuple(_small(axis, values, durations)) for axis, values in extra.items() if axis != "weights"}


def _small(axis: str, values: Sequence[Any], durations: Sequence[int]) -> list[Any]:
    """Values of a field of `train`, or of any other axis of the grid, that make for a short trial.

    The shortest of `durations`, in epochs, becomes one epoch, the next two: 20, 50, 100 stay three.
    """
    if axis == "epochs":
        return [durations.index(value) + 1 for value in values]
    if axis == "batch_size":
        return [min(value, MOST_IN_A_BATCH) for value in values]
    if axis == "validate_every_steps":
        return [value and min(value, VALIDATE_EVERY_STEPS) for value in values]
    if axis == "warmup_epochs":
        return [min(value, WARMUP_EPOCHS) for value in values]
    if axis == "phases":
        return [tuple(_small_phase(phase) for phase in phases) for phases in values]
    return list(values)


def _small_phase(phase: Phase | dict[str, Any]) -> Phase:
    """Phases are still plain where they are an axis of the grid."""
    phase = Phase.model_validate(phase)
    batch_size = phase.batch_size and min(phase.batch_size, MOST_IN_A_BATCH)
    warmup_epochs = phase.warmup_epochs and min(phase.warmup_epochs, WARMUP_EPOCHS)
    return phase.model_copy(update={"epochs": 1, "batch_size": batch_size, "warmup_epochs": warmup_epochs})
