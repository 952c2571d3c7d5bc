"""torchvision's classification data sets: found or fetched by torchvision, decoded once."""

from __future__ import annotations

import inspect
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ..recipe import Data, RecipeError
from .cache import data_folder
from .catalogue import SHORT, SPLIT_FOLDERS, Known
from .decoding import Encoded, one_line
from .folders import file_stamp
from .pool import Pool, cached_pool

PLACES = {
    "FGVCAircraft": "fgvc-aircraft-2013b",
    "Flowers102": "flowers-102",
    "Food101": "food-101",
    "Imagenette": "imagenette2*",
    "OxfordIIITPet": "oxford-iiit-pet",
    "RenderedSST2": "rendered-sst2",
    "SEMEION": "semeion.data",
    "STL10": "stl10_binary",
    "SVHN": "*_32x32.mat",
    "StanfordCars": "stanford_cars",
    "USPS": "usps*",
}
"""Where below its root torchvision keeps a data set, in lower case, unless by its own name."""


def torchvision_pool(data: Data, name: str, known: Known, side: int | None) -> Pool:
    """The images of a data set of torchvision, at their own size where it is known, else at `side` pixels."""
    import torchvision

    cls = getattr(torchvision.datasets, name)
    root = Path(data.root).expanduser().resolve() if data.root else data_folder()
    size = None if known.image_size or side is None else (side, side)
    if name in SHORT.values():
        content = [*cls.train_list, *cls.test_list, cls.meta["md5"]]
    else:
        content = [str(root), torchvision.__version__, _stamps(root, name) or _fetched(cls, root, known, data, name)]

    def open_encoded() -> Encoded:
        _refuse_corrupt(cls, root, name)
        parts = {part: _open_torchvision(cls, root, part, data) for part in known.counts}
        first = next(iter(parts.values()))
        flat = [(opened, index) for opened in parts.values() for index in range(len(opened))]
        counts = {SPLIT_FOLDERS.get(part, "train"): len(opened) for part, opened in parts.items()}
        return Encoded(
            names=tuple(f"{part}/{index}" for part, count in counts.items() for index in range(count)),
            counts=counts,
            class_names=tuple(_class_names(first, known.classes)),
            read=lambda i: flat[i][0][flat[i][1]],
            size=size,
            where=f"data.dataset={data.dataset} in {root}",
            value_range=data.value_range,
        )

    return cached_pool([name, content, size, data.value_range], open_encoded)


def _stamps(root: Path, name: str) -> list[tuple[Any, ...]]:
    """The files of a data set with what tells that one was written anew; empty where there are none."""
    wanted = PLACES.get(name, name.lower())
    places = [path for path in root.glob("*") if fnmatch(path.name.lower(), wanted)]
    files = [file for path in places for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
    return sorted((file.relative_to(root).as_posix(), *file_stamp(file)) for file in files)


def _fetched(cls: Any, root: Path, known: Known, data: Data, name: str) -> list[tuple[Any, ...]]:
    """Fetch a data set; returns its files as `_stamps`."""
    for part in known.counts:
        _open_torchvision(cls, root, part, data)
    return _stamps(root, name)


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
                f"data.dataset={data.dataset} is not in {root}, and torchvision cannot fetch it ({one_line(error)}); "
                "point data.root at a folder that holds it"
            ) from error
    try:
        return cls(**arguments, download=True)
    except Exception as error:  # no network, a dead link, a package it needs, a broken archive
        fetch = f"from torchvision.datasets import {cls.__name__}; {cls.__name__}('{root}', download=True)"
        raise RecipeError(
            f"data.dataset={data.dataset} is not in {root} and could not be fetched ({one_line(error)}); point "
            f'data.root at a folder that holds it, or run, where there is a network: python -c "{fetch}"'
        ) from error


def _class_names(opened: Any, classes: int) -> list[str]:
    names = getattr(opened, "classes", None) or getattr(opened, "categories", None) or range(classes)
    return [str(name[0] if isinstance(name, tuple) else name) for name in names]
