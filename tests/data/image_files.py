"""Small data in the real formats: CIFAR's pickled batches, MNIST's idx files, DTD, folders of photographs."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from raysweep.recipe import Data

EXIF_ORIENTATION = 0x0112
TURNED_RIGHT = 6  # the camera was held upright: a viewer turns the stored image by 90 degrees clockwise


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> Path:
    """Write noise of `size` (width, height); the suffix chooses the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(seed).randint(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    Image.fromarray(pixels, "RGBA").convert(mode).save(path)
    return path


def write_classes(folder: Path, counts: dict[str, int], size: tuple[int, int] | None = None, seed: int = 0) -> Path:
    """Write a folder for each class with so many images; sizes and formats vary unless `size` is given."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            seed += 1
            suffix = ("png", "jpg", "JPEG", "bmp")[index % 4]
            write_image(folder / name / f"{index:03}.{suffix}", seed, size or (9 + index % 5, 8 + index % 3))
    return folder


def folder_data(root: Path, **fields: Any) -> Data:
    """A recipe's section for a folder of images, of 8×8 pixels unless said otherwise."""
    return Data(dataset="imagefolder", root=str(root), **({"image_size": 8} | fields))


def pixels(count: int, side: int, seed: int = 0) -> torch.Tensor:
    """Noise as a data set stores it: (count, 3, side, side) uint8."""
    return torch.from_numpy(np.random.RandomState(seed).randint(0, 256, (count, 3, side, side)).astype(np.uint8))


def write_turned(path: Path) -> Path:
    """A 20×10 JPEG, left half red, whose EXIF orientation makes it 10×20 with its upper half red."""
    pixels = np.zeros((10, 20, 3), dtype=np.uint8)
    pixels[:, :10, 0] = 255
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = TURNED_RIGHT
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, exif=exif, quality=95)
    return path


def write_cifar(root: Path, monkeypatch: Any, coarse: bool = False, per_class: int = 4) -> np.ndarray:
    """Write CIFAR-10 (or 100) as its authors did, `per_class` training images and one test image of each class.

    torchvision's own list of MD5 sums is replaced by that of the files written, so that its
    real loader, integrity check included, reads them. Returns the training images, (n, 3, 32, 32).
    """
    import torchvision.datasets

    cls = torchvision.datasets.CIFAR100 if coarse else torchvision.datasets.CIFAR10
    classes = 100 if coarse else 10
    folder = root / cls.base_folder
    folder.mkdir(parents=True)
    random = np.random.RandomState(0)
    images = random.randint(0, 256, (classes * per_class, 3072), dtype=np.uint8)
    labels = np.arange(len(images)) % classes
    batches = [file for file, _ in cls.train_list]
    train = [
        (file, _batch(part, part_labels, coarse))
        for file, part, part_labels in zip(
            batches, np.array_split(images, len(batches)), np.array_split(labels, len(batches)), strict=True
        )
    ]
    pixels = random.randint(0, 256, (classes, 3072), dtype=np.uint8)
    test = [(cls.test_list[0][0], _batch(pixels, np.arange(classes), coarse))]
    names = [f"name{index}" for index in range(classes)]
    meta = (cls.meta["filename"], {cls.meta["key"]: names})
    monkeypatch.setattr(cls, "train_list", _write_pickles(folder, train))
    monkeypatch.setattr(cls, "test_list", _write_pickles(folder, test))
    ((_, md5),) = _write_pickles(folder, [meta])
    monkeypatch.setattr(cls, "meta", cls.meta | {"md5": md5})
    return images.reshape(-1, 3, 32, 32)


def _batch(images: np.ndarray, labels: np.ndarray, coarse: bool) -> dict[str, Any]:
    if coarse:
        return {"data": images, "fine_labels": labels.tolist(), "coarse_labels": (labels // 5).tolist()}
    return {"data": images, "labels": labels.tolist()}


def _write_pickles(folder: Path, contents: Iterable[tuple[str, Any]]) -> list[list[str]]:
    sums = []
    for file, content in contents:
        (folder / file).write_bytes(pickle.dumps(content, protocol=2))
        sums.append([file, hashlib.md5((folder / file).read_bytes()).hexdigest()])
    return sums


def write_mnist(root: Path, train: int = 40, test: int = 20) -> None:
    """Write MNIST's four gzipped idx files, and unpacked as torchvision leaves them."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    random = np.random.RandomState(0)
    for part, count in (("train", train), ("t10k", test)):
        images = random.randint(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        files = {
            f"{part}-images-idx3-ubyte": struct.pack(">IIII", 0x803, count, 28, 28) + images.tobytes(),
            f"{part}-labels-idx1-ubyte": struct.pack(">II", 0x801, count) + labels.tobytes(),
        }
        for name, content in files.items():
            (raw / name).write_bytes(content)
            (raw / f"{name}.gz").write_bytes(gzip.compress(content))


def write_dtd(root: Path, classes: tuple[str, ...] = ("banded", "dotted"), per_class: int = 3) -> None:
    """Write the Describable Textures: photographs of several sizes, and a list of files for each split."""
    base = root / "dtd" / "dtd"
    lists: dict[str, list[str]] = {}
    for part_index, part in enumerate(("train", "val", "test")):
        for name in classes:
            for index in range(per_class):
                file = f"{name}/{name}_{part}{index}.jpg"
                write_image(base / "images" / file, seed=part_index * 100 + index, size=(20 + index, 16))
                lists.setdefault(part, []).append(file)
    (base / "labels").mkdir()
    for part, files in lists.items():
        (base / "labels" / f"{part}1.txt").write_text("\n".join(files) + "\n")
