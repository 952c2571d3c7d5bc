"""The recipe of a sweep: what is compared, on which images, trained how.

A recipe is read from a preset or a YAML file, changed by `key=value` overrides,
checked whole before anything starts, and expanded into trials. This module knows
neither Ray nor torch, so that a mistake is answered in a fraction of a second.

A depth is counted in layers from the output (see `raysweep.depth`); here it is
only a value: a positive integer, `head`, `all`, a module name, or a list of
module patterns.

In error messages a part of a path that starts with `~` is one of pydantic's, not the
user's: it is left out.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationError,
    model_serializer,
    model_validator,
)

QUICKSTART = "quickstart"
IMAGE_FIELDS = ("image_size", "normalize")
"""Fields of `data` that may differ from one backbone to the next."""
MOST_NAMED = 30
"""Names that an error message lists."""

# numbers are strict, so that `true` is none
Count = Annotated[int, Field(strict=True, ge=1)]
Seed = Annotated[int, Field(strict=True, ge=0)]
Number = Annotated[float, Field(strict=True)]
Positive = Annotated[float, Field(strict=True, gt=0)]
Share = Annotated[float, Field(strict=True, ge=0, lt=1)]
Part = Annotated[float, Field(strict=True, gt=0, lt=1)]


class RecipeError(ValueError):
    """A mistake in what the user asked for; `problems` holds one sentence each."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def near(name: str, known: Iterable[str]) -> str:
    """A hint that ends an error message: the known names nearest to `name`, else all or the first of them."""
    known = list(dict.fromkeys(known))
    matches = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    if matches:
        return f"did you mean {' or '.join(matches)}?"
    more = f", … ({len(known):,} in all)" if len(known) > MOST_NAMED else ""
    return f"choose one of {', '.join(known[:MOST_NAMED])}{more}"


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

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Statistics(Frozen):
    """Mean and standard deviation of each colour channel, of images scaled to [0, 1]."""

    mean: tuple[Number, Number, Number]
    std: tuple[Positive, Positive, Positive]


def _listed(value: Any) -> Any:
    """A lone value is a list of one."""
    return value if isinstance(value, list | tuple) else [value]


def _axis(value: Any) -> Any:
    """As `_listed`, of at least one."""
    values = _listed(value)
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


class Data(Frozen):
    """The images and how they are split."""

    dataset: str = "digits"
    """digits, cifar10, cifar100, imagefolder, fake, or torchvision:<Name>."""
    root: str | None = None
    """Folder of the data; the user's cache when null."""
    image_size: Annotated[int, Field(strict=True, ge=8, le=1024)] | None = None
    """Side in pixels that images are resized to, in batches on the device; their own size when null."""
    normalize: Normalize = "backbone"
    """Whose channel statistics images are normalised with, or the statistics themselves."""
    augment: Annotated[tuple[Literal["hflip"], ...], BeforeValidator(_listed)] = ()
    """Random augmentations of training images. Horizontal flips have two views, so features stay cacheable."""
    val_fraction: Part = 0.2
    """Share of the training images held out for validation; ignored where the data has its own val split."""
    test_fraction: Part = 0.2
    """Share of all images held out for test, before validation; ignored where the data has its own test split."""
    split_seed: Seed = 45
    limit: Annotated[int, Field(strict=True, ge=2)] | None = None
    """At most so many training images, stratified by class; val and test shrink in proportion."""


