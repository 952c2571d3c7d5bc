"""The same recipe, end to end, on little: fake images of its own shape, random weights, one short epoch."""

from __future__ import annotations

from typing import Any

from raysweep import datasets
from raysweep.recipe import Recipe

IMAGES_PER_CLASS = 4
LEAST_IMAGES = 96


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
            "image_size": size,
            "limit": max(LEAST_IMAGES, IMAGES_PER_CLASS * shape.classes),
        }
    )
    small: dict[str, Any] = {"epochs": 1, "patience": None, "batch_size": min(recipe.train.batch_size, 32)}
    blocks = tuple(block.model_copy(update={"extra": _without(block.extra)}) for block in recipe.grid)
    return recipe.model_copy(
        update={
            "name": f"{recipe.name}-smoke",
            "data": data,
            "grid": blocks,
            "model": recipe.model.model_copy(update={"weights": "none"}),
            "train": recipe.train.model_copy(update=small),
        }
    )


def _without(extra: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
    return {
        axis: values for axis, values in extra.items() if axis not in ("weights", "epochs", "batch_size", "patience")
    }
