"""What a GPU does: steps of suffixes, images through prefixes, lanes that share the GPU, memory.

    python -m benchmarks.gpu [--quick] [--device cuda] [--out benchmarks/results]

- `suffixes`: optimizer steps a second of raysweep's training of a suffix at depths 1, 3, 12 and all, whose
  features are resident, against the same steps written in plain PyTorch: the suffix on the same tensors,
  float32, the same optimizer. At depth `all` raysweep prepares images in every step, the plain loop has them
  prepared. The last columns are megabytes of the device that each has at its peak.
- `prefixes`: images a second through the whole frozen network but for its classifier, in each precision.
- `lanes`: the same sweep of shallow trials with `resources.gpus_per_worker` of 1, 0.5 and 0.25: wall seconds,
  trials a minute and the largest memory of the device that was in use.

Networks are ResNet-50 and ViT-S at 64 and 224 pixels with random weights: arithmetic does not care. `--quick`
takes small networks and few steps. `--device cpu` shows that the code runs; its lanes are CPUs. Every table is
written as CSV.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure import timed
from raysweep.data.sources import Images
from raysweep.features.stored import Stored
from raysweep.nets.layers import set_modes
from raysweep.nets.precision import InPrecision, gpu_settings
from raysweep.nets.task import cut_of, outputs_of, release, task_of
from raysweep.nets.tracing import channels_last
from raysweep.recipe import Trial, load
from raysweep.train.ddp import World
from raysweep.train.loop import Training
from raysweep.train.metrics import Labelled
from raysweep.train.network import assemble, labelled
from raysweep.train.optim import optimizer_of

VIT = "timm/vit_small_patch16_224"
PRECISIONS = ("float32", "tf32", "bfloat16", "float16")
CLASSES = 10


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    networks: tuple[str, ...] = ("resnet50", VIT)
    sizes: tuple[int, ...] = (64, 224)
    depths: tuple[int | str, ...] = (1, 3, 12, "all")
    images: int = 1024
    """To train on, or to pass through."""
    batch: int = 64
    epochs: int = 4
    """Of a suffix, and as many to warm up."""
    shares: tuple[float, ...] = (1, 0.5, 0.25)
    lanes: tuple[str, ...] = (
        "grid.backbone=[resnet50]", "grid.depth=[1, 3]", "grid.lr=[1e-2, 3e-3, 1e-3, 3e-4]", "grid.seed=[0, 1]",
        "data.image_size=64", "data.limit=8192", "train.epochs=20",
    )  # fmt: skip
    """What is swept."""


QUICK = Extent(
    ("resnet18",), (32,), (1, 3, "all"), 128, 32, 1, (1, 0.5),
    ("grid.backbone=[resnet18]", "grid.depth=[1]", "grid.lr=[1e-2, 1e-3]", "grid.seed=[0]",
     "data.image_size=32", "data.limit=256", "train.epochs=2"),
)  # fmt: skip


def trial_of(backbone: str, size: int, depth: int | str, extent: Extent) -> Trial:
    """A trial on fake images."""
    words = [
        f"data.dataset=fake:{CLASSES}", f"data.image_size={size}", f"data.limit={extent.images}", "data.normalize=none",
        f"grid.backbone=[{backbone}]", f"grid.depth=[{depth}]", "grid.lr=[1e-4]", "grid.seed=[0]", "model.weights=none",
        f"train.batch_size={extent.batch}", f"train.epochs={extent.epochs}",
    ]  # fmt: skip
    (trial,) = load(None, words).trials()
    return trial


# ---- suffixes ----


def suffixes(extent: Extent, device: torch.device) -> Iterator[dict[str, object]]:
    """A row for each network, size and depth."""
    for backbone in extent.networks:
        for size in extent.sizes:
            for depth in extent.depths:
                trial = trial_of(backbone, size, depth, extent)
                own, own_peak = _measured(lambda t=trial: _own_steps(t, device), device)  # type: ignore[misc]
                raw, raw_peak = _measured(lambda t=trial: _raw_steps(t, device), device)  # type: ignore[misc]
                yield {
                    "network": backbone, "pixels": size, "depth": depth, "raysweep steps/s": own,
                    "raw steps/s": raw, "raysweep ÷ raw": own / raw, "raysweep MB": own_peak, "raw MB": raw_peak,
                }  # fmt: skip
                release()


def _own_steps(trial: Trial, device: torch.device) -> float:
    """Steps a second of raysweep's training without its evaluation."""
    world = World(device=device)
    network = assemble(trial, world)
    split = labelled(network, trial, "train", device)
    if network.cut.prefix is not None:
        split = Labelled(_resident(split, len(network.cut.shapes), device), split.labels)
    training = Training(trial, network.suffix, split, None, CLASSES, world, network.draws)
    return _steps_a_second(lambda: _epochs(training), training.steps_an_epoch * trial.train.epochs, device)


def _epochs(training: Training) -> None:
    training.epochs_done = 0
    for _ in training.epochs():
        pass


def _resident(split: Labelled, tensors: int, device: torch.device) -> Stored:
    """What the prefix makes of a split, as features that are resident."""
    batches = [split.source.batch(some, None, training=False) for some in torch.arange(len(split)).split(64)]
    whole = [torch.cat([batch[index] for batch in batches]) for index in range(tensors)]
    last = [x.movedim(1, -1) if x.dim() == 4 else x for x in whole]
    return Stored([[np.ascontiguousarray(x.cpu().numpy()) for x in last]], "float32", device, resident=True)


