"""A folder of images: a folder for each class, below train/, val/ and test/ or alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..recipe import Data, RecipeError
from . import layout
from .catalogue import split_of
from .decode import Size, ValueRange
from .decoding import Encoded
from .layout import listed_names
from .listing import Tree
from .pool import Labelling, Pool, cached_pool

NOT_DECODED = frozenset(("BUFR", "GRIB", "HDF5", "MPEG", "WMF", "EPS", "IPTC"))
"""Formats that Pillow only recognises, or reads through a program that may not be there."""
SUFFIXES_NAMED = 8


@cache
def image_suffixes() -> frozenset[str]:
    """Lower-case suffixes of the files that are images: all that Pillow decodes here."""
    registered = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in registered.items() if kind in Image.OPEN and kind not in NOT_DECODED)


@dataclass(frozen=True)
class ImageFiles(Labelling):
    """The image files of a folder, in the order of the splits, classes and names."""

    root: Path
    class_names: tuple[str, ...]
    names: tuple[str, ...]
    """Relative to root, with slashes."""
    notes: tuple[str, ...] = ()
    """What a person must know of it: what was ignored."""
    key: tuple[str, ...] = ()
    """What else than the files determines the pool: the labels of a table."""
    group_values: tuple[str, ...] | None = None
    """The group of each image, where a table says it."""
    columns: tuple[str, ...] = ()
    """Of the table."""


class _Found(NamedTuple):
    """What lies in one class's folder."""

    images: list[str]
    ignored: Counter[str]
    """Files that are no images, by suffix."""


_scanned: dict[Path, tuple[Tree, ImageFiles]] = {}


def scan(data: Data) -> ImageFiles:
    """List the images of `data.root`: train/, val/, test/ with a folder for each class, or such folders alone.

    `train/` is a split if it holds folders, else a class. Hidden files and folders do not count.
    While no folder changes, the list is made once a process.

    Raises:
        RecipeError: no such folder, no classes, classes that differ between splits or have too
            few images, a folder that serves twice, splits that are not called so, names that are not text.
    """
    root = _root(data)
    kept = _scanned.get(root)
    if kept is None or not kept[0].is_fresh():
        tree = Tree(root)
        try:
            kept = _scanned[root] = tree, _scan(tree)
        except RecipeError as error:
            raise RecipeError(*(f"data.root={data.root}: {problem}" for problem in error.problems)) from None
    return kept[1]


def _root(data: Data) -> Path:
    if data.root is None:
        raise RecipeError("data.root=null: imagefolder needs the folder that holds train/ or a folder for each class")
    if layout.unreadable_names([data.root]) or "\0" in data.root:
        raise RecipeError(
            f"data.root={data.root!r} is no name in UTF-8; rename the folder, or give the path of a link to it that is"
        )
    root = Path(data.root).expanduser().absolute()
    if not root.is_dir():
        raise RecipeError(f"data.root={data.root} is not a folder; give one with train/ or a folder for each class")
    return root


def _scan(tree: Tree) -> ImageFiles:
    parts = _split_folders(tree)
    classes = {part: {name: _joined(folder, name) for name in tree[folder].folders} for part, folder in parts.items()}
    _refuse_folders(tree, parts, classes)
    for path in (*parts.values(), *(path for folders in classes.values() for path in folders.values())):
        tree.enter(path)
    found = {
        part: {name: _walk(tree, path) for name, path in sorted(folders.items())} for part, folders in classes.items()
    }
    flat = [name for folders in found.values() for one in folders.values() for name in one.images]
    counts = {part: {name: len(one.images) for name, one in folders.items()} for part, folders in found.items()}
    unread = {
        part: {name: ignored_files(one.ignored) for name, one in folders.items()} for part, folders in found.items()
    }
    problems = [
        *layout.unreadable_names(flat),
        *layout.same_folders(tree),
        *layout.differences(_called(tree, parts), classes),
        *layout.too_few(_called(tree, parts), counts, unread),
    ]
    if problems:
        raise RecipeError(*problems)
    names = tuple(counts["train"])
    return ImageFiles(
        labels=np.concatenate([np.repeat(np.arange(len(names)), list(number.values())) for number in counts.values()]),
        counts={part: sum(number.values()) for part, number in counts.items()},
        classes=len(names),
        root=tree.root,
        class_names=names,
        names=tuple(flat),
        notes=tuple(_notes(tree, parts, found)),
    )


def _refuse_folders(tree: Tree, parts: Mapping[str, str], classes: layout.Classes) -> None:
    """Refuse class folders that cannot be meant.

    Raises:
        RecipeError: with a sentence for each mistake.
    """
    folders = classes["train"]
    every = [name for names in classes.values() for name in names]
    if problems := [*layout.unreadable_names(every), *layout.alike(classes)]:
        raise RecipeError(*problems)
    if len(folders) < 2:
        raise RecipeError(
            f"{_called(tree, parts)['train']} has {len(folders)} class folders; images are to be in one folder for "
            f"each class, and at least 2 classes are needed{_deeper(tree, folders)}"
        )
    has_images = {name: any(map(_is_image, tree[path].files)) for name, path in folders.items()}
    if problems := layout.splits_taken_for_classes(tree, folders, has_images):
        raise RecipeError(*problems)


