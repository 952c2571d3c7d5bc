"""A folder of images: a folder for each class, below train/, val/ and test/ or alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..recipe import Data, RecipeError
from .catalogue import SPLIT_FOLDERS
from .decode import Size
from .pool import Encoded, Labelling, Pool, cached_pool

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""torchvision's IMG_EXTENSIONS, repeated so that counting files imports no torch."""


@dataclass(frozen=True)
class ImageFiles(Labelling):
    """The image files of a folder, in the order of the splits, classes and names."""

    root: Path
    class_names: tuple[str, ...]
    names: tuple[str, ...]  # relative to root, with slashes


def scan(data: Data) -> ImageFiles:
    """List the images of `data.root`: train/, val/, test/ with a folder for each class, or such folders alone.

    `train/` is a split if it holds folders, else a class. Hidden files and folders do not count.

    Raises:
        RecipeError: no such folder, no classes, classes that differ between splits or have too
            few images, a folder that serves twice.
    """
    if data.root is None:
        raise RecipeError("data.root=null: imagefolder needs the folder that holds train/ or a folder for each class")
    root = Path(data.root).expanduser().resolve()
    if not root.is_dir():
        raise RecipeError(f"data.root={data.root} is not a folder; give one with train/ or a folder for each class")
    parts = _split_folders(root)
    folders = {part: {path.name: path for path in _subfolders(folder)} for part, folder in parts.items()}
    class_names = tuple(sorted(folders["train"]))
    if len(class_names) < 2:
        raise RecipeError(
            f"data.root={data.root}: {parts['train']} has {len(class_names)} class folders; "
            "images are to be in one folder for each class, and at least 2 classes are needed"
        )
    files = {
        part: [(label, path) for label, name in enumerate(class_names) for path in _images(classes.get(name))]
        for part, classes in folders.items()
    }
    problems = [*_twice(root, folders), *_differences(parts, folders), *_too_few(parts, folders, class_names, files)]
    if problems:
        raise RecipeError(*(f"data.root={data.root}: {problem}" for problem in problems))
    flat = [pair for found in files.values() for pair in found]
    return ImageFiles(
        labels=np.array([label for label, _ in flat], dtype=np.int64),
        counts={part: len(found) for part, found in files.items()},
        classes=len(class_names),
        root=root,
        class_names=class_names,
        names=tuple(path.relative_to(root).as_posix() for _, path in flat),
    )


def _too_few(
    parts: dict[str, Path],
    folders: dict[str, dict[str, Path]],
    class_names: Sequence[str],
    files: dict[str, list[tuple[int, Path]]],
) -> Iterator[str]:
    """Splits in which a class has too few images to train on, or to hold one out."""
    for part, found in files.items():
        needed = 1 if part != "train" or len(parts) == 3 else 2
        per_class = np.bincount([label for label, _ in found], minlength=len(class_names))
        few = [name for name, count in zip(class_names, per_class, strict=True) if count < needed]
        few = [name for name in few if name in folders[part]]
        if few:
            why = "an image of each class" if needed == 1 else "2 of each class, to hold one out,"
            yield f"{parts[part]} has too few images of {listed_names(few)}; {why} is the least"


def _split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split, train first; only train, at root itself, where classes lie directly in it."""
    inside = _subfolders(root)
    named = [path for path in inside if path.name.lower() in SPLIT_FOLDERS]
    parts = {SPLIT_FOLDERS[path.name.lower()]: path for path in named}
    if len(parts) < len(named):
        raise RecipeError(
            f"data.root={root} has two folders for one split ({listed_names([p.name for p in named])}); keep one"
        )
    if "train" in parts and _subfolders(parts["train"]):
        return {part: parts[part] for part in ("train", "val", "test") if part in parts}
    if parts and len(named) == len(inside):
        raise RecipeError(f"data.root={root} has {listed_names(list(parts))}, but no train/ with class folders; add it")
    return {"train": root}


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _images(folder: Path | None) -> Iterator[Path]:
    """Image files below a class folder, sorted."""
    for path, inner, files in os.walk(folder) if folder else ():
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(IMAGE_EXTENSIONS) and not name.startswith("."):
                yield Path(path, name)


def _twice(root: Path, folders: dict[str, dict[str, Path]]) -> list[str]:
    """Class folders that are one and the same on disk: train would leak into val or test."""
    seen: dict[Path, Path] = {}
    problems = []
    for path in (path for classes in folders.values() for path in classes.values()):
        other = seen.setdefault(path.resolve(), path)
        if other != path:
            one, two = other.relative_to(root), path.relative_to(root)
            problems.append(f"{one} and {two} are the same folder; each split and class needs images of its own")
    return problems[:5]


def _differences(parts: dict[str, Path], folders: dict[str, dict[str, Path]]) -> list[str]:
    problems = []
    for part in [part for part in parts if part != "train"]:
        for verb, names in (
            ("lacks", folders["train"].keys() - folders[part].keys()),
            ("alone has", folders[part].keys() - folders["train"].keys()),
        ):
            if names:
                problems.append(
                    f"{parts[part]} {verb} the class folders {listed_names(sorted(names))}; give it those of "
                    f"{parts['train']}, or move it away to have {part} images drawn from train"
                )
    return problems


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of change; zeros for a link to nothing, which decoding will complain of."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def folder_pool(files: ImageFiles, size: Size | None) -> Pool:
    """The images of a folder, decoded at a size (see `decode`)."""
    stamps = [(name, *_stamp(files.root / name)) for name in files.names]

    def read(index: int) -> tuple[Image.Image, int]:
        return Image.open(files.root / files.names[index]), int(files.labels[index])

    encoded = Encoded(files.names, files.counts, files.class_names, read, size, f"data.root={files.root}")
    return cached_pool([str(files.root), stamps, size], lambda: encoded)


def listed_names(names: Sequence[str]) -> str:
    """The first five names and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
