"""The recipe of a sweep: what is compared, on which images, trained how.

A recipe is read from a preset or a YAML file, changed by `key=value` overrides,
checked whole before anything starts, and expanded into trials. This module knows
neither Ray nor torch, so that a mistake is answered in a fraction of a second.

A depth is counted in layers from the output (see `raysweep.depth`); here it is
only a value: a positive integer, `head`, `all`, a module name, or a list of
module patterns.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

QUICKSTART = "quickstart"
IMAGE_FIELDS = ("image_size", "normalize")
"""Fields of `data` that may differ from one backbone to the next."""


class RecipeError(ValueError):
    """A mistake in what the user asked for; `problems` holds one sentence each."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def near(name: str, known: Iterable[str]) -> str:
    """A hint that ends an error message: the known names nearest to `name`, or all."""
    known = list(known)
    matches = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    if matches:
        return f"did you mean {' or '.join(matches)}?"
    return f"choose one of {', '.join(known)}" if len(known) <= 20 else ""


def _depth(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip("-").isdigit():
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


def depth_label(depth: int | str | Sequence[str]) -> str:
    """The depth as a table or figure prints it."""
    return str(depth) if isinstance(depth, int | str) else "+".join(depth)


class Frozen(BaseModel):
    """Base of every part of a recipe: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Statistics(Frozen):
    """Mean and standard deviation of each colour channel, of images scaled to [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]


class Data(Frozen):
    """The images and how they are split."""

    dataset: str = "digits"
    """digits, cifar10, cifar100, imagefolder, fake, or torchvision:<Name>."""
    root: str | None = None
    """Folder of the data; the user's cache when null."""
    image_size: Annotated[int, Field(ge=8, le=1024)] | None = None
    """Side in pixels that images are resized to, in batches on the device; their own size when null."""
    normalize: Literal["backbone", "dataset", "none"] | Statistics = "backbone"
    """Whose channel statistics images are normalised with."""
    augment: tuple[Literal["hflip"], ...] = ()
    """Random augmentations of training images. Horizontal flips have two views, so features stay cacheable."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the training images held out for validation; ignored where the data has its own val split."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of all images held out for test, before validation; ignored where the data has its own test split."""
    split_seed: int = 45
    limit: Annotated[int, Field(ge=2)] | None = None
    """At most so many training images, stratified by class; val and test shrink in proportion."""


class Head(Frozen):
    """The new classifier."""

    kind: Literal["linear"] = "linear"


class Model(Frozen):
    """The network's weights, classifier and treatment of batch normalisation."""

    weights: str = "pretrained"
    """pretrained, none, or a .pth or .safetensors file."""
    head: Head = Head()
    batch_norm: Literal["frozen", "recalibrated", "training"] = "frozen"
    """Statistics of frozen batch-norm layers: the pretrained ones, those of the training images
    (estimated once, then frozen), or each batch's own as in `model.train()`."""


class Train(Frozen):
    """How one configuration is trained."""

    epochs: Annotated[int, Field(ge=1)] = 10
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Images in an optimizer step, over all workers together."""
    eval_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Images in a forward pass of evaluation; the training batch size, at least 256, when null."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of sgd alone."""
    schedule: Literal["constant", "cosine", "step"] = "constant"
    step_epochs: Annotated[int, Field(ge=1)] = 10
    """Epochs between decays of the step schedule."""
    step_gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of the gradient; not clipped when null."""
    autocast: Literal["none", "bfloat16", "float16"] = "none"
    """Arithmetic of the trainable suffix; the frozen prefix is always computed in float32."""
    compile: bool = False
    """Compile the trainable suffix (torch.compile); pays where a trial is long."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after so many epochs without a lower validation loss; never when null."""


class Asha(Frozen):
    """Early stopping of hopeless trials (Li et al. 2020, arXiv:1810.05934)."""

    grace_epochs: Annotated[int, Field(ge=1)] = 3
    """No trial is stopped before it has so many epochs."""
    reduction_factor: Annotated[float, Field(gt=1)] = 2
    compare_within: tuple[str, ...] = ("backbone", "depth", "seed")
    """Trials compete only with those equal in these axes; [] is plain ASHA. With `seed` among them
    every seed is a whole replicate of the comparison, and none is dropped for being unlucky."""


class Resources(Frozen):
    """What one trial occupies."""

    workers_per_trial: Annotated[int, Field(ge=1)] = 1
    """1 trains in a warm process of its own; more is distributed data parallel."""
    cpus_per_worker: Annotated[int, Field(ge=1)] = 1
    gpus_per_worker: Literal["auto"] | Annotated[float, Field(ge=0)] = "auto"
    """auto: one where the cluster has GPUs, else none. A fraction lets small trials share a GPU."""
    max_concurrent: Annotated[int, Field(ge=1)] | None = None
    """At most so many trials at a time; as many as fit when null."""


def _cache(value: Any) -> Any:
    return {True: "always", False: "never"}.get(value, value) if isinstance(value, bool) else value


class Features(Frozen):
    """Where and how outputs of the frozen prefix are kept."""

    cache: Annotated[Literal["auto", "always", "never"], BeforeValidator(_cache)] = "auto"
    """auto stores a cut where that saves time and there is room."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """The 16-bit types halve the size and round the features."""
    dir: str | None = None
    """Folder of the features, on a cluster a shared one; each node's own cache when null."""
    budget_gb: Annotated[float, Field(gt=0)] | None = None
    """Size that all features together may take; half of what the disk has free when null."""


class Final(Frozen):
    """The refit of the best configuration on train + val, measured once on test."""

    enabled: bool = True
    workers: Annotated[int, Field(ge=1)] | None = None
    """Workers of the refit; one for each GPU, else for each core up to 8, when null."""


TRAIN_AXES = tuple(Train.model_fields)
MODEL_AXES = tuple(Model.model_fields)
EXTRA_AXES = (*MODEL_AXES, *TRAIN_AXES, *IMAGE_FIELDS)
MAIN_AXES = ("backbone", "depth", "lr", "seed")
SECTIONS = {
    **dict.fromkeys(MODEL_AXES, "model"),
    **dict.fromkeys(TRAIN_AXES, "train"),
    **dict.fromkeys(IMAGE_FIELDS, "data"),
}


def _axis(value: Any) -> Any:
    """A lone value is an axis of one; a list with nothing in it is a mistake."""
    values = value if isinstance(value, list | tuple) else [value]
    if not values:
        raise ValueError("the list is empty: an axis needs at least one value")
    return values


class Block(Frozen):
    """Axes that are multiplied out with each other."""

    backbone: Annotated[tuple[str, ...], BeforeValidator(_axis)] = ("tf_efficientnet_lite0",)
    depth: Annotated[tuple[Depth, ...], BeforeValidator(_axis)] = (1,)
    lr: Annotated[tuple[Annotated[float, Field(gt=0)], ...], BeforeValidator(_axis)] = (1e-3,)
    seed: Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_axis)] = (0,)
    extra: dict[str, tuple[Any, ...]] = {}
    """Fields of model, train and data that this block sets or sweeps, by their bare names."""

    @model_validator(mode="before")
    @classmethod
    def _gather_extra(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError("a block of the grid is a mapping of axes to lists of values")
        extra = dict(value.get("extra", {}))
        extra.update({key: _axis(value[key]) for key in value if key in EXTRA_AXES})
        return {key: value[key] for key in value if key not in EXTRA_AXES} | {"extra": extra}

    def points(self) -> Iterator[dict[str, Any]]:
        """Every combination of the axes' values, the last axis fastest."""
        axes = {name: getattr(self, name) for name in MAIN_AXES} | self.extra
        for values in itertools.product(*axes.values()):
            yield dict(zip(axes, values, strict=True))


def _blocks(value: Any) -> Any:
    blocks = value if isinstance(value, list | tuple) else [value]
    if not blocks:
        raise ValueError("the list is empty: a grid needs at least one block of axes")
    return blocks


class Trial(Frozen):
    """One configuration: everything that determines its rows."""

    backbone: str
    depth: Depth
    lr: float
    seed: int
    data: Data
    model: Model
    train: Train

    @property
    def name(self) -> str:
        """Twelve hexadecimal digits of the SHA-256 of the configuration."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


class Recipe(Frozen):
    """A whole sweep."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "sweep"
    description: str = ""
    data: Data = Data()
    grid: Annotated[tuple[Block, ...], BeforeValidator(_blocks)] = (Block(),)
    model: Model = Model()
    train: Train = Train()
    asha: Asha | None = Asha()
    resources: Resources = Resources()
    features: Features = Features()
    final: Final = Final()

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
        for axis, value in point.items():
            if axis in SECTIONS:
                sections[SECTIONS[axis]][axis] = value
        try:
            return Trial.model_validate({axis: point[axis] for axis in MAIN_AXES} | sections)
        except ValidationError as error:
            raise RecipeError(
                *(
                    p.replace("data.", f"{where}.").replace("model.", f"{where}.").replace("train.", f"{where}.")
                    for p in _problems(error)
                )
            ) from None


def preset_names() -> list[str]:
    """Names of the presets that come with raysweep, the quickstart first."""
    names = sorted(
        path.name.removesuffix(".yaml") for path in _preset_folder().iterdir() if path.name.endswith(".yaml")
    )
    return sorted(names, key=lambda name: name != QUICKSTART)


def load(source: str | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a preset or a YAML file, apply `key=value` overrides, check everything.

    Raises:
        RecipeError: nothing of that name, unreadable YAML, or values that are not allowed;
            one sentence for each problem.
    """
    tree = _read(source or QUICKSTART)
    changed = _override(tree, overrides)
    try:
        recipe = Recipe.model_validate(changed)
    except ValidationError as error:
        raise RecipeError(*_problems(error)) from None
    if recipe.asha:
        axes = (*MAIN_AXES, *EXTRA_AXES)
        wrong = [axis for axis in recipe.asha.compare_within if axis not in axes]
        if wrong:
            raise RecipeError(
                *(f"asha.compare_within={axis} is not an axis of the grid; {near(axis, axes)}" for axis in wrong)
            )
    recipe.trials()
    return _absolute(recipe)


def _absolute(recipe: Recipe) -> Recipe:
    """The recipe with absolute folders: workers may stand elsewhere."""

    def resolved(part: Frozen, field: str) -> Any:
        folder = getattr(part, field)
        return part if folder is None else part.model_copy(update={field: str(Path(folder).expanduser().resolve())})

    return recipe.model_copy(
        update={"data": resolved(recipe.data, "root"), "features": resolved(recipe.features, "dir")}
    )


def dump(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values that `load` reads back to an equal recipe."""
    tree = recipe.model_dump(mode="json")
    for block in tree["grid"]:
        block.update(block.pop("extra"))
    return tree


def _preset_folder() -> Any:
    return resources.files("raysweep") / "presets"


def _read(source: str) -> dict[str, Any]:
    if source.endswith((".yaml", ".yml")):
        path = Path(source)
        if not path.is_file():
            raise RecipeError(f"no recipe file {source}; give a YAML file that exists, or a preset (--list shows them)")
        text = path.read_text(encoding="utf-8")
    elif source in preset_names():
        text = (_preset_folder() / f"{source}.yaml").read_text(encoding="utf-8")
    else:
        raise RecipeError(f"no preset named {source}; {near(source, preset_names())} (a recipe file ends in .yaml)")
    try:
        tree = OmegaConf.to_container(OmegaConf.create(text), resolve=True)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise RecipeError(f"{source} is not readable YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{source} must hold a mapping of recipe keys, such as `data:` and `grid:`")
    return tree  # type: ignore[return-value]


def _override(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply `dotted.key=value`; in a grid of several blocks `grid.lr` speaks of every block.

    `grid.backbone` and `grid.depth` say what is compared, so they leave the first block
    alone to be changed and drop the others; `grid.1.depth` reaches a single block.
    """
    tree = dict(tree)
    grid = tree.get("grid", {})
    blocks = [dict(block) for block in grid] if isinstance(grid, list) else [dict(grid or {})]
    pairs = []
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key:
            raise RecipeError(f"{override} is not an override; write key=value, such as train.epochs=5")
        pairs.append((key.split("."), _value(override)))
    if any(path in (["grid", "backbone"], ["grid", "depth"]) for path, _ in pairs):
        blocks = blocks[:1]
    for path, value in pairs:
        if path == ["grid"]:
            blocks = value if isinstance(value, list) else [value]
        elif path[0] == "grid" and path[1].isdigit():
            if int(path[1]) >= len(blocks) or len(path) < 3:
                raise RecipeError(f"{'.'.join(path)}: the grid has {len(blocks)} blocks; write grid.0.depth=[1,3]")
            _set(blocks[int(path[1])], path[2:], value)
        elif path[0] == "grid":
            for block in blocks:
                _set(block, path[1:], value)
        else:
            _set(tree, path, value)
    return tree | {"grid": blocks if len(blocks) > 1 else blocks[0]}


def _value(override: str) -> Any:
    """The right side of `key=value`, read as YAML."""
    try:
        tree = OmegaConf.to_container(OmegaConf.from_dotlist(["value=" + override.partition("=")[2]]), resolve=True)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise RecipeError(f"{override} has a value that is not readable YAML: {' '.join(str(error).split())}") from None
    return tree["value"]  # type: ignore[index, call-overload]


def _set(tree: dict[str, Any], path: list[str], value: Any) -> None:
    for key in path[:-1]:
        branch = tree.get(key)
        tree[key] = dict(branch) if isinstance(branch, dict) else {}
        tree = tree[key]
    tree[path[-1]] = value


_KNOWN = {
    "": (*Recipe.model_fields,),
    "grid": (*MAIN_AXES, *EXTRA_AXES),
    "data": (*Data.model_fields,),
    "model": (*Model.model_fields,),
    "model.head": (*Head.model_fields,),
    "train": (*Train.model_fields,),
    "asha": (*Asha.model_fields,),
    "resources": (*Resources.model_fields,),
    "features": (*Features.model_fields,),
    "final": (*Final.model_fields,),
}


def _problems(error: ValidationError) -> list[str]:
    """One sentence for each thing pydantic found: path, value, what is allowed."""
    problems: dict[str, str] = {}
    for item in error.errors():
        parts = [
            str(part) for part in item["loc"] if not str(part).startswith(("function-", "constrained-", "literal["))
        ]
        if len(parts) > 1 and parts[0] == "grid" and parts[1] == "0":
            parts.pop(1)
        path = ".".join(parts) or "recipe"
        if item["type"] == "extra_forbidden":
            section = ".".join(part for part in parts[:-1] if not part.isdigit())
            hint = near(parts[-1], _KNOWN.get(section, ()))
            problems[path] = f"{path} is not a key of a recipe; {hint}"
        else:
            message = item["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
            shown = "" if isinstance(item["input"], dict | list | tuple) and item["input"] else f"={item['input']}"
            problems.setdefault(path, f"{path}{shown}: {message}")
    return list(problems.values())
