"""A depth grid three ways, side by side on the same images: a plain loop, raysweep, the floor.

    python -m benchmarks.depth_grid                 depths 1, 3, 6, 12 of ResNet-18
    python -m benchmarks.depth_grid --case head     the classifier alone for 20, 50 and 100 epochs

The plain loop works as the published notebooks do: images resized one by one through PIL,
the whole network forward in training mode, backward through what trains, a second pass for
train accuracy each epoch, one configuration after the other. raysweep is timed as a whole
process, the start of Ray included. The floor is one pass over the images through the frozen
prefix, then the raw steps of each trainable suffix and nothing else, with all threads.

All three train ResNet-18 (random weights: arithmetic does not care) on scikit-learn's
digits, 1,024 to learn from and 256 to validate on, in batches of 256. Writes a CSV and a
figure; prints seconds, ratios and floating-point operations.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

from benchmarks.measure import Used, timed
from raysweep.data.sources import Images
from raysweep.nets.layers import freeze, select, set_modes
from raysweep.nets.task import cut_of, outputs_of, task_of
from raysweep.recipe import Recipe, Trial, load

RECIPE = (
    "data.limit=1024",
    "grid.backbone=[resnet18]",
    "grid.lr=[1e-3]",
    "grid.seed=[0]",
    "model.weights=none",
    "data.normalize=dataset",
    "train.batch_size=256",
    "asha=null",
    "final.enabled=false",
)
CASES = {
    # four trials, the deepest as long as the others together, would not fill two lanes: one lane of two threads
    "grid": ("grid.depth=[1,3,6,12]", "train.epochs=10", f"resources.cpus_per_worker={min(2, os.cpu_count() or 1)}"),
    "head": ("grid.depth=[1]", "grid.epochs=[20,50,100]"),
}
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Timed:
    """One way's result."""

    way: str
    seconds: float
    """Wall time."""
    cpu_seconds: float
    """User and system time of all processes."""
    gigaflops: float
    note: str


