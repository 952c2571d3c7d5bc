"""A folder of 60,000 images: what a sweep takes before its first trial, the first time and the second.

    python -m benchmarks.real_size [--images 60000] [--classes 100] [--sweeps 2] [--out benchmarks/results]

The folder has CIFAR's shape: images of 32 px as PNG files, two thirds to train on, a sixth each to
validate and to test on, in a folder for each class. Their content is noise with the spectrum of
natural images. The folder is kept where temporary files go and used again the next time; raysweep's
cache is a new one. The sweep is ResNet-18 (random weights) at depths 1 and 3.

Prints CPU-seconds (user and system time of all processes of the command) and wall time of every
stage until the first trial starts; what lies between stages is in the last line but one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from benchmarks.measure import Watch

SIDE = 32
SHARES = {"train": 4 / 6, "val": 1 / 6, "test": 1 / 6}
RECIPE = (
    "data.dataset=imagefolder",
    "data.image_size=32",
    "grid.backbone=[resnet18]",
    "grid.depth=[1,3]",
    "grid.lr=[1e-3]",
    "grid.seed=[0]",
    "model.weights=none",
    "data.normalize=dataset",
    "train.epochs=1",
    "asha=null",
    "final.enabled=false",
)
BETWEEN, ALL = "between the stages", "until the first trial starts"
INSIDE = {"load network and images": ("find or decode the images",)}
"""Stages that lie within another, whose time is not counted twice."""


def image_folder(images: int, classes: int) -> Path:
    """The folder of images, made if it is not there."""
    root = Path(tempfile.gettempdir()) / f"raysweep-images-{images}-{classes}"
    if (root / ".whole").exists():
        return root
    jobs = []
    for split, share in SHARES.items():
        for label in range(classes):
            count = round(images * share / classes)
            jobs.append((root / split / f"class{label:03d}", count, len(jobs)))
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_write_class, *zip(*jobs, strict=True), chunksize=4))
    (root / ".whole").touch()
    return root


def _write_class(folder: Path, count: int, seed: int) -> None:
    """Write random images whose spectrum is 1 / frequency, as that of natural ones is."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE))
    frequency[0, 0] = 1
    noise = random.standard_normal((count, 4, SIDE, SIDE), dtype=np.float32)
    smooth = np.fft.irfft2(np.fft.rfft2(noise) / frequency, s=(SIDE, SIDE))
    images = smooth[:, :1] + 0.4 * smooth[:, 1:]
    images *= random.uniform(15, 60, (count, 1, 1, 1)) / images.std((1, 2, 3), keepdims=True)
    levels = (images + random.uniform(80, 170, (count, 1, 1, 1))).clip(0, 255).astype(np.uint8)
    for index, pixels in enumerate(levels.transpose(0, 2, 3, 1)):
        Image.fromarray(pixels).save(folder / f"{index:05d}.png", compress_level=1)


def sweep(root: Path, cache: Path, overrides: Sequence[str] = ()) -> pd.DataFrame:
    """Stages of one sweep until its first trial: columns `stage`, `CPU s`, `wall s`.

    Raises:
        RuntimeError: no trial started.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "stages.jsonl"
        command = [sys.executable, "-m", "benchmarks.staged", str(file), *RECIPE, f"data.root={root}", *overrides]
        watch = Watch(every_s=0.1)
        began = time.time()
        with watch:
            subprocess.run(
                [*command, "--run-dir", f"{folder}/run"],
                env={**os.environ, **watch.environment, "RAYSWEEP_CACHE": str(cache)},
                check=False,
            )
        stages = [json.loads(line) for line in file.read_text().splitlines()]
    if stages[-1]["stage"] != "set the trials up":
        raise RuntimeError("no trial started")
    return _table(stages, began, watch.history)


def _table(stages: list[dict], began: float, history: list[tuple[float, float]]) -> pd.DataFrame:
    """CPU and wall seconds of each stage; of the last one, all since the one before it."""
    times, seconds = map(np.asarray, zip(*history, strict=True))

    def cpu(start: float, end: float) -> float:
        return float(np.interp(end, times, seconds) - np.interp(start, times, seconds))

    stages[-1]["began"] = max(one["ended"] for one in stages[:-1])
    spent: dict[str, np.ndarray] = {}
    for one in stages:
        used = np.array([cpu(one["began"], one["ended"]), one["ended"] - one["began"]])
        spent[one["stage"]] = spent.get(one["stage"], 0) + used
    for outer, inner in INSIDE.items():
        for stage in inner:
            spent[outer] = spent[outer] - spent.get(stage, 0)
    whole = np.array([cpu(began, stages[-1]["ended"]), stages[-1]["ended"] - began])
    spent[BETWEEN], spent[ALL] = whole - sum(spent.values()), whole
    return pd.DataFrame([(stage, *used) for stage, used in spent.items()], columns=["stage", "CPU s", "wall s"])


def main() -> None:
    """Make the images, run the sweeps, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--sweeps", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    started = time.perf_counter()
    root = image_folder(given.images, given.classes)
    print(f"{given.images:,} images in {time.perf_counter() - started:.0f} s: {root}", flush=True)
    with tempfile.TemporaryDirectory() as cache:
        tables = [sweep(root, Path(cache)).assign(sweep=number + 1) for number in range(given.sweeps)]
    table = pd.concat(tables).pivot_table(
        index="stage", columns="sweep", values=["CPU s", "wall s"], sort=False, fill_value=0.0
    )
    given.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(given.out / "real_size.csv")
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, load {os.getloadavg()}")
    print(table.to_string(float_format="{:.1f}".format))


if __name__ == "__main__":
    main()
