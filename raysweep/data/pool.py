"""A name or a folder → uint8 images, labels, class names; seeded splits; integrity.

Images stay uint8 at one size; other code resizes, flips and normalises them in batches on
the device. Data on disk is decoded once into `<cache>/images/`, a folder of plain `.npy`
files that every process of the node maps read-only: the pages are shared by the kernel, so
ten trials hold one copy. All splits index that one pool, and none of it is copied until
`Split.images` gathers a batch. Do not send a `Split` to another process, which would pickle
the mapped pages: call `load` there.

Where the data has no test split, test images are drawn first and validation images from
the rest, so no change of `val_fraction` moves an image into or out of test. scikit-learn's
stratified splits refuse fewer draws than classes and may leave a rare class out of a split,
hence the draw of our own.

Only CIFAR is unpickled, by torchvision, after its MD5 sums were verified.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track

from raysweep.recipe import Data, RecipeError, Statistics, near

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""torchvision's IMG_EXTENSIONS, repeated so that counting files imports no torch."""
SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Lower-case names of folders and of torchvision's splits, and the split each stands for."""


@dataclass(frozen=True)
class Known:
    """What is known of a data set before it is fetched."""

    classes: int
    image_size: int | None
    """Side in pixels; None where images differ in size."""
    counts: dict[str, int]
    """Images of each split, by torchvision's name of it; `train` alone where there are no splits."""
    statistics: Statistics | None = None


def _gray(mean: float, std: float) -> Statistics:
    return Statistics(mean=(mean,) * 3, std=(std,) * 3)