class Pictures(Dataset[tuple[Tensor, int]]):
    """Images as the notebooks read them: each through PIL, each time anew."""

    def __init__(self, trial: Trial, split: str) -> None:
        task = task_of(trial)
        self.part = getattr(task.dataset, split)
        statistics, size = task.preparation.statistics, task.preparation.image_size
        self.pictures = [transforms.functional.to_pil_image(torch.from_numpy(x)) for x in self.part.images()]
        self.transform = transforms.Compose(
            [
                transforms.Resize((size, size)),
                transforms.ToTensor(),
                transforms.Normalize(statistics.mean, statistics.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.pictures[index]), int(self.part.labels[index])


def plain_loop(trial: Trial, epochs: int) -> float:
    """Seconds of `epochs` epochs of one configuration in the way of the notebooks."""
    torch.manual_seed(0)
    network = task_of(trial).backbone.network
    trained = select(network, trial.depth, task_of(trial).backbone.head)
    freeze(network, trained)
    loaders = {
        split: DataLoader(Pictures(trial, split), trial.train.batch_size, shuffle=split == "train")
        for split in ("train", "val")
    }
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=trial.lr)
    started = time.perf_counter()
    for _ in range(epochs):
        network.train()
        for images, labels in loaders["train"]:
            optimizer.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            optimizer.step()
        network.eval()
        with torch.no_grad():
            for split in ("train", "val"):
                sum((network(images).argmax(1) == labels).sum() for images, labels in loaders[split])
    return time.perf_counter() - started


def floor(trials: list[Trial]) -> tuple[float, float]:
    """Seconds of the prefix pass for all cuts together, and of the suffixes' raw steps."""
    task = task_of(trials[0])
    cuts = [cut_of(trial) for trial in trials]
    nodes = sorted({name for cut in cuts for name in cut.frontier})
    prefix = outputs_of(trials[0], nodes).eval().to(memory_format=torch.channels_last)
    train = task.dataset.train
    source = Images(train.pool, train.rows, task.preparation, CPU, prefix)
    started = time.perf_counter()
    batches = [source.batch(rows, None, training=False) for rows in torch.arange(len(train)).split(128)]
    stored = {name: torch.cat(parts) for name, parts in zip(nodes, zip(*batches, strict=True), strict=True)}
    passed = time.perf_counter() - started
    labels = torch.from_numpy(train.labels)
    started = time.perf_counter()
    for trial, cut in zip(trials, cuts, strict=True):
        steps(cut.own_suffix(), [stored[name] for name in cut.frontier], labels, trial)
    return passed, time.perf_counter() - started


def steps(suffix: nn.Module, frontier: list[Tensor], labels: Tensor, trial: Trial) -> None:
    """The raw steps of one configuration."""
    suffix = suffix.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    set_modes(suffix, "frozen")
    optimizer = torch.optim.Adam([p for p in suffix.parameters() if p.requires_grad], lr=trial.lr)
    for _ in range(trial.train.epochs):
        for rows in torch.randperm(len(labels)).split(trial.train.batch_size):
            optimizer.zero_grad()
            F.cross_entropy(suffix(*[x[rows] for x in frontier]), labels[rows]).backward()
            optimizer.step()


def raysweep(overrides: list[str]) -> tuple[Used, float, float]:
    """What the whole command takes, and the wall time of its trials and of their epochs added up."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "raysweep.grid", *overrides, "--run-dir", str(run)]
        used = timed(command, {"RAYSWEEP_CACHE": str(Path(folder) / "cache")})
        rows = [json.loads(line) for line in (run / "epochs.jsonl").read_text().splitlines()]
        wall = max(row["time"] for row in rows) - min(row["time"] - row["seconds"] for row in rows)
        return used, wall, sum(row["seconds"] for row in rows)


def gigaflops(trials: list[Trial]) -> dict[str, float]:
    """Floating-point operations of each way, counted by torch on a few images and scaled."""
    task = task_of(trials[0])
    size, count, val = task.preparation.image_size, len(task.dataset.train), len(task.dataset.val)
    images = torch.randn(8, 3, size, size)

    def counted(work: Callable[[], object]) -> float:
        with FlopCounterMode(display=False) as counter:
            work()
        return counter.get_total_flops() / len(images) / 1e9

    whole = counted(lambda: task.backbone.network.eval()(images))
    loop, suffixes, evaluations, prefix = 0.0, 0.0, 0.0, 0.0
    for trial in trials:
        cut, epochs = cut_of(trial), trial.train.epochs
        assert cut.prefix is not None
        inputs = cut.prefix.eval()(images)
        suffix = cut.own_suffix()
        forward = counted(lambda s=suffix, x=inputs: s(*x))  # type: ignore[misc]
        step = counted(lambda s=suffix, x=inputs: s(*x).sum().backward())  # type: ignore[misc]
        loop += epochs * (count * (whole - forward + step) + (count + val) * whole)
        suffixes += epochs * count * step
        evaluations += epochs * 2 * val * forward
        prefix = max(prefix, whole - forward)
    return {
        "plain loop": loop,
        "raysweep": (count + val) * prefix + suffixes + evaluations,
        "floor": count * prefix + suffixes,
    }


def measure(case: str, loop_epochs: int) -> Iterator[Timed]:
    """Each way in turn."""
    overrides = [*RECIPE, *CASES[case]]
    recipe: Recipe = load(None, overrides)
    trials = list(recipe.trials())
    flops = gigaflops(trials)
    threads = os.cpu_count() or 1
    torch.set_num_threads(threads)
    cpu = time.process_time()
    passed, stepped = floor(trials)
    cpu = time.process_time() - cpu
    note = f"prefix {passed:.1f} s, steps {stepped:.1f} s, {threads} threads"
    yield Timed("floor", passed + stepped, cpu, flops["floor"], note)
    used, wall, added = raysweep(overrides)
    note = f"trials {wall:.1f} s, {wall / stepped:.2f} × the floor's steps; their epochs added up {added:.1f} s"
    yield Timed("raysweep", used.wall_s, used.cpu_s, flops["raysweep"], note)
    wall_s, cpu_s = loop_seconds(trials, loop_epochs)
    note = f"scaled from {loop_epochs} epochs a depth; {threads} threads"
    yield Timed("plain loop", wall_s, cpu_s, flops["plain loop"], note)


def loop_seconds(trials: list[Trial], loop_epochs: int) -> tuple[float, float]:
    """Wall and CPU seconds of the plain loop over all trials, scaled from a few epochs of each depth."""
    an_epoch: dict[object, tuple[float, float]] = {}
    for trial in trials:
        if trial.depth not in an_epoch:
            cpu = time.process_time()
            wall = plain_loop(trial, loop_epochs)
            an_epoch[trial.depth] = (wall / loop_epochs, (time.process_time() - cpu) / loop_epochs)
    pairs = [(trial.train.epochs, an_epoch[trial.depth]) for trial in trials]
    return sum(epochs * wall for epochs, (wall, _) in pairs), sum(epochs * cpu for epochs, (_, cpu) in pairs)


def figure(table: pd.DataFrame, path: Path) -> None:
    """Seconds of each way as bars, labelled with how many times raysweep's they are."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import seaborn as sns

    sns.set_theme(style="whitegrid", palette="colorblind")
    drawn, axes = plt.subplots(figsize=(7, 2.6), layout="constrained")
    sns.barplot(table, x="seconds", y="way", hue="way", legend=False, ax=axes)
    for bar, ratio in zip(axes.containers, table["times raysweep"], strict=True):
        axes.bar_label(bar, labels=[f"{ratio:.2f} ×"], padding=4)  # type: ignore[arg-type]
    axes.set(xlabel="seconds, all configurations", ylabel="", title="raysweep, the loop it replaces, and the floor")
    axes.margins(x=0.12)
    drawn.savefig(path, dpi=150)
    plt.close(drawn)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--case", choices=CASES, default="grid")
    parser.add_argument("--loop-epochs", type=int, default=5, help="epochs a depth of the plain loop, scaled to all")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    table = pd.DataFrame(list(measure(given.case, given.loop_epochs)))
    own = table[table["way"] == "raysweep"].iloc[0]
    table["times raysweep"] = table["seconds"] / own["seconds"]
    table["CPU times raysweep"] = table["cpu_seconds"] / own["cpu_seconds"]
    given.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(given.out / f"{given.case}.csv", index=False)
    figure(table, given.out / f"{given.case}.png")
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, Python {platform.python_version()}"
    )
    print(table.to_string(index=False, float_format="{:.2f}".format))


if __name__ == "__main__":
    main()
