"""The grid of a sweep: blocks of axes, multiplied out into trials."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from .errors import RecipeError
from .problems import problems
from .schema import Asha, Data, Features, Final, Head, Model, Phase, Resources, Train
from .values import Depth, Frozen, Objective, Positive, Seed, Statistics, axis, depth_label, listed

IMAGE_FIELDS = ("image_size", "normalize", "augment", "crop_scale", "views")
"""Fields of `data` that leave the images and their splits as they are."""
UNSEEN = ("checkpoint_every_minutes",)
"""Fields of `train` that change no row of a trial."""
TRAIN_AXES = tuple(name for name in Train.model_fields if name not in UNSEEN)
MODEL_AXES = tuple(Model.model_fields)
EXTRA_AXES = (*MODEL_AXES, *TRAIN_AXES, *IMAGE_FIELDS)
MAIN_AXES = ("backbone", "depth", "lr", "seed")
SECTIONS = {
    **dict.fromkeys(MODEL_AXES, "model"),
    **dict.fromkeys(TRAIN_AXES, "train"),
    **dict.fromkeys(IMAGE_FIELDS, "data"),
}


class Block(Frozen):
    """Axes that are multiplied out with each other."""

    backbone: Annotated[tuple[str, ...], BeforeValidator(axis)] = ("tf_efficientnet_lite0",)
    depth: Annotated[tuple[Depth, ...], BeforeValidator(axis)] = (1,)
    lr: Annotated[tuple[Positive, ...], BeforeValidator(axis)] = (1e-3,)
    seed: Annotated[tuple[Seed, ...], BeforeValidator(axis)] = (0,)
    extra: dict[str, Annotated[tuple[Any, ...], BeforeValidator(axis)]] = Field(default={}, validation_alias="~extra")
    """Fields of model, train and data that this block sets or sweeps, given by their bare names."""

    @model_validator(mode="before")
    @classmethod
    def _gather_extra(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        extra = {key: value[key] for key in value if key in EXTRA_AXES}
        return {key: value[key] for key in value if key not in EXTRA_AXES} | {"~extra": extra}

    def points(self) -> Iterator[dict[str, Any]]:
        """Every combination of the axes' values, the last axis fastest."""
        axes = {name: getattr(self, name) for name in MAIN_AXES} | self.extra
        for values in itertools.product(*axes.values()):
            yield dict(zip(axes, values, strict=True))


class Trial(Frozen):
    """One configuration: everything that determines its rows."""

    backbone: str
    depth: Depth
    lr: float
    seed: int
    data: Data
    model: Model
    train: Train

    @model_validator(mode="after")
    def _goes_together(self) -> Trial:
        for one in self.phases():
            train = one.train
            if train.warmup_epochs > train.epochs:
                raise ValueError(
                    f"train.warmup_epochs={train.warmup_epochs:g} is more than the {train.epochs} epochs that are "
                    f"trained; choose at most {train.epochs}"
                )
            if train.nesterov and train.optimizer == "sgd" and not train.momentum:
                raise ValueError(
                    "train.nesterov=true needs a momentum and train.momentum=0; choose one above 0, such as 0.9"
                )
        return self

    @property
    def name(self) -> str:
        """Twelve hexadecimal digits of the SHA-256 of the configuration."""
        text = json.dumps(self.model_dump(mode="json", exclude={"train": set(UNSEEN)}), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def phases(self) -> tuple[Trial, ...]:
        """Each phase as a trial of one phase; the trial itself where it has no phases."""
        return tuple(self._phase(phase) for phase in self.train.phases) or (self,)

    def _phase(self, phase: Phase) -> Trial:
        stated = {name: x for name, x in dict(phase).items() if x is not None and name in Train.model_fields}
        train = self.train.model_copy(update={**stated, "phases": ()})
        return self.model_copy(update={"depth": phase.depth or self.depth, "lr": phase.lr or self.lr, "train": train})

    @property
    def phases_label(self) -> str:
        """The phases in words, such as `head for 3 epochs, then layer3 for 5 epochs (lr=1e-05)`; empty without any."""
        words = []
        for phase, one in zip(self.train.phases, self.phases(), strict=False):
            more = [f"{key}={value}" for key, value in phase if value is not None and key not in ("depth", "epochs")]
            ends = f" ({', '.join(more)})" if more else ""
            epochs = f"{one.train.epochs} epoch{'' if one.train.epochs == 1 else 's'}"
            words.append(f"{depth_label(one.depth)} for {epochs}{ends}")
        return ", then ".join(words)

    @property
    def epochs(self) -> int:
        """Epochs of all phases together."""
        return sum(one.train.epochs for one in self.phases())


class Recipe(Frozen):
    """A whole sweep."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "sweep"
    description: str = ""
    data: Data = Data()
    grid: Annotated[tuple[Block, ...], BeforeValidator(axis)] = (Block(),)
    model: Model = Model()
    train: Train = Train()
    objective: Objective = "accuracy"
    """What configurations are raced, compared and recommended by."""
    tolerance: Annotated[float, Field(strict=True, ge=0, le=100)] = 0.5
    """Percentage points (of loss: hundredths) that the user would give up for a cheaper depth."""
    confidence: Annotated[float, Field(strict=True, gt=0.5, lt=1)] = 0.9
    """Of the statement that a depth is enough."""
    asha: Asha | None = Asha()
    resources: Resources = Resources()
    features: Features = Features()
    final: Final = Final()
    loggers: Annotated[tuple[Literal["tensorboard", "mlflow", "wandb"], ...], BeforeValidator(listed)] = ()
    """Experiment trackers that every row is sent to as well."""

    def trials(self) -> tuple[Trial, ...]:
        """The grid multiplied out, in order, each configuration once.

        Raises:
            RecipeError: a value of an axis is not allowed in the field it sets.
        """
        trials: dict[str, Trial] = {}
        for index, block in enumerate(self.grid):
            for point in block.points():
                trial = self._trial(point, f"grid.{index}" if len(self.grid) > 1 else "grid")
                trials.setdefault(trial.name, trial)
        return tuple(trials.values())

    def _trial(self, point: dict[str, Any], where: str) -> Trial:
        sections = {name: getattr(self, name).model_dump() for name in ("data", "model", "train")}
        for name, value in point.items():
            if name in SECTIONS:
                sections[SECTIONS[name]][name] = value
        try:
            return Trial.model_validate({axis: point[axis] for axis in MAIN_AXES} | sections)
        except ValidationError as error:
            raise RecipeError(*problems(error, KNOWN_KEYS, grid=where)) from None


KNOWN_KEYS = {
    "": (*Recipe.model_fields,),
    "grid": (*MAIN_AXES, *EXTRA_AXES),
    "data": (*Data.model_fields,),
    "data.normalize": (*Statistics.model_fields,),
    "model": (*Model.model_fields,),
    "model.head": (*Head.model_fields,),
    "train": (*Train.model_fields,),
    "train.phases": (*Phase.model_fields,),
    "asha": (*Asha.model_fields,),
    "resources": (*Resources.model_fields,),
    "features": (*Features.model_fields,),
    "final": (*Final.model_fields,),
}

"""The keys of each section, for hints at a misspelt one."""