CIFAR10_STATISTICS = Statistics(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
CIFAR100_STATISTICS = Statistics(mean=(0.5071, 0.4866, 0.4409), std=(0.2673, 0.2564, 0.2762))

TORCHVISION = {
    "CIFAR10": Known(10, 32, {"train": 50_000, "test": 10_000}, CIFAR10_STATISTICS),
    "CIFAR100": Known(100, 32, {"train": 50_000, "test": 10_000}, CIFAR100_STATISTICS),
    "Caltech101": Known(101, None, {"train": 8_677}),
    "Caltech256": Known(257, None, {"train": 30_607}),
    "Country211": Known(211, None, {"train": 31_650, "valid": 10_550, "test": 21_100}),
    "DTD": Known(47, None, {"train": 1_880, "val": 1_880, "test": 1_880}),
    "EuroSAT": Known(10, 64, {"train": 27_000}),
    "FER2013": Known(7, 48, {"train": 28_709}),  # its test labels are not public
    "FGVCAircraft": Known(100, None, {"train": 3_334, "val": 3_333, "test": 3_333}),
    "FashionMNIST": Known(10, 28, {"train": 60_000, "test": 10_000}, _gray(0.2860, 0.3530)),
    "Flowers102": Known(102, None, {"train": 1_020, "val": 1_020, "test": 6_149}),
    "Food101": Known(101, None, {"train": 75_750, "test": 25_250}),
    "GTSRB": Known(43, None, {"train": 26_640, "test": 12_630}),
    "Imagenette": Known(10, None, {"train": 9_469, "val": 3_925}),
    "KMNIST": Known(10, 28, {"train": 60_000, "test": 10_000}),
    "MNIST": Known(10, 28, {"train": 60_000, "test": 10_000}, _gray(0.1307, 0.3081)),
    "OxfordIIITPet": Known(37, None, {"trainval": 3_680, "test": 3_669}),
    "PCAM": Known(2, 96, {"train": 262_144, "val": 32_768, "test": 32_768}),
    "RenderedSST2": Known(2, 448, {"train": 6_920, "val": 872, "test": 1_821}),
    "SEMEION": Known(10, 16, {"train": 1_593}),
    "STL10": Known(10, 96, {"train": 5_000, "test": 8_000}),
    "SUN397": Known(397, None, {"train": 108_754}),
    "SVHN": Known(10, 32, {"train": 73_257, "test": 26_032}),
    "StanfordCars": Known(196, None, {"train": 8_144, "test": 8_041}),
    "USPS": Known(10, 16, {"train": 7_291, "test": 2_007}),
}
"""torchvision's classification data sets; any spelling of upper and lower case is accepted."""
SHORT = {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}
DATASETS = ("digits", *SHORT, "imagefolder", "fake", *(f"torchvision:{name}" for name in TORCHVISION))
"""What `data.dataset` may be; also `fake:<classes>`, fake images of so many classes."""

CIFAR100_SUPERCLASSES = (
    "aquatic_mammals", "fish", "flowers", "food_containers", "fruit_and_vegetables", "household_electrical_devices",
    "household_furniture", "insects", "large_carnivores", "large_man-made_outdoor_things",
    "large_natural_outdoor_scenes", "large_omnivores_and_herbivores", "medium_mammals", "non-insect_invertebrates",
    "people", "reptiles", "small_mammals", "trees", "vehicles_1", "vehicles_2",
)  # fmt: skip
CIFAR100_SUPERCLASS_OF = (
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7,
    6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10,
    16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16,
    12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13,
)  # fmt: skip


@dataclass(frozen=True)
class Split:
    """One of train, val and test: rows of a pool of images that all three share."""

    pool: np.ndarray
    """(all images, 3, height, width) uint8, read-only; a memory map where the data came from disk."""
    rows: np.ndarray
    """(n,) int64, ascending: where this split's images are in the pool."""
    labels: np.ndarray
    """(n,) int64."""
    names: tuple[str, ...]
    """What to call each image to a person: its file below data.root, or such as `train/17`, its
    index in the data set's own order."""

    def __len__(self) -> int:
        return len(self.rows)

    def images(self, positions: np.ndarray | Sequence[int] | slice = slice(None)) -> np.ndarray:
        """A fresh, writable copy of the images at `positions` of this split: (n, 3, height, width) uint8."""
        return np.asarray(self.pool[self.rows[positions]])


@dataclass(frozen=True)
class Dataset:
    """Images, labels and class names, split."""

    train: Split
    val: Split
    test: Split
    class_names: tuple[str, ...]
    fingerprint: str
    """32 hexadecimal digits, determined by the images, labels and rows of all splits."""
    superclasses: tuple[str, ...] | None = None
    """Of CIFAR-100: the coarse name of each class."""
    known_statistics: Statistics | None = None

    @cached_property
    def statistics(self) -> Statistics:
        """Channel statistics of the data set: its published ones, else of up to 2,048 training images."""
        return self.known_statistics or channel_statistics(self.train)


@dataclass(frozen=True)
class Shape:
    """What `load` would give, told without decoding or fetching anything."""

    classes: int
    image_size: int | None
    """Side in pixels of the images as stored; None where only the data can tell."""
    train: int
    val: int
    test: int


@dataclass(frozen=True)
class _Labels:
    """The labels alone, ordered by the data's own splits: enough to count and to split."""

    labels: np.ndarray  # (n,) int64
    counts: dict[str, int]  # images of the data's own splits, in order; keys of train, val, test
    classes: int


@dataclass(frozen=True)
class _Pool(_Labels):
    """All images of a data set."""

    images: np.ndarray  # (n, 3, height, width) uint8
    names: tuple[str, ...]
    class_names: tuple[str, ...]
    digest: str  # of images and labels


def load(data: Data, image_size: int | None = None) -> Dataset:
    """Read the data, fetching and decoding it if that was not done before, and split it.

    Args:
        data: what to load and how to split it.
        image_size: side in pixels, instead of `data.image_size`; images that differ in size are
            resized and cropped to it, images of one size keep theirs.

    Raises:
        RecipeError: the data is missing, corrupt, unreadable or cannot be split as asked.
    """
    side = image_size or data.image_size
    known, name = _known(data.dataset)
    if known:
        pool = _load_torchvision(data, name, known, side)
    elif data.dataset == "digits":
        pool = _load_digits()
    elif data.dataset == "imagefolder":
        pool = _load_folder(scan(data), side)
    else:
        pool = _load_fake(data, side)
    rows = split(pool.labels, pool.counts, data)
    digest = hashlib.blake2b(pool.digest.encode(), digest_size=16)
    for part in ("train", "val", "test"):
        digest.update(f"{part} {len(rows[part])}".encode())
        digest.update(rows[part].tobytes())
    parts = {part: _part(pool, rows[part]) for part in rows}
    fine = name == "CIFAR100" and pool.classes == len(CIFAR100_SUPERCLASS_OF)
    superclasses = tuple(CIFAR100_SUPERCLASSES[index] for index in CIFAR100_SUPERCLASS_OF) if fine else None
    statistics = known.statistics if known else None
    return Dataset(
        **parts, class_names=pool.class_names, fingerprint=digest.hexdigest(),
        superclasses=superclasses, known_statistics=statistics,
    )  # fmt: skip


def shape(data: Data) -> Shape:
    """Classes, image size and the number of images in each split; opens no image, fetches nothing.

    Raises:
        RecipeError: what can be seen to be wrong from names, folders and counts.
    """
    known, _ = _known(data.dataset)
    if known:
        counts = {SPLIT_FOLDERS.get(part, "train"): count for part, count in known.counts.items()}
        facts, side = _even(known.classes, counts), known.image_size or data.image_size
    elif data.dataset == "digits":
        facts, side = _even(10, {"train": 1_797}), 8
    elif data.dataset == "imagefolder":
        facts, side = scan(data), data.image_size
    else:
        facts, side = _even(*_fake_counts(data)), data.image_size or 32
    rows = split(facts.labels, facts.counts, data)
    return Shape(facts.classes, side, **{part: len(rows[part]) for part in rows})


def check(data: Data) -> None:
    """Raise RecipeError for what is wrong with the data, as far as `shape` can see it."""
    shape(data)


def split(labels: np.ndarray, counts: dict[str, int], data: Data) -> dict[str, np.ndarray]:
    """The rows of train, val and test, each ascending, disjoint and stratified by class.

    A class has at least one image in train, then one in val, then one in test, as far as it goes.

    Args:
        labels: (n,) of all images, ordered by the data's own splits.
        counts: images in each of the data's own splits; what is missing is drawn from train.
    """
    seed = data.split_seed % 2**32
    starts = np.cumsum([0, *counts.values()])
    rows = {part: np.arange(start, start + count) for (part, count), start in zip(counts.items(), starts, strict=False)}
    if "test" not in counts:
        leave = 1 if "val" in counts else 2
        rows["test"], rows["train"] = _draw(labels, rows["train"], data.test_fraction, leave, [seed, 0])
    if "val" not in counts:
        rows["val"], rows["train"] = _draw(labels, rows["train"], data.val_fraction, 1, [seed, 1])
    if data.limit is not None and data.limit < len(rows["train"]):
        classes = len(np.unique(labels[rows["train"]]))
        if data.limit < classes:
            raise RecipeError(
                f"data.limit={data.limit} is fewer images than the {classes} classes of {data.dataset}; "
                f"give at least {classes}, or null for all images"
            )
        share = data.limit / len(rows["train"])
        for stage, part in enumerate(("train", "val", "test"), start=2):
            rows[part], _ = _draw(labels, rows[part], share, 0, [seed, stage])
    return {part: rows[part] for part in ("train", "val", "test")}


def _draw(
    labels: np.ndarray, rows: np.ndarray, fraction: float, leave: int, seed: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Draw `fraction` of `rows` at random, by class in proportion; return (drawn, rest), ascending.

    Of each class at least one image is drawn, unless that would leave fewer than `leave`.
    RandomState because its numbers never change from one numpy to the next.
    """
    order = np.random.RandomState(seed).permutation(rows)
    order = order[np.argsort(labels[order], kind="stable")]  # class by class, shuffled within
    counts = np.bincount(labels[rows])
    most = np.maximum(counts - leave, 0)
    least = np.minimum(most, 1)
    room = most - least
    extra = np.clip(round(fraction * len(rows)) - least.sum(), 0, room.sum())
    shares = np.cumsum([0, *room]) * (extra / max(room.sum(), 1))
    quotas = least + np.diff(np.floor(shares + 0.5).astype(np.int64))  # rounding never loses an image
    rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)  # of an image in its class
    drawn = rank < np.repeat(quotas, counts)
    return np.sort(order[drawn]), np.sort(order[~drawn])


def channel_statistics(images: Split, most: int = 2048) -> Statistics:
    """Channel mean and standard deviation of at most `most` images, evenly spaced, scaled to [0, 1].

    Counts of the 256 values are added up, so the result is exact and the same on every machine.
    """
    step = -(-len(images) // most)
    histogram = np.zeros((3, 256), dtype=np.int64)
    for start in range(0, len(images), 32 * step):
        batch = images.images(slice(start, start + 32 * step, step))
        for channel in range(3):
            histogram[channel] += np.bincount(batch[:, channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    weights = histogram / histogram.sum(axis=1, keepdims=True)
    mean = weights @ values  # (3,)
    std = np.sqrt(np.maximum(weights @ values**2 - mean**2, 0)).clip(min=1 / 255)
    return Statistics(mean=tuple(mean.tolist()), std=tuple(std.tolist()))


def _part(pool: _Pool, rows: np.ndarray) -> Split:
    return Split(pool.images, rows, pool.labels[rows], tuple(pool.names[row] for row in rows))


def _known(dataset: str) -> tuple[Known | None, str]:
    """The row of `TORCHVISION` and its key; (None, "") for what does not come from torchvision.

    Raises:
        RecipeError: there is no such data set.
    """
    spelled = {name.lower(): name for name in TORCHVISION}
    short = SHORT.get(dataset) or dataset.removeprefix("torchvision:")
    if short != dataset and short.lower() in spelled:
        name = spelled[short.lower()]
        return TORCHVISION[name], name
    if short != dataset:
        hint = near(short, spelled) or f"choose one of {', '.join(TORCHVISION)}"
        raise RecipeError(f"data.dataset={dataset} is no classification data set of torchvision; {hint}")
    kind, _, classes = dataset.partition(":")
    if dataset in ("digits", "imagefolder") or (kind == "fake" and (dataset == kind or classes.isdigit())):
        return None, ""
    hint = near(dataset, dict.fromkeys(("digits", "imagefolder", "fake", *spelled)))
    raise RecipeError(f"data.dataset={dataset} is not a data set; {hint or 'see raysweep.datasets.DATASETS'}")


def _even(classes: int, counts: dict[str, int]) -> _Labels:
    """Labels that stand in for a data set of which only the numbers are known."""
    labels = np.concatenate([np.arange(count) % classes for count in counts.values()])
    return _Labels(labels, counts, classes)


# ---- data made in memory ----


def _in_memory(images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]) -> _Pool:
    images.setflags(write=False)
    names = tuple(f"train/{index}" for index in range(len(images)))
    digest = _digest(images, labels)
    return _Pool(labels, {"train": len(images)}, len(class_names), images, names, class_names, digest)


def _load_digits() -> _Pool:
    """scikit-learn's 1,797 handwritten digits, 8×8, values 0..16 brought to 0..255.

    As `sklearn.datasets.load_digits` reads them, but without importing scikit-learn: that
    would take each lane a second and tens of megabytes.
    """
    package = importlib.util.find_spec("sklearn")
    assert package is not None and package.origin is not None
    table = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    pixels, labels = table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)
    gray = np.rint(pixels * (255 / 16)).astype(np.uint8)  # (n, 8, 8)
    return _in_memory(np.repeat(gray[:, None], 3, axis=1), labels, tuple("0123456789"))


def _fake_counts(data: Data) -> tuple[int, dict[str, int]]:
    classes = int(data.dataset.partition(":")[2] or 10)
    if classes < 2:
        raise RecipeError(f"data.dataset={data.dataset} has fewer than 2 classes; write fake:2 or more")
    return classes, {"train": max(512, 4 * classes)}


def _load_fake(data: Data, side: int | None) -> _Pool:
    """Noise over one pattern of 4×4 coloured squares a class: learnable, and made in a moment."""
    classes, counts = _fake_counts(data)
    side = side or 32
    random = np.random.RandomState(data.split_seed % 2**32)
    labels = np.arange(counts["train"]) % classes
    patterns = random.randint(0, 192, size=(classes, 3, 4, 4), dtype=np.uint8)
    square = np.arange(side) * 4 // side  # (side,), the square each pixel is in
    images = random.randint(0, 64, size=(len(labels), 3, side, side), dtype=np.uint8)
    for label, pattern in enumerate(patterns):
        images[labels == label] += pattern[:, square[:, None], square]
    return _in_memory(images, labels, tuple(f"class{label}" for label in range(classes)))


# ---- torchvision ----


def _load_torchvision(data: Data, name: str, known: Known, side: int | None) -> _Pool:
    import torchvision

    cls = getattr(torchvision.datasets, name)
    root = Path(data.root).expanduser().resolve() if data.root else data_folder()
    side = None if known.image_size else side
    sums = [*cls.train_list, *cls.test_list, cls.meta["md5"]] if name in SHORT.values() else []
    key = [name, sums or [str(root), torchvision.__version__], side]

    def build(folder: Path) -> None:
        _refuse_corrupt(cls, root, name)
        parts = {part: _open_torchvision(cls, root, part, data) for part in known.counts}
        first = next(iter(parts.values()))
        flat = [(opened, index) for opened in parts.values() for index in range(len(opened))]
        counts = {SPLIT_FOLDERS.get(part, "train"): len(opened) for part, opened in parts.items()}
        names = [f"{part}/{index}" for part, count in counts.items() for index in range(count)]
        about = {"names": names, "counts": counts, "class_names": _class_names(first, known.classes)}
        _write_pool(folder, about, lambda i: flat[i][0][flat[i][1]], side, f"data.dataset={data.dataset} in {root}")

    return _cached(key, build)


def _refuse_corrupt(cls: Any, root: Path, name: str) -> None:
    """CIFAR's files are pickles: one whose MD5 sum is wrong is neither opened nor fetched over."""
    if name not in SHORT.values():
        return
    from torchvision.datasets.utils import check_integrity

    folder = root / cls.base_folder
    sums = [*cls.train_list, *cls.test_list, (cls.meta["filename"], cls.meta["md5"])]
    wrong = [file for file, md5 in sums if (folder / file).exists() and not check_integrity(str(folder / file), md5)]
    if wrong:
        raise RecipeError(
            f"{folder} holds corrupt files ({', '.join(wrong)}): their MD5 sums are not those of {name}; "
            "remove them and fetch the data again, or point data.root at another copy"
        )


def _open_torchvision(cls: Any, root: Path, part: str, data: Data) -> Any:
    """One split of a torchvision data set, fetched if it is not there."""
    accepted = inspect.signature(cls.__init__).parameters
    arguments: dict[str, Any] = {"root": str(root)}
    if "train" in accepted:
        arguments["train"] = part == "train"
    elif "split" in accepted:
        arguments["split"] = part
    try:
        return cls(**arguments, **({"download": False} if "download" in accepted else {}))
    except (RuntimeError, OSError) as error:  # torchvision's word for missing or corrupt
        if "download" not in accepted:
            raise RecipeError(
                f"data.dataset={data.dataset} is not in {root}, and torchvision cannot fetch it ({_line(error)}); "
                "point data.root at a folder that holds it"
            ) from error
    try:
        return cls(**arguments, download=True)
    except Exception as error:  # no network, a dead link, a package it needs, a broken archive
        raise RecipeError(
            f"data.dataset={data.dataset} is not in {root} and could not be fetched ({_line(error)}); point data.root "
            f'at a folder that holds it, or run, where there is a network: python -c "from torchvision.datasets '
            f"import {cls.__name__}; {cls.__name__}('{root}', download=True)\""
        ) from error


def _class_names(opened: Any, classes: int) -> list[str]:
    names = getattr(opened, "classes", None) or getattr(opened, "categories", None) or range(classes)
    return [str(name[0] if isinstance(name, tuple) else name) for name in names]


# ---- a folder of images ----


@dataclass(frozen=True)
class _Files(_Labels):
    """The image files of a folder, in the order of the splits, classes and names."""

    root: Path
    class_names: tuple[str, ...]
    names: tuple[str, ...]  # relative to root, with slashes


def scan(data: Data) -> _Files:
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
    problems = [*_twice(root, folders), *_differences(parts, folders)]
    files = {
        part: [(label, path) for label, name in enumerate(class_names) for path in _images(classes.get(name))]
        for part, classes in folders.items()
    }
    for part, found in files.items():
        needed = 1 if part != "train" or len(parts) == 3 else 2
        per_class = np.bincount([label for label, _ in found], minlength=len(class_names))
        few = [name for name, count in zip(class_names, per_class, strict=True) if count < needed]
        few = [name for name in few if name in folders[part]]
        if few:
            why = "an image of each class" if needed == 1 else "2 of each class, to hold one out,"
            problems.append(f"{parts[part]} has too few images of {_some(few)}; {why} is the least")
    if problems:
        raise RecipeError(*(f"data.root={data.root}: {problem}" for problem in problems))
    flat = [pair for found in files.values() for pair in found]
    labels = np.array([label for label, _ in flat], dtype=np.int64)
    names = tuple(path.relative_to(root).as_posix() for _, path in flat)
    counts = {part: len(found) for part, found in files.items()}
    return _Files(labels, counts, len(class_names), root, class_names, names)


def _split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split, train first; only train, at root itself, where classes lie directly in it."""
    inside = _subfolders(root)
    named = [path for path in inside if path.name.lower() in SPLIT_FOLDERS]
    parts = {SPLIT_FOLDERS[path.name.lower()]: path for path in named}
    if len(parts) < len(named):
        raise RecipeError(
            f"data.root={root} has two folders for one split ({_some([p.name for p in named])}); keep one"
        )
    if "train" in parts and _subfolders(parts["train"]):
        return {part: parts[part] for part in ("train", "val", "test") if part in parts}
    if parts and len(named) == len(inside):
        raise RecipeError(f"data.root={root} has {_some(list(parts))}, but no train/ with class folders; add it")
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
                    f"{parts[part]} {verb} the class folders {_some(sorted(names))}; give it those of "
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


def _load_folder(files: _Files, side: int | None) -> _Pool:
    stamps = [(name, *_stamp(files.root / name)) for name in files.names]
    about = {"names": files.names, "counts": files.counts, "class_names": files.class_names}

    def read(index: int) -> tuple[Image.Image, int]:
        return Image.open(files.root / files.names[index]), int(files.labels[index])

    where = f"data.root={files.root}"
    return _cached([str(files.root), stamps, side], lambda folder: _write_pool(folder, about, read, side, where))


# ---- decoding, once ----


def cache_folder() -> Path:
    """Where raysweep keeps what it can make again: $RAYSWEEP_CACHE, else ~/.cache/raysweep."""
    return Path(os.environ.get("RAYSWEEP_CACHE") or "~/.cache/raysweep").expanduser().resolve()


def data_folder() -> Path:
    """Where data sets are fetched to: $RAYSWEEP_DATA, else `data` in the cache folder."""
    return Path(os.environ.get("RAYSWEEP_DATA") or cache_folder() / "data").expanduser().resolve()


def decode(image: Image.Image, side: int | None) -> np.ndarray:
    """An image upright in RGB, as (3, height, width) uint8.

    With `side`, the largest centred square of it, resized (bicubic, antialiased) to that many pixels.
    """
    if side is not None:
        image.draft("RGB", (2 * side, 2 * side))  # JPEG decodes straight to a fraction of its size
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;"):  # PIL would clip these to white
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError(f"mode {image.mode}: only images of 8 or 16 bits are understood")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if "transparency" in image.info:
        image = image.convert("RGBA")  # what PIL warns to do first
    image = image.convert("RGB")
    if side is not None:
        image = ImageOps.fit(image, (side, side), method=Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def _cached(key: list[Any], build: Callable[[Path], None]) -> _Pool:
    """The pool stored under `key`, built first if need be; two processes never build one at once."""
    name = hashlib.blake2b(json.dumps([1, key]).encode(), digest_size=16).hexdigest()
    folder = cache_folder() / "images" / name
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.is_dir():
                unfinished = folder.with_suffix(".part")
                shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
                unfinished.mkdir()
                try:
                    build(unfinished)
                    unfinished.rename(folder)
                finally:
                    shutil.rmtree(unfinished, ignore_errors=True)
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
    labels = np.load(folder / "labels.npy", allow_pickle=False)
    classes = tuple(about["class_names"])
    return _Pool(labels, about["counts"], len(classes), images, tuple(about["names"]), classes, about["digest"])


def _write_pool(
    folder: Path, about: dict[str, Any], read: Callable[[int], tuple[Image.Image, int]], side: int | None, where: str
) -> None:
    """Decode every image into `folder`/images.npy, on all cores.

    Args:
        folder: exists and is empty; receives images.npy, labels.npy and about.json.
        about: `names`, `counts` and `class_names` of the pool.
        read: the image and label at a position.
        side: see `decode`; None asks that all images have one size.
        where: how an error begins.

    Raises:
        RecipeError: images that cannot be read or differ in size, the first five by name; a full disk.
    """
    names = about["names"]
    height, width = (side, side) if side else _upright_size(read, names, where)
    total = len(names) * 3 * height * width
    free = shutil.disk_usage(folder).free
    if total > free:  # a memory map that meets a full disk kills the process
        raise RecipeError(
            f"{where}: {len(names)} decoded images of {height}×{width} pixels take {total / 1e9:.1f} GB, "
            f"{cache_folder()} has {free / 1e9:.1f} GB free; lower data.image_size or set RAYSWEEP_CACHE"
        )
    images = np.lib.format.open_memmap(
        folder / "images.npy", mode="w+", dtype=np.uint8, shape=(len(names), 3, height, width)
    )
    labels = np.zeros(len(names), dtype=np.int64)

    def decode_some(start: int) -> list[str]:
        problems = []
        for index in range(start, min(start + 32, len(names))):
            try:
                image, label = read(index)
                with image:
                    array = decode(image, side)
            except Exception as error:  # PIL's decoders raise nearly anything
                problems.append(_unreadable(where, names[index], error))
                continue
            if array.shape[1:] != (height, width):
                problems.append(
                    f"{where}: {names[index]} is {array.shape[2]}×{array.shape[1]} pixels, {names[0]} is "
                    f"{width}×{height}; set data.image_size to bring all images to one size"
                )
                continue
            images[index], labels[index] = array, int(label)
        return problems

    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None) as threads:
        chunks = range(0, len(names), 32)
        found = threads.map(decode_some, chunks)
        screen = Console(stderr=True)
        bar = track(found, "decoding images", len(chunks), console=screen, disable=not screen.is_terminal)
        problems = [problem for some in bar for problem in some]
    if problems:
        more = [f"{where}: {len(problems) - 5} more images cannot be used"] if len(problems) > 5 else []
        raise RecipeError(*problems[:5], *more)
    images.flush()
    np.save(folder / "labels.npy", labels, allow_pickle=False)
    (folder / "about.json").write_text(json.dumps(about | {"digest": _digest(images, labels)}), encoding="utf-8")


def _upright_size(read: Callable[[int], tuple[Image.Image, int]], names: Sequence[str], where: str) -> tuple[int, int]:
    """Height and width of the first image."""
    try:
        with read(0)[0] as image:
            _, height, width = decode(image, None).shape
    except Exception as error:  # PIL's decoders raise nearly anything
        raise RecipeError(_unreadable(where, names[0], error)) from error
    return height, width


def _unreadable(where: str, name: str, error: Exception) -> str:
    return f"{where}: {name} is not a readable image ({_line(error)}); replace or remove it"


def _digest(images: np.ndarray, labels: np.ndarray) -> str:
    digest = hashlib.blake2b(f"{images.shape}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(images).data)
    digest.update(np.ascontiguousarray(labels).data)
    return digest.hexdigest()


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
