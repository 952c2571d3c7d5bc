"""The final model on images that it has not seen: which model a folder holds, which images are meant, what it says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError

from ..data.decoding import one_line
from ..data.folders import image_suffixes
from ..data.layout import listed_names
from ..data.listing import Tree
from ..recipe import RecipeError
from .export import ABOUT, Classifier, load
from .ledger import FINAL

PREFERRED = ("recommended", "best")
"""Names of final models, in the order in which one of several is taken."""
AT_ONCE = 64
"""Images in a forward pass."""


@dataclass(frozen=True)
class Answer:
    """What the model says of an image file."""

    image: str
    classes: tuple[tuple[str, float], ...] = ()
    """The likeliest classes with their probabilities, the likeliest first."""
    problem: str = ""
    """Why the file could not be read."""


def find_model(where: Path) -> tuple[Path, str]:
    """The folder of the model that is meant, and a sentence where there was a choice.

    Args:
        where: a run folder, its `final`, or the folder of one final model.

    Raises:
        RecipeError: no model is there, or none of several is preferred.
    """
    if not where.is_dir():
        raise RecipeError(f"{where} is not a folder; give a run folder such as runs/quickstart-…, or its final/<name>")
    if (where / ABOUT).is_file():
        return where, ""
    finals = where / FINAL if (where / FINAL).is_dir() else where
    if (finals / ABOUT).is_file():
        return finals, ""  # of a run of the first edition
    names = sorted(path.parent.name for path in finals.glob(f"*/{ABOUT}"))
    if not names:
        raise RecipeError(
            f"{where} holds no final model (no {FINAL}/<name>/{ABOUT}); give a run folder whose final fit was made, "
            f"or the folder of a model"
        )
    if len(names) == 1:
        return finals / names[0], ""
    chosen = next((name for name in PREFERRED if name in names), None)
    if chosen is None:
        raise RecipeError(
            f"{where} holds {len(names)} final models: {listed_names(names)}; give the folder of one, "
            f"such as {finals / names[0]}"
        )
    return finals / chosen, f"{where} holds {len(names)} final models: {listed_names(names)}; this is {chosen}"


def read_model(folder: Path) -> Classifier:
    """Load a final model.

    Raises:
        RecipeError: its files are damaged, or not those of a model.
    """
    try:
        return load(folder)
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, SafetensorError) as error:
        raise RecipeError(
            f"{folder} holds no model that can be read ({one_line(error)}); is a file damaged?"
        ) from error


def image_files(given: Sequence[Path]) -> list[Path]:
    """The files that are given, and those below given folders that are images by their suffix, in order of name.

    Raises:
        RecipeError: a folder without images, or one that cannot be listed.
    """
    return [file for path in given for file in (_images_below(path) if path.is_dir() else [path])]


def _images_below(folder: Path) -> list[Path]:
    tree = Tree(folder)
    tree.enter(".")
    files = [folder / path / name for path, listing in tree.below(".") for name in listing.files]
    images = [file for file in files if file.suffix.lower() in image_suffixes()]
    if not images:
        raise RecipeError(f"{folder} holds no images; give image files, or a folder of them")
    return images


def answers(model: Classifier, files: Sequence[Path], most: int) -> Iterator[Answer]:
    """What the model says of each file, in order."""
    for start in range(0, len(files), AT_ONCE):
        some = files[start : start + AT_ONCE]
        decoded = [_decoded(model, file) for file in some]
        pixels = [one for one in decoded if isinstance(one, np.ndarray)]
        said = iter(model.likeliest(torch.from_numpy(np.stack(pixels)), most) if pixels else ())
        for file, one in zip(some, decoded, strict=True):
            name = _printable(file)
            yield Answer(name, problem=one) if isinstance(one, str) else Answer(name, tuple(next(said)))


def _decoded(model: Classifier, file: Path) -> np.ndarray | str:
    """The pixels of an image file, or why it has none."""
    try:
        return model.decode(file)
    except FileNotFoundError:
        return "is not there"
    except Exception as error:  # PIL's decoders raise nearly anything
        return f"is not a readable image ({one_line(error)})"


def _printable(file: Path) -> str:
    """A file's name with � in the place of what is not UTF-8."""
    return str(file).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
