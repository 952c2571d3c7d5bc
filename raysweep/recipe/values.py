"""The types of a recipe's values: numbers with their limits, a depth, channel statistics."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

# numbers are strict, so that `true` is none
Count = Annotated[int, Field(strict=True, ge=1, le=10**9)]
Units = Annotated[int, Field(strict=True, ge=1, le=2**20)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32)]
Number = Annotated[float, Field(strict=True)]
Positive = Annotated[float, Field(strict=True, gt=0)]
Share = Annotated[float, Field(strict=True, ge=0, lt=1)]
Part = Annotated[float, Field(strict=True, gt=0, lt=1)]
FEW_DIGITS = re.compile(r"[0-9]{1,9}")
MOST_FAKE_CLASSES = 10_000
Objective = Literal["accuracy", "balanced_accuracy", "macro_f1", "loss"]
Precision = Literal["float32", "tf32", "bfloat16", "float16"]
"""Of matrix products and convolutions. tf32 rounds their factors to 10 bits, on GPUs that can; a CPU computes float32
then. The last two have 16 bits."""
SIXTEEN_BITS = ("bfloat16", "float16")


def stored_type(dtype: str | None, precision: str) -> str:
    """What features are stored as: the type that is asked for, else as they are computed."""
    return dtype or (precision if precision in SIXTEEN_BITS else "float32")


def _depth(value: Any) -> Any:
    if isinstance(value, str) and FEW_DIGITS.fullmatch(value.removeprefix("-")):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str | list | tuple):
        raise ValueError("a depth is a number of layers, 'head', 'all', a module name or a list of module patterns")
    if isinstance(value, int) and value < 1:
        raise ValueError(
            f"depth {value} trains nothing; a depth counts layers from the output: 1 is the classifier alone"
        )
    if isinstance(value, list | tuple):
        if not value or not all(isinstance(item, str) for item in value):
            raise ValueError("a depth that is a list holds module patterns, such as [layer1, fc]")
        return tuple(value)
    return value


Depth = Annotated[int | str | tuple[str, ...], BeforeValidator(_depth)]


def _fake_classes(dataset: str) -> str:
    """`fake:<classes>` is checked here, as its number sets how much memory the images take."""
    kind, _, classes = dataset.partition(":")
    if (
        kind == "fake"
        and classes.isdigit()
        and not (FEW_DIGITS.fullmatch(classes) and int(classes) <= MOST_FAKE_CLASSES)
    ):
        raise ValueError(f"fake images have 2 to {MOST_FAKE_CLASSES:,} classes, such as fake:10")
    return dataset


DatasetName = Annotated[str, AfterValidator(_fake_classes)]


def depth_label(depth: int | str | Sequence[str]) -> str:
    """The depth as a table or figure prints it."""
    return str(depth) if isinstance(depth, int | str) else "+".join(depth)


class Frozen(BaseModel):
    """Base of every part of a recipe: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Statistics(Frozen):
    """Mean and standard deviation of each colour channel, of images scaled to [0, 1]."""

    mean: tuple[Number, Number, Number]
    std: tuple[Positive, Positive, Positive]


def listed(value: Any) -> Any:
    """A lone value is a list of one."""
    return value if isinstance(value, list | tuple) else [value]


def axis(value: Any) -> Any:
    """As `listed`, of at least one."""
    values = listed(value)
    if not values:
        raise ValueError("the list is empty; give at least one value")
    return values


def _named_statistics(value: Any) -> Any:
    if value not in ("backbone", "dataset", "none"):
        raise ValueError("must be 'backbone', 'dataset' or 'none', or a mapping {mean: [r, g, b], std: [r, g, b]}")
    return value


def _form_of_statistics(value: Any) -> str:
    return "~values" if isinstance(value, dict | Statistics) else "~name"


Normalize = Annotated[
    Annotated[Literal["backbone", "dataset", "none"], BeforeValidator(_named_statistics), Tag("~name")]
    | Annotated[Statistics, Tag("~values")],
    Discriminator(_form_of_statistics),
]
