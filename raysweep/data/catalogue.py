"""The data sets that are known by name, and what is known of each before it is fetched."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..recipe import RecipeError, Statistics, near

SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing", "holdout", "heldout"), "test"),
}
"""Lower-case names of folders and of torchvision's splits, and the split each stands for."""
FILLERS = frozenset(("set", "data", "dataset", "images", "image", "imgs", "img", "split"))
"""Words beside a split's name that say nothing: `training_set`, `test images`."""


def split_of(folder: str) -> str | None:
    """The split that a folder's name says: train, val, test or none of them."""
    words = [word for word in re.split(r"[\W_]+", folder.lower()) if word and word not in FILLERS]
    name = "".join(words)
    return SPLIT_FOLDERS.get(name) or SPLIT_FOLDERS.get(name.removesuffix("set"))


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
"""What `data.dataset` may be; also `fake:<classes>`, fake images of so many classes, and `hf:<folder or name>`."""

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


def known(dataset: str) -> tuple[Known | None, str]:
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
    if kind == "hf" and classes:
        return None, ""
    if dataset in ("digits", "imagefolder") or (kind == "fake" and (dataset == kind or classes.isdigit())):
        return None, ""
    hint = near(dataset, dict.fromkeys(("digits", "imagefolder", "fake", *spelled)))
    raise RecipeError(f"data.dataset={dataset} is not a data set; {hint or 'see raysweep.data.catalogue.DATASETS'}")