def _raw_steps(trial: Trial, device: torch.device) -> float:
    """Steps a second of the same suffix in a loop of plain PyTorch."""
    network = assemble(trial, World(device=device))
    split = labelled(network, trial, "train", device)
    frontier = [
        torch.cat(parts)
        for parts in zip(
            *(split.source.batch(some, None, training=False) for some in torch.arange(len(split)).split(64)),
            strict=True,
        )
    ]
    suffix = channels_last(network.cut.own_suffix().to(device))
    set_modes(suffix, trial.model.batch_norm)
    optimizer = optimizer_of(trial.train, suffix, trial.lr)
    labels = split.labels.to(device)
    count, size, epochs = len(split), trial.train.batch_size, trial.train.epochs

    def steps() -> None:
        with gpu_settings("float32", device):
            for _ in range(epochs):
                for rows in torch.randperm(count).to(device).split(size):
                    optimizer.zero_grad()
                    F.cross_entropy(suffix(*[x[rows] for x in frontier]), labels[rows]).backward()
                    optimizer.step()

    return _steps_a_second(steps, -(-count // size) * epochs, device)


def _steps_a_second(work: Callable[[], None], steps: int, device: torch.device) -> float:
    work()  # warms up
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return steps / (time.perf_counter() - started)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _measured(work: Callable[[], float], device: torch.device) -> tuple[float, float]:
    """What work gives, and the megabytes of the device that it had at its peak; of a CPU not a number."""
    if device.type != "cuda":
        return work(), float("nan")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    found = work()
    return found, torch.cuda.max_memory_allocated(device) / 1e6


# ---- prefixes ----


def prefixes(extent: Extent, device: torch.device) -> Iterator[dict[str, object]]:
    """A row for each network, size and precision."""
    for backbone in extent.networks:
        for size in extent.sizes:
            trial = trial_of(backbone, size, 1, extent)
            task, cut = task_of(trial), cut_of(trial)
            prefix = channels_last(outputs_of(trial, cut.frontier).to(device)).eval()
            train, reference = task.dataset.train, None
            for precision in PRECISIONS:
                wrapped = InPrecision(prefix, precision)  # type: ignore[arg-type]
                source = Images(train.pool, train.rows, task.preparation, device, wrapped)
                (found, rate), peak = _measured_pass(source, len(train), device)
                reference = found if reference is None else reference
                yield {
                    "network": backbone, "pixels": size, "precision": precision, "images/s": rate, "MB": peak,
                    "largest difference from float32": float((found - reference).abs().max() / reference.abs().max()),
                }  # fmt: skip
            release()


def _measured_pass(source: Images, count: int, device: torch.device) -> tuple[tuple[Tensor, float], float]:
    """Features of the images with images a second, and the peak of memory."""
    found: list[Tensor] = []

    def work() -> None:
        found.clear()
        for positions in torch.arange(count).split(128):
            found.append(source.batch(positions, None, training=False)[0])

    rate, peak = _measured(lambda: _steps_a_second(work, count, device), device)
    return (torch.cat(found), rate), peak


# ---- lanes ----


def lanes(extent: Extent, device: torch.device) -> Iterator[dict[str, object]]:
    """A row for each share of a device that a lane has; on CPUs there are as many lanes as the share says."""
    common = ["data.dataset=fake:10", "model.weights=none", "asha=null", "final.enabled=false", *extent.lanes]
    cpus = os.cpu_count() or 1
    for share in extent.shares:
        where = [f"resources.gpus_per_worker={share}"]
        if device.type != "cuda":
            where = ["resources.gpus_per_worker=0", f"resources.max_concurrent={min(cpus, round(1 / share))}"]
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            command = [sys.executable, "-m", "raysweep.grid", *common, *where, "--run-dir", str(run)]
            with _Memory(device) as memory:
                used = timed(command, {"RAYSWEEP_CACHE": f"{folder}/cache"})
            rows = [json.loads(line) for line in (run / "epochs.jsonl").read_text().splitlines()]
        trials = len({row["trial"] for row in rows})
        wall = max(row["time"] for row in rows) - min(row["time"] - row["seconds"] for row in rows)
        yield {
            "share": share, "trials": trials, "whole s": used.wall_s, "trials s": wall,
            "trials/min": 60 * trials / wall, "epoch s": float(np.mean([row["seconds"] for row in rows])),
            "most MB": memory.most,
        }  # fmt: skip


class _Memory:
    """Megabytes of a GPU that all programs together use, at most, as nvidia-smi says; not a number without one."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.most = device, float("nan")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> _Memory:
        if self.device.type == "cuda":
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _follow(self) -> None:
        while not self._over.wait(0.5):
            self.most = float(np.nanmax([self.most, float(_nvidia("memory.used") or "nan")]))


def _nvidia(field: str) -> str:
    """A field of the first GPU as nvidia-smi says it; empty where it says nothing."""
    command = ["nvidia-smi", "--id=0", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


PARTS = {"suffixes": suffixes, "prefixes": prefixes, "lanes": lanes}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--quick", action="store_true", help="small networks, few steps")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this one; may be given several times")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --device cpu --quick shows that the code runs")
    device, extent = torch.device(given.device), QUICK if given.quick else Extent()
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    driver = _nvidia("driver_version") or "none"
    print(
        f"{card}, {os.cpu_count()} cores, driver {driver}, CUDA {torch.version.cuda}, torch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.part or PARTS:
        table = pd.DataFrame(list(PARTS[name](extent, device)))
        table.assign(card=card, driver=driver, torch=torch.__version__).to_csv(
            given.out / f"gpu_{name}.csv", index=False
        )
        print(f"\n{name}\n{table.to_string(index=False, float_format='{:.4g}'.format)}", flush=True)


if __name__ == "__main__":
    main()