class Head(Frozen):
    """The classifier. Its kind alone may stand for it: `head: keep`."""

    kind: Literal["linear", "mlp", "keep", "stacked"] = "linear"
    """linear: a new layer in the place of the pretrained classifier; mlp: several new layers there;
    keep: the pretrained classifier itself, whose first outputs are the classes; stacked: a new linear
    layer on the softmax of the pretrained classifier."""
    sizes: Annotated[tuple[Count, ...], BeforeValidator(_axis)] = (256,)
    """Of mlp alone, like the fields below: outputs of each hidden layer."""
    activation: Literal["relu", "none"] = "relu"
    """Between layers."""
    dropout: Share = 0.0
    """Before the first layer."""
    hidden_dropout: Share = 0.0
    """Between layers, after the activation."""

    @model_validator(mode="before")
    @classmethod
    def _kind_alone(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fields_of_mlp(self) -> Head:
        others = sorted(self.model_fields_set - {"kind"})
        if self.kind != "mlp" and others:
            raise ValueError(
                f"only kind: mlp has {' and '.join(others)}; for {self.kind} write model.head={{kind: {self.kind}}}"
            )
        return self

    @model_serializer(mode="wrap")
    def _what_applies(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return serialize(self) if self.kind == "mlp" else {"kind": self.kind}

    @property
    def label(self) -> str:
        """The head as a table prints it: its kind, and what sets one mlp apart from another."""
        if self.kind != "mlp":
            return self.kind
        changed = [
            f"{name}={getattr(self, name)}"
            for name in ("activation", "dropout", "hidden_dropout")
            if getattr(self, name) != type(self).model_fields[name].default
        ]
        return " ".join([self.kind, "-".join(map(str, self.sizes)), *changed])


class Model(Frozen):
    """The network's weights, classifier and treatment of batch normalisation."""

    weights: str = "pretrained"
    """pretrained (the library's default ones), none, the name of others that the library has
    (IMAGENET1K_V1 of torchvision, a tag such as a1_in1k of timm), or a .pth or .safetensors file."""
    head: Head = Head()
    batch_norm: Literal["frozen", "recalibrated", "training"] = "frozen"
    """Statistics of frozen batch-norm layers: the pretrained ones, those of the training images
    (estimated once, then frozen), or each batch's own as in `model.train()`."""


def is_weights_file(weights: str) -> bool:
    """Whether `model.weights` says a file: with a folder or a suffix, which no name has."""
    return "/" in weights or "." in weights


class Phase(Frozen):
    """One of several trainings in a row, each at its own depth; what is null is as the trial has it.

    A linear probe before fine-tuning (Kumar et al. 2022, arXiv:2202.10054) and gradual
    unfreezing (Howard and Ruder 2018, arXiv:1801.06146) are phases.
    """

    depth: Depth | None = None
    epochs: Count | None = None
    lr: Positive | None = None
    optimizer: Literal["adam", "adamw", "sgd"] | None = None
    schedule: Literal["constant", "cosine", "step"] | None = None
    weight_decay: Annotated[float, Field(strict=True, ge=0)] | None = None
    batch_size: Count | None = None


class Train(Frozen):
    """How one configuration is trained."""

    epochs: Count = 10
    batch_size: Count = 64
    """Images in an optimizer step, over all workers together."""
    eval_batch_size: Count | None = None
    """Images in a forward pass of evaluation; the training batch size, at least 128, when null."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    weight_decay: Annotated[float, Field(strict=True, ge=0)] = 0.0
    momentum: Share = 0.9
    """Of sgd alone."""
    schedule: Literal["constant", "cosine", "step"] = "constant"
    step_epochs: Count = 10
    """Epochs between decays of the step schedule."""
    step_gamma: Annotated[float, Field(strict=True, gt=0, le=1)] = 0.1
    label_smoothing: Share = 0.0
    clip_norm: Positive | None = None
    """Largest norm of the gradient; not clipped when null."""
    autocast: Literal["none", "bfloat16", "float16"] = "none"
    """Arithmetic of the trainable suffix; the frozen prefix is always computed in float32."""
    compile: bool = False
    """Compile the trainable suffix (torch.compile); pays where a trial is long."""
    patience: Count | None = None
    """Stop after so many epochs without a lower validation loss; never when null."""
    keep: Literal["last", "best_loss"] = "last"
    """Which epoch's validation accuracy a trial counts with, and how long the final fit lasts."""
    train_accuracy_on: Literal["sample", "all"] = "sample"
    """Train accuracy on a fixed sample of validation's size, or on every training image."""
    validate_every_steps: Count | None = None
    """Measure on validation every so many optimizer steps too; at the end of each epoch alone when null."""
    phases: tuple[Phase, ...] = ()
    """Trainings in a row, the optimizer fresh in each; one as the trial says when empty."""


class Asha(Frozen):
    """Early stopping of hopeless trials (Li et al. 2020, arXiv:1810.05934)."""

    grace_epochs: Count = 3
    """No trial is stopped before it has so many epochs."""
    reduction_factor: Annotated[float, Field(strict=True, gt=1)] = 2
    compare_within: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ("backbone", "depth", "seed")
    """Trials compete only with those equal in these axes; [] is plain ASHA. With `seed` among them
    every seed is a whole replicate of the comparison, and none is dropped for being unlucky."""


def _gpus(value: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value != "auto" and not (number and 0 <= value < math.inf):
        raise ValueError("must be 'auto' or a number greater than or equal to 0")
    return value


class Resources(Frozen):
    """What one trial occupies."""

    workers_per_trial: Count = 1
    """1 trains in a warm process of its own; more is distributed data parallel."""
    cpus_per_worker: Count = 1
    gpus_per_worker: Annotated[Literal["auto"] | float, BeforeValidator(_gpus)] = "auto"
    """auto: one where the cluster has GPUs, else none. A fraction lets small trials share a GPU."""
    max_concurrent: Count | None = None
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
    budget_gb: Positive | None = None
    """Size that all features together may take; half of what the disk has free when null."""


class Final(Frozen):
    """The refit of the best configuration on train + val, measured once on test."""

    enabled: bool = True
    workers: Count | None = None
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


class Block(Frozen):
    """Axes that are multiplied out with each other."""

    backbone: Annotated[tuple[str, ...], BeforeValidator(_axis)] = ("tf_efficientnet_lite0",)
    depth: Annotated[tuple[Depth, ...], BeforeValidator(_axis)] = (1,)
    lr: Annotated[tuple[Positive, ...], BeforeValidator(_axis)] = (1e-3,)
    seed: Annotated[tuple[Seed, ...], BeforeValidator(_axis)] = (0,)
    extra: dict[str, Annotated[tuple[Any, ...], BeforeValidator(_axis)]] = Field(default={}, validation_alias="~extra")
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

    @property
    def name(self) -> str:
        """Twelve hexadecimal digits of the SHA-256 of the configuration."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
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
    grid: Annotated[tuple[Block, ...], BeforeValidator(_axis)] = (Block(),)
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
            raise RecipeError(*_problems(error, grid=where)) from None


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
    """The recipe with absolute folders and files: workers may stand elsewhere."""
    data, model, features = recipe.data, recipe.model, recipe.features
    grid = tuple(
        block.model_copy(update={"extra": block.extra | {"weights": tuple(map(_weights, block.extra["weights"]))}})
        if "weights" in block.extra
        else block
        for block in recipe.grid
    )
    return recipe.model_copy(
        update={
            "data": data.model_copy(update={"root": data.root and _resolved(data.root)}),
            "grid": grid,
            "model": model.model_copy(update={"weights": _weights(model.weights)}),
            "features": features.model_copy(update={"dir": features.dir and _resolved(features.dir)}),
        }
    )


def _weights(weights: str) -> str:
    return _resolved(weights) if is_weights_file(weights) else weights


def _resolved(path: str) -> str:
    return str(Path(path).expanduser().resolve())


def dump(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values; `load` reads an equal recipe from a file that holds them."""
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
        text = _text(path)
    elif source in preset_names():
        text = (_preset_folder() / f"{source}.yaml").read_text(encoding="utf-8")
    else:
        raise RecipeError(f"no preset named {source}; {near(source, preset_names())} (a recipe file ends in .yaml)")
    try:
        config = OmegaConf.create(text)
        if isinstance(config, DictConfig):
            inner = config.get("recipe")  # a run folder's recipe.yaml has the recipe beside versions and the like
            chosen = inner if isinstance(inner, DictConfig) else config
            return OmegaConf.to_container(chosen, resolve=True)  # type: ignore[return-value]
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise RecipeError(f"{source} is not readable YAML: {' '.join(str(error).split())}") from None
    except AssertionError:  # OmegaConf's answer to a lone number
        pass
    raise RecipeError(f"{source} must hold a mapping of recipe keys, such as `data:` and `grid:`")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise RecipeError(f"{path} is not readable: it is not UTF-8 text") from None
    except OSError as error:
        raise RecipeError(f"{path} is not readable: {error.strerror}") from None


def _override(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply `dotted.key=value`; in a grid of several blocks `grid.lr` speaks of every block.

    `grid.backbone` and `grid.depth` say what is compared, so they leave the first block
    alone to be changed and drop the others; `grid.1.depth` reaches a single block.
    """
    tree = dict(tree)
    blocks = _blocks(tree.get("grid"))
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
            blocks = _blocks(value)
        elif path[0] == "grid" and path[1].isdigit():
            if int(path[1]) >= len(blocks) or len(path) < 3:
                count = "1 block" if len(blocks) == 1 else f"{len(blocks)} blocks"
                raise RecipeError(f"{'.'.join(path)}: the grid has {count}; write grid.0.depth=[1,3]")
            _set(blocks[int(path[1])], path[2:], value)
        elif path[0] == "grid":
            for block in blocks:
                _set(block, path[1:], value)
        else:
            _set(tree, path, value)
    return tree | {"grid": blocks if len(blocks) > 1 else blocks[0]}


def _blocks(grid: Any) -> list[dict[str, Any]]:
    """The blocks of a grid as the user wrote it, each a mapping of its own."""
    blocks = _listed({} if grid is None else grid)
    wrong = [block for block in blocks if not isinstance(block, dict)]
    if wrong or not blocks:
        raise RecipeError(
            f"grid={_shown(grid)}: must be a mapping of axes to their values, such as {{depth: [1, 3]}}, "
            "or a list of such blocks, at least one"
        )
    return [dict(block) for block in blocks]


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


def _problems(error: ValidationError, grid: str = "") -> list[str]:
    """One sentence for each thing pydantic found: path, value, what is allowed.

    `grid` is the path of the block that set the values of a trial, whose own path is not the user's.
    """
    problems: dict[str, str] = {}
    for item in error.errors():
        parts = [str(part) for part in item["loc"] if not str(part).startswith("~")]
        if parts[:2] == ["grid", "0"]:
            parts.pop(1)
        path = ".".join([grid, *parts[1:]] if grid else parts)
        if item["type"] == "extra_forbidden":
            section = ".".join(part for part in parts[:-1] if not part.isdigit())
            problems[path] = f"{path} is not a key of a recipe; {near(parts[-1], _KNOWN[section])}"
        else:
            problems.setdefault(path, f"{path}{_given(item['input'])}: {_allowed(item)}")
    return list(problems.values())


def _allowed(item: Mapping[str, Any]) -> str:
    if item["type"] == "model_type":
        return "must be a mapping"
    return item["msg"].removeprefix("Value error, ").replace("Input should be", "must be")


def _given(value: Any) -> str:
    """`=value`; nothing where it is a mapping or list that other sentences take apart."""
    return "" if isinstance(value, dict | list | tuple | BaseModel) and value else f"={_shown(value)}"


def _shown(value: Any) -> str:
    """A value as a user writes it."""
    return json.dumps(value) if value is None or isinstance(value, bool | list) else str(value)
