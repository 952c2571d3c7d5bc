"""Data larger than memory: the search for copies among a million images, and what a trial's process holds.

    python -m benchmarks.large audit [--images 1000000]
    python -m benchmarks.large lanes [--images 10000 200000]

`audit` writes decoded images of 64 px straight into a file (12 GB for a million) and looks for the
copies that are planted in it. Prints seconds, the most memory that is the process's own, and the
recall of each kind. `lanes` runs a sweep on an image folder of each size and prints the most memory
that a trial's process had: its own (no file's: anonymous pages) and its share of all (proportional set size).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch
from PIL import Image
from torch.nn import functional as F

from benchmarks.measure import lanes_of
from raysweep.data.copies import find_pairs
from raysweep.data.dataset import Dataset, Split

SIDE, CLASSES, AT_ONCE = 64, 100, 2_000
PLANTED = 500
"""Copies of each kind."""
QUALITY = 75
"""Of JPEG copies."""
RECIPE = (
    "data.dataset=imagefolder",
    "grid.backbone=small_cnn",
    "grid.depth=[1]",
    "grid.lr=[1e-2,1e-3]",
    "grid.seed=[0]",
    "model.weights=none",
    "train.epochs=1",
    "train.batch_size=256",
    "asha=null",
    "final.enabled=false",
)


def images(count: int, seed: int) -> np.ndarray:
    """Random pictures, coarse and fine: (count, 3, SIDE, SIDE) uint8."""
    random = torch.Generator().manual_seed(seed)
    total = torch.full((count, 3, SIDE, SIDE), 128.0)
    for side, strength in ((4, 45), (16, 25), (SIDE, 6)):
        noise = torch.randn(count, 3, side, side, generator=random) * strength
        total += F.interpolate(noise, (SIDE, SIDE), mode="bilinear", align_corners=False)
    return total.clamp(0, 255).to(torch.uint8).numpy()


def planted(pool: np.ndarray) -> dict[str, np.ndarray]:
    """Copy images of the first part over others of the last: rows of originals and copies, by kind."""
    random, third = np.random.default_rng(0), len(pool) // 3
    originals = random.choice(third, 3 * PLANTED, replace=False)
    copies = len(pool) - 1 - random.choice(third, 3 * PLANTED, replace=False)
    pairs = {}
    for number, (kind, copied) in enumerate((("exact", np.asarray), ("mirror", _mirrored), ("near", _stored_again))):
        some = slice(number * PLANTED, (number + 1) * PLANTED)
        for one, other in zip(originals[some], copies[some], strict=True):
            pool[other] = copied(pool[one])
        pairs[kind] = np.stack([originals[some], copies[some]], 1)
    return pairs


def _mirrored(image: np.ndarray) -> np.ndarray:
    return image[..., ::-1]


def _stored_again(image: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(file, "JPEG", quality=QUALITY)
    return np.asarray(Image.open(file)).transpose(2, 0, 1)


def audit(count: int) -> None:
    """Search a file of images for copies, print what it took and what was found."""
    with tempfile.TemporaryDirectory() as folder:
        pool = np.lib.format.open_memmap(f"{folder}/images.npy", "w+", np.uint8, (count, 3, SIDE, SIDE))
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            starts = range(0, count, AT_ONCE)
            sizes = [min(AT_ONCE, count - start) for start in starts]
            for start, made in zip(starts, threads.map(images, sizes, starts), strict=True):
                pool[start : start + len(made)] = made
        pairs = planted(pool)
        pool.flush()
        mapped = np.load(f"{folder}/images.npy", mmap_mode="r")
        ends = np.cumsum([0, 4 * count // 6, count // 6, count - 4 * count // 6 - count // 6])
        splits = [_split(mapped, np.arange(a, b)) for a, b in pairwise(ends)]
        names = tuple(str(label) for label in range(CLASSES))
        dataset = Dataset(*splits, class_names=names, fingerprint="")
        with _most_memory(lambda: [psutil.Process()]) as most:
            began, cpu = time.perf_counter(), time.process_time()
            found = find_pairs(dataset)
            wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    offsets = dict(zip(("train", "val", "test"), ends, strict=False))
    seen = {frozenset((offsets[p.a.split] + p.a.position, offsets[p.b.split] + p.b.position)) for p in found}
    print(f"{count:,} images of {SIDE} px: {wall:.0f} s, {cpu:.0f} CPU-seconds, {most['own'] / 1e9:.2f} GB of its own")
    for kind, rows in pairs.items():
        hits = sum(frozenset(pair) in seen for pair in rows.tolist())
        print(f"{kind}: {hits} of {len(rows)} planted copies found")
    print(f"pairs in all: {dict(Counter(pair.kind for pair in found))}")


def _split(pool: np.ndarray, rows: np.ndarray) -> Split:
    return Split(pool, rows, rows % CLASSES, tuple(map(str, rows)))


def lanes(counts: list[int]) -> None:
    """Run a sweep on each number of images, print what a trial's process held."""
    rows = []
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "images"
            _image_folder(root, count)
            environment = {**os.environ, "RAYSWEEP_CACHE": f"{folder}/cache"}
            command = [sys.executable, "-m", "raysweep.grid", *RECIPE, f"data.root={root}", f"data.image_size={SIDE}"]
            began = time.perf_counter()
            process = subprocess.Popen([*command, "--run-dir", f"{folder}/run"], env=environment)
            with _most_memory(partial(lanes_of, process.pid)) as most:
                if process.wait():
                    raise RuntimeError("the sweep failed")
            rows.append(
                {
                    "images": count,
                    "own MB": most["own"] / 1e6,
                    "share MB": most["share"] / 1e6,
                    "sweep s": time.perf_counter() - began,
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.0f}".format))


def _image_folder(root: Path, count: int) -> None:
    """JPEG files in a folder for each class."""

    def write(start: int) -> None:
        for index, image in enumerate(images(min(AT_ONCE, count - start), start), start):
            folder = root / f"class{index % CLASSES:03d}"
            Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{index:07d}.jpg", quality=90)

    for label in range(CLASSES):
        (root / f"class{label:03d}").mkdir(parents=True)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(write, range(0, count, AT_ONCE)))


def _anonymous(pid: int) -> int:
    """Bytes of a process that are no file's: pages of a mapped file are given back when memory is short."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))


@contextmanager
def _most_memory(processes: Callable[[], list[psutil.Process]]) -> Iterator[dict[str, int]]:
    """The most memory that one of some processes has, in bytes, looked at four times a second."""
    most, over = {"own": 0, "share": 0}, threading.Event()

    def look() -> None:
        while not over.wait(0.25):
            with suppress(psutil.Error, OSError):  # one has ended
                for process in processes():
                    memory = process.memory_full_info()
                    most["own"] = max(most["own"], _anonymous(process.pid))
                    most["share"] = max(most["share"], memory.pss)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("audit", "lanes"))
    parser.add_argument("--images", type=int, nargs="+")
    given = parser.parse_args()
    if given.what == "audit":
        for count in given.images or [1_000_000]:
            audit(count)
    else:
        lanes(given.images or [10_000, 200_000])


if __name__ == "__main__":
    main()
