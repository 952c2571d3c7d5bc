"""Presets and YAML files, changed by `key=value` overrides, checked whole before anything starts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from . import yaml_core
from .errors import RecipeError, near
from .grid import EXTRA_AXES, KNOWN_KEYS, MAIN_AXES, Block, Recipe
from .problems import problems, shown
from .renamed import renewed
from .schema import Data, is_weights_file
from .values import listed
from .yaml_core import YamlError

QUICKSTART = "quickstart"
LITERAL = (
    "name",
    "description",
    "data.dataset",
    "data.root",
    "data.labels",
    "data.group",
    "features.dir",
    "model.weights",
)
"""Fields that hold text: what stands behind their `=` on the command line is taken letter by letter, but for null."""
KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def preset_names() -> list[str]:
    """Names of the presets that come with raysweep, the quickstart first."""
    names = (path.name for path in _preset_folder().iterdir())
    presets = [name.removesuffix(".yaml") for name in names if name.endswith(".yaml")]
    return sorted(presets, key=lambda name: (name != QUICKSTART, name))


def load(source: str | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a preset or a YAML file, apply `key=value` overrides, check everything.

    Raises:
        RecipeError: nothing of that name, unreadable YAML, or values that are not allowed;
            one sentence for each problem.
    """
    tree = _override(_read(source or QUICKSTART), overrides)
    _check_text(tree)
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(*problems(error, KNOWN_KEYS)) from None
    _check_axes(recipe)
    recipe.trials()
    return _absolute(recipe)


def dump(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values; `load` reads an equal recipe from a file that holds them."""
    tree = recipe.model_dump(mode="json")
    for block in tree["grid"]:
        block.update(block.pop("extra"))
    return tree


def _check_axes(recipe: Recipe) -> None:
    """Raise RecipeError where ASHA compares within what is no axis."""
    axes = (*MAIN_AXES, *EXTRA_AXES)
    wrong = [axis for axis in recipe.asha.compare_within if axis not in axes] if recipe.asha else []
    if wrong:
        raise RecipeError(
            *(f"asha.compare_within={axis} is not an axis of the grid; {near(axis, axes)}" for axis in wrong)
        )


def _check_text(tree: Any) -> None:
    """Raise RecipeError for keys that are no words, and for text that is no UTF-8 or holds a NUL."""
    wrong: list[str] = []
    for path, key, value in _items(tree):
        if key is not None and not KEY.fullmatch(key):
            wrong.append(f"{path!r} is not a key of a recipe; keys are words such as train.epochs")
        elif isinstance(value, str) and "\0" in value:
            wrong.append(f"{path}={value!r} holds a NUL, which no name can; leave it out")
        elif isinstance(value, str) and not _is_unicode(value):
            wrong.append(f"{path}={value!r} is no UTF-8; rename the file or folder and write its new name")
    if wrong:
        raise RecipeError(*dict.fromkeys(wrong))


def _items(tree: Any, above: str = "") -> Iterator[tuple[str, str | None, Any]]:
    """Dotted path, key and value of everything in mappings and lists; items of lists have a number and no key."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield f"{above}{key}", key, value
            yield from _items(value, f"{above}{key}.")
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield f"{above}{index}", None, value
            yield from _items(value, f"{above}{index}.")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a pair, as which Python keeps bytes of other encodings
        return False
    return True


# ---- files ----


def _absolute(recipe: Recipe) -> Recipe:
    """The recipe with absolute folders and files: workers may stand elsewhere."""
    data, model, features = recipe.data, recipe.model, recipe.features
    return recipe.model_copy(
        update={
            "data": data.model_copy(update=_absolute_data(data)),
            "grid": tuple(map(_absolute_block, recipe.grid)),
            "model": model.model_copy(update={"weights": _weights(model.weights)}),
            "features": features.model_copy(update={"dir": features.dir and _resolved("features.dir", features.dir)}),
        }
    )


def _absolute_data(data: Data) -> dict[str, str | None]:
    """The paths of the data, absolute."""
    found = {"root": data.root and _resolved("data.root", data.root)}
    kind, _, folder = data.dataset.partition(":")
    if kind == "hf" and Path(folder).expanduser().is_dir():
        found["dataset"] = f"hf:{_resolved('data.dataset', folder)}"
    elif data.labels and kind != "hf":
        found["labels"] = _resolved("data.labels", data.labels)
    return found


def _absolute_block(block: Block) -> Block:
    if "weights" not in block.extra:
        return block
    weights = tuple(_weights(name) for name in block.extra["weights"])
    return block.model_copy(update={"extra": block.extra | {"weights": weights}})


def _weights(weights: str) -> str:
    return _resolved("model.weights", weights) if is_weights_file(weights) else weights


def _resolved(field: str, path: str) -> str:
    try:
        return str(Path(path).expanduser().resolve())
    except (RuntimeError, OSError, ValueError) as error:  # no such user, a loop of links, a NUL
        raise RecipeError(f"{field}={path} is no path that can be followed ({error}); give another") from None


def _preset_folder() -> Any:
    return resources.files("raysweep.recipe") / "presets"


def _read(source: str) -> dict[str, Any]:
    if source.endswith((".yaml", ".yml")):
        text = _text(Path(source))
    elif source in preset_names():
        text = (_preset_folder() / f"{source}.yaml").read_text(encoding="utf-8")
    else:
        raise RecipeError(f"no preset named {source}; {near(source, preset_names())} (a recipe file ends in .yaml)")
    try:
        tree = yaml_core.loads(text)
    except YamlError as error:
        raise RecipeError(f"{source} is not readable YAML: {error}") from None
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise RecipeError(f"{source} must hold a mapping of recipe keys, such as `data:` and `grid:`")
    inner = tree.get("recipe")  # a run folder's recipe.yaml has the recipe beside versions and the like
    return renewed(inner) if isinstance(inner, dict) else tree


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError):
        raise RecipeError(
            f"no recipe file {path}; give a YAML file that exists, or a preset (--list shows them)"
        ) from None
    except UnicodeDecodeError:
        raise RecipeError(f"{path} is not readable: it is not UTF-8 text") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise RecipeError(f"{path} is not readable: {getattr(error, 'strerror', error)}") from None


