"""What a sweep will do, worked out before it does anything: every trial's layers and parameters.

Networks are built without weights or memory, so a plan fetches nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from ..data import dataset as datasets
from ..data.dataset import Shape
from ..nets import sizes, zoo
from ..nets.backbones import Backbone, check_weights_file, outline
from ..nets.layers import BATCH_NORMS, Layer, layers, select
from ..recipe import Data, Recipe, RecipeError, Trial, depth_label
from . import loggers
from .rows import Configuration


@dataclass(frozen=True)
class PlannedTrial:
    """A trial, and what is known of it before it starts."""

    trial: Trial
    configuration: Configuration

    @property
    def name(self) -> str:
        """The trial's name."""
        return self.configuration.trial


def plan(recipe: Recipe) -> list[PlannedTrial]:
    """Every trial of the grid, in order.

    Raises:
        RecipeError: an unknown backbone or data set, data that is not as it should be, weights, a head or
            a depth that a network does not have; all problems at once.
    """
    trials, axes = recipe.trials(), extra_axes(recipe)
    loggers.check(recipe.loggers)
    datasets.check(recipe.data)
    shape = cache(datasets.shape)  # of many trials on one folder, it is looked at once
    planned, problems = [], dict[str, None]()
    for trial in trials:
        try:
            planned.append(PlannedTrial(trial, _configuration(trial, axes, shape)))
        except RecipeError as error:
            problems.update(dict.fromkeys(error.problems))
    if problems:
        raise RecipeError(*problems)
    return planned


def extra_axes(recipe: Recipe) -> list[str]:
    """Axes beside backbone, depth, lr and seed that the recipe's grid sets."""
    return sorted({axis for block in recipe.grid for axis in block.extra})


def _configuration(trial: Trial, axes: Sequence[str], shape: Callable[[Data], Shape]) -> Configuration:
    backbone, trained = _network(trial, shape(trial.data))
    counts = {name: parameter.numel() for name, parameter in backbone.network.named_parameters()}
    tensors = [name for layer in trained for name in layer.parameters]
    data, model, train = (getattr(trial, part).model_dump(mode="json") for part in ("data", "model", "train"))
    named = {"head": trial.model.head.label, "augment": "+".join(trial.data.augment) or "none"}
    values = data | model | train | named | {"phases": trial.phases_label or None}
    return Configuration(
        trial=trial.name,
        backbone=trial.backbone,
        depth=trial.depth,
        depth_label=depth_label(trial.depth),
        layers=len(trained),
        network_layers=len(layers(backbone.network)),
        lr=trial.lr,
        seed=trial.seed,
        trainable_tensors=len(tensors),
        trainable_parameters=sum(counts[name] for name in tensors),
        total_parameters=sum(counts.values()),
        first_trainable=trained[0].name,
        epochs_planned=trial.epochs,
        phases=trial.phases_label,
        image_size=trial.data.image_size,
        batch_norm=trial.model.batch_norm,
        keep=trial.train.keep,
        weights=trial.model.weights,
        head=trial.model.head.label,
        axes={axis: values[axis] for axis in axes},
    )


def _network(trial: Trial, shape: Shape) -> tuple[Backbone, tuple[Layer, ...]]:
    """A trial's network without weights, and the layers that train.

    Raises:
        RecipeError: what the network does not have or cannot take.
    """
    zoo.check_weights(trial.backbone, trial.model)
    size = trial.data.image_size or shape.image_size
    if size:
        sizes.check(trial.backbone, trial.model.weights, size)
    check_weights_file(trial.backbone, trial.model, size)
    backbone = outline(trial.backbone, trial.model, shape.classes or 1, size)
    trained = select(backbone.network, trial.depth, backbone.head, trial.backbone)
    _check_head(trial, backbone, trained)
    for phase in trial.phases():
        _check_batch_norm(phase, backbone, select(backbone.network, phase.depth, backbone.head, trial.backbone))
    return backbone, trained


def _check_head(trial: Trial, backbone: Backbone, trained: tuple[Layer, ...]) -> None:
    """A number of layers that leaves part of a new head at its random values is surely not meant."""
    head = select(backbone.network, "head", backbone.head)
    if backbone.fresh and isinstance(trial.depth, int) and not set(head) <= set(trained):
        raise RecipeError(
            f"grid.depth={trial.depth} would leave part of the new head of {trial.backbone} untrained at random "
            f"values; choose 'head' or at least {len(head)}"
        )


def _check_batch_norm(phase: Trial, backbone: Backbone, trained: tuple[Layer, ...]) -> None:
    """Batch norm in training mode divides by the deviation within the batch, which one image does not have."""
    if phase.train.batch_size > 1:
        return
    own = {name for layer in trained for name in layer.parameters}
    every = phase.model.batch_norm == "training"
    norms = [
        name for name, module in backbone.network.named_modules()
        if isinstance(module, BATCH_NORMS) and (every or f"{name}.weight" in own)
    ]  # fmt: skip
    if norms:
        way_out = "model.batch_norm=frozen" if every else "a depth that trains no batch norm"
        raise RecipeError(
            f"train.batch_size=1: {phase.backbone} at depth {depth_label(phase.depth)} has batch norm in training mode "
            f"(such as {norms[-1]}), which needs 2 images or more; set train.batch_size=2 or more, or {way_out}"
        )
