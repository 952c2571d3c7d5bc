"""What a sweep will do, worked out before it does anything: every trial's layers and parameters.

Networks are built without weights or memory, so a plan fetches nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from raysweep import backbones, datasets, depth
from raysweep.recipe import Model, Recipe, RecipeError, Trial, depth_label


@dataclass(frozen=True)
class Planned:
    """A trial, and what its depth means in its network."""

    config: Trial
    trial: str
    backbone: str
    depth: int | str | tuple[str, ...]
    depth_label: str
    layers: int
    """How many layers train."""
    network_layers: int
    lr: float
    seed: int
    trainable_tensors: int
    trainable_parameters: int
    total_parameters: int
    first_trainable: str
    """The layer farthest from the output that trains."""
    epochs_planned: int
    phases: str
    """In words (`Trial.phases_label`)."""

    def columns(self, axes: Sequence[str] = ()) -> dict[str, Any]:
        """The trial as columns of a table: its settings, and its values on further axes of the grid."""
        columns = {key: value for key, value in asdict(self).items() if key != "config"}
        columns["depth"] = list(self.depth) if isinstance(self.depth, tuple) else self.depth
        data, model, train = (getattr(self.config, part).model_dump(mode="json") for part in ("data", "model", "train"))
        head = self.config.model.head.label
        values = data | model | {"head": head} | train | {"phases": self.phases or None}
        further = {axis: values[axis] for axis in axes}
        return columns | {
            "image_size": data["image_size"],
            "batch_norm": model["batch_norm"],
            "keep": train["keep"],
            "weights": model["weights"],
            "head": head,
            "axes": further,
            **further,
        }


def plan(recipe: Recipe) -> list[Planned]:
    """Every trial of the grid, in order.

    Raises:
        RecipeError: an unknown backbone or data set, data that is not as it should be, weights, a head or
            a depth that a network does not have; all problems at once.
    """
    trials = recipe.trials()
    datasets.check(recipe.data)
    planned, problems = [], dict[str, None]()
    for trial in trials:
        try:
            planned.append(_planned(trial))
        except RecipeError as error:
            problems.update(dict.fromkeys(error.problems))
    if problems:
        raise RecipeError(*problems)
    return planned


def extra_axes(recipe: Recipe) -> list[str]:
    """Axes beside backbone, depth, lr and seed that the recipe's grid sets."""
    return sorted({axis for block in recipe.grid for axis in block.extra})


def _planned(trial: Trial) -> Planned:
    shape = datasets.shape(trial.data)
    backbones.check_weights(trial.backbone, trial.model)
    if size := trial.data.image_size or shape.image_size:
        backbones.check_image_size(trial.backbone, size)
    backbone = outline(trial.backbone, trial.model, shape.classes or 1)
    every = depth.layers(backbone.network)
    trained = depth.select(backbone.network, trial.depth, backbone.head, trial.backbone)
    _check_head(trial, backbone, trained)
    for phase in trial.train.phases:
        if phase.depth is not None:
            depth.select(backbone.network, phase.depth, backbone.head, trial.backbone)
    sizes = {name: parameter.numel() for name, parameter in backbone.network.named_parameters()}
    tensors = [name for layer in trained for name in layer.parameters]
    return Planned(
        config=trial,
        trial=trial.name,
        backbone=trial.backbone,
        depth=trial.depth,
        depth_label=depth_label(trial.depth),
        layers=len(trained),
        network_layers=len(every),
        lr=trial.lr,
        seed=trial.seed,
        trainable_tensors=len(tensors),
        trainable_parameters=sum(sizes[name] for name in tensors),
        total_parameters=sum(sizes.values()),
        first_trainable=trained[0].name,
        epochs_planned=trial.epochs,
        phases=trial.phases_label,
    )


def _check_head(trial: Trial, backbone: backbones.Backbone, trained: tuple[depth.Layer, ...]) -> None:
    """A number of layers that leaves part of a new head at its random values is surely not meant."""
    head = depth.select(backbone.network, "head", backbone.head)
    if backbone.fresh and isinstance(trial.depth, int) and not set(head) <= set(trained):
        raise RecipeError(
            f"grid.depth={trial.depth} would leave part of the new head of {trial.backbone} untrained at random "
            f"values; choose 'head' or at least {len(head)}"
        )


@lru_cache(maxsize=64)
def outline(name: str, model: Model, classes: int) -> backbones.Backbone:
    """See `backbones.outline`; kept for the next trial of the same network."""
    return backbones.outline(name, model, classes)