# ---- overrides ----


def _override(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply `dotted.key=value`; in a grid of several blocks `grid.lr` speaks of every block.

    `grid.backbone` and `grid.depth` say what is compared, so they leave the first block
    alone to be changed and drop the others; `grid.1.depth` reaches a single block.
    """
    tree = dict(tree)
    blocks = _blocks(tree.get("grid"))
    pairs = [_parted(override) for override in overrides]
    if any(path in (["grid", "backbone"], ["grid", "depth"]) for path, _ in pairs):
        blocks = blocks[:1]
    for path, value in pairs:
        if path == ["grid"]:
            blocks = _blocks(value)
        elif path[0] == "grid":
            for block, key in _addressed(blocks, path):
                _set(block, key, value)
        else:
            _set(tree, path, value)
    return tree | {"grid": blocks if len(blocks) > 1 else blocks[0]}


def _parted(override: str) -> tuple[list[str], Any]:
    """The path and the value of an override."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"{override} is not an override; write key=value, such as train.epochs=5")
    path = key.split(".")
    if wrong := [part for part in path if not KEY.fullmatch(part) and not _is_index(part)]:
        raise RecipeError(f"{key!r} is not a key of a recipe ({wrong[0]!r}); keys are words such as train.epochs")
    return path, _value(key, text)


def _is_index(part: str) -> bool:
    return part.isascii() and part.isdigit() and len(part) < 6


def _addressed(blocks: list[dict[str, Any]], path: list[str]) -> list[tuple[dict[str, Any], list[str]]]:
    """The blocks that `grid.…` speaks of, with the rest of the path."""
    if not _is_index(path[1]):
        return [(block, path[1:]) for block in blocks]
    if int(path[1]) >= len(blocks) or len(path) < 3:
        count = "1 block" if len(blocks) == 1 else f"{len(blocks)} blocks"
        raise RecipeError(f"{'.'.join(path)}: the grid has {count}; write grid.0.depth=[1,3]")
    return [(blocks[int(path[1])], path[2:])]


def _blocks(grid: Any) -> list[dict[str, Any]]:
    """The blocks of a grid as the user wrote it, each a mapping of its own."""
    blocks = listed({} if grid is None else grid)
    wrong = [block for block in blocks if not isinstance(block, dict)]
    if wrong or not blocks:
        raise RecipeError(
            f"grid={shown(grid)}: must be a mapping of axes to their values, such as {{depth: [1, 3]}}, "
            "or a list of such blocks, at least one"
        )
    return [dict(block) for block in blocks]


def _value(key: str, text: str) -> Any:
    """What stands behind the `=`: YAML, or text as it is (`LITERAL`)."""
    if key in LITERAL:
        return None if text == "null" else text
    try:
        value = yaml_core.loads(text)
    except YamlError as error:
        raise RecipeError(f"{key}={text} has a value that is not readable YAML: {error}") from None
    if cut := yaml_core.comment(text):
        raise RecipeError(f"{key}={text}: {cut!r} is a comment in YAML; put the value in quotes, or leave that out")
    return value


def _set(tree: dict[str, Any], path: list[str], value: Any) -> None:
    for key in path[:-1]:
        branch = tree.get(key)
        tree[key] = dict(branch) if isinstance(branch, dict) else {}
        tree = tree[key]
    tree[path[-1]] = value