def _deeper(tree: Tree, folders: Mapping[str, str]) -> str:
    """Where the classes may be, if the only folder holds several."""
    for path in folders.values():
        if len(tree[path].folders) > 1:
            return f"; {path} holds {listed_names(tree[path].folders)}: if these are what is meant, set data.root to it"
    return ""


def _split_folders(tree: Tree) -> dict[str, str]:
    """The folder of each split, train first; only train, the root itself, where classes lie directly in it."""
    inside = tree[""].folders
    named = [(split, name) for name in inside if (split := split_of(name))]
    for split in ("train", "val", "test"):
        names = [name for part, name in named if part == split]
        if len(names) > 1:
            raise RecipeError(f"two folders for one split: {listed_names(names)} are all {split}; keep one")
    parts = dict(named)
    if "train" in parts and tree[parts["train"]].folders:
        return {part: parts[part] for part in ("train", "val", "test") if part in parts}
    if parts and len(named) == len(inside):
        raise RecipeError(f"it has {listed_names(list(parts.values()))}, but no train/ with class folders; add it")
    return {"train": ""}


def _walk(tree: Tree, top: str) -> _Found:
    """Image files below a class folder, those of a folder before those of its folders."""
    found = _Found([], Counter())
    for path, listing in tree.below(top):
        for name in listing.files:
            if _is_image(name):
                found.images.append(f"{path}/{name}")
            else:
                found.ignored[Path(name).suffix.lower()] += 1
    return found


def _is_image(name: str) -> bool:
    return name[name.rfind(".") :].lower() in image_suffixes()


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _called(tree: Tree, parts: Mapping[str, str]) -> dict[str, str]:
    """The folder of each split in a sentence."""
    return {part: f"{tree.root}/{folder}".rstrip("/") for part, folder in parts.items()}


def _notes(tree: Tree, parts: Mapping[str, str], found: Mapping[str, Mapping[str, _Found]]) -> list[str]:
    """What was not taken: files of other kinds, images in no class folder, folders beside the splits."""
    ignored = sum((one.ignored for folders in found.values() for one in folders.values()), Counter[str]())
    notes = [ignored_files(ignored)] if ignored else []
    if any(part not in (folder.lower(), "train") for part, folder in parts.items()):
        notes.append(f"splits: {', '.join(f'{part} is {folder}/' for part, folder in parts.items())}")
    outside = dict.fromkeys(("", *parts.values()))
    loose = [_joined(folder, name) for folder in outside for name in tree[folder].files if _is_image(name)]
    if loose:
        count = "1 image" if len(loose) == 1 else f"{len(loose):,} images"
        notes.append(f"ignored {count} in no class folder: {listed_names(loose)}")
    beside = [name for name in tree[""].folders if name not in parts.values()] if "" not in parts.values() else []
    if beside:
        folders = "the folder" if len(beside) == 1 else "the folders"
        notes.append(
            f"ignored {folders} {listed_names(beside)} beside {listed_names(list(parts.values()))}: "
            f"splits are called {layout.ACCEPTED}"
        )
    return notes


def ignored_files(suffixes: Mapping[str, int]) -> str:
    """How many files are not read, by suffix, most first; nothing where there are none."""
    total = sum(suffixes.values())
    if not total:
        return ""
    ordered = sorted(suffixes.items(), key=lambda pair: (-pair[1], pair[0]))
    words = [f"{suffix or 'without suffix'} {number:,}" for suffix, number in ordered[:SUFFIXES_NAMED]]
    more = [f"others {sum(number for _, number in ordered[SUFFIXES_NAMED:]):,}"] if len(ordered) > len(words) else []
    return f"ignored {total:,} {'file' if total == 1 else 'files'}: {', '.join(words + more)}"


def file_stamp(path: Path) -> tuple[int, int, int, int]:
    """Size, times of change and inode: of a file written anew one differs, though its size and time be set back.

    Zeros for a link to nothing, which decoding will complain of.
    """
    try:
        stat = path.stat()
    except OSError:
        return 0, 0, 0, 0
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def folder_pool(files: ImageFiles, size: Size | None, value_range: ValueRange | None) -> Pool:
    """The images of a folder, decoded at a size (see `decode`)."""
    root = files.root.resolve()
    stamps = [(name, *file_stamp(root / name)) for name in files.names]

    def read(index: int) -> tuple[Image.Image, int]:
        return Image.open(root / files.names[index]), int(files.labels[index])

    where = f"data.labels={files.key[0]}" if files.key else f"data.root={files.root}"
    encoded = Encoded(files.names, files.counts, files.class_names, read, size, where, value_range)
    pool = cached_pool([str(root), stamps, size, value_range, *files.key[1:]], lambda: encoded)
    return replace(pool, notes=(*files.notes, *pool.notes), groups=files.groups)
