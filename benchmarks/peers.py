"""A depth grid as people run it: the published loop, Ray Tune, raysweep, and the floor.

    python -m benchmarks.peers [--epochs 10] [--ways floor raysweep tune loop]

ResNet-18 (random weights: arithmetic does not care) at depths 1, 3, 6, 12 and three learning rates on scikit-learn's
digits at 64 px: 1,024 images to learn from, 256 to validate on, batches of 256, every trial to its end, accuracy on
both sets after every epoch. Each way is a process of its own, timed from its start to its end in wall time and in
CPU-seconds of all its processes:

* `loop`: the published notebooks: images through PIL one by one, the whole network forward, one configuration
  after the other.
* `tune`: the same loop as a `tune.Trainable` with `setup`, `step`, `reset_config` and checkpoints, as Ray Tune's
  documentation shows it, with `reuse_actors=True` and a CPU for each trial.
* `raysweep`: the command, report included.
* `floor`: one pass through the frozen prefix and the raw steps of every suffix (see `benchmarks.depth_grid`).

Writes a CSV and a figure; prints seconds and ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from benchmarks.depth_grid import RECIPE, Pictures, figure, floor, plain_loop
from benchmarks.measure import Used, timed
from raysweep.nets.backbones import build
from raysweep.nets.layers import freeze, select
from raysweep.recipe import Trial, load

WAYS = ("floor", "raysweep", "tune", "loop")
GRID = ("grid.depth=[1,3,6,12]", "grid.lr=[3e-4,1e-3,3e-3]")
NAMES = {"floor": "floor", "raysweep": "raysweep", "tune": "Ray Tune", "loop": "published loop"}


def overrides(epochs: int) -> list[str]:
    """The grid as changes of the quickstart."""
    return [*(word for word in RECIPE if not word.startswith("grid.lr=")), *GRID, f"train.epochs={epochs}"]


def trials_of(epochs: int) -> list[Trial]:
    """The grid's trials."""
    return list(load(None, overrides(epochs)).trials())


class Training:
    """One configuration trained as the notebooks do it, an epoch at a time."""

    def __init__(self, trial: Trial) -> None:
        self.loaders = {
            split: DataLoader(Pictures(trial, split), trial.train.batch_size, shuffle=split == "train")
            for split in ("train", "val")
        }
        self.begin(trial)

    def begin(self, trial: Trial) -> None:
        """Start anew with another configuration on the same images."""
        torch.manual_seed(trial.seed)
        backbone = build(trial.backbone, trial.model, 10, trial.seed)
        freeze(backbone.network, select(backbone.network, trial.depth, backbone.head))
        self.network = backbone.network
        self.optimizer = torch.optim.Adam([p for p in self.network.parameters() if p.requires_grad], lr=trial.lr)

    def epoch(self) -> dict[str, float]:
        """Train for an epoch; accuracy on both sets after it."""
        self.network.train()
        for images, labels in self.loaders["train"]:
            self.optimizer.zero_grad()
            F.cross_entropy(self.network(images), labels).backward()
            self.optimizer.step()
        self.network.eval()
        return {f"{split}_accuracy": self._accuracy(split) for split in self.loaders}

    @torch.no_grad()
    def _accuracy(self, split: str) -> float:
        right = [(self.network(images).argmax(1) == labels).sum().item() for images, labels in self.loaders[split]]
        return sum(right) / len(self.loaders[split].dataset)  # type: ignore[arg-type]


def run_tune(epochs: int) -> None:
    """The grid through Ray Tune, as its documentation shows a class to be tuned."""
    import ray
    from ray import tune

    class Tuned(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            self.trials = {(trial.depth, trial.lr): trial for trial in trials_of(epochs)}
            self.training = Training(self.trials[config["depth"], config["lr"]])

        def step(self) -> dict[str, float]:
            return self.training.epoch()

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            torch.save(self.training.network.state_dict(), Path(checkpoint_dir) / "model.pt")

        def load_checkpoint(self, checkpoint_dir: str) -> None:
            self.training.network.load_state_dict(torch.load(Path(checkpoint_dir) / "model.pt"))

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.training.begin(self.trials[new_config["depth"], new_config["lr"]])
            return True

    trials = trials_of(epochs)
    space = {
        "depth": tune.grid_search(list(dict.fromkeys(trial.depth for trial in trials))),
        "lr": tune.grid_search(list(dict.fromkeys(trial.lr for trial in trials))),
    }
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        ray.init("local", log_to_driver=False, include_dashboard=False, _temp_dir=f"{folder}/ray")
        tuner = tune.Tuner(
            tune.with_resources(Tuned, {"cpu": 1}),
            param_space=space,
            tune_config=tune.TuneConfig(metric="val_accuracy", mode="max", reuse_actors=True),
            run_config=tune.RunConfig(stop={"training_iteration": epochs}, storage_path=f"{folder}/runs", verbose=0),
        )
        found = tuner.fit()
        if found.num_errors:
            raise RuntimeError(f"{found.num_errors} trials of Ray Tune failed: {found.errors[0]}")
        print(found.get_best_result().config)
        ray.shutdown()


def run_loop(epochs: int) -> None:
    """The grid as the notebooks would go through it."""
    for trial in trials_of(epochs):
        plain_loop(trial, epochs)


def run_floor(epochs: int) -> None:
    """The least that the grid can take; says what its steps took."""
    torch.set_num_threads(os.cpu_count() or 1)
    passed, stepped = floor(trials_of(epochs))
    Path(os.environ["RAYSWEEP_BENCHMARK_NOTE"]).write_text(json.dumps({"prefix_s": passed, "steps_s": stepped}))


def measure(way: str, epochs: int) -> tuple[Used, str]:
    """What a way takes as a whole process, and a remark."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            "RAYSWEEP_CACHE": f"{folder}/cache",
            "RAYSWEEP_BENCHMARK_NOTE": f"{folder}/note",
            "PYTHONPATH": str(Path.cwd()),
        }
        if way == "raysweep":
            command = ["-m", "raysweep.grid", *overrides(epochs), "--run-dir", f"{folder}/run"]
        else:
            command = ["-m", "benchmarks.peers", "--child", way, "--epochs", str(epochs)]
        used = timed([sys.executable, *command], environment)
        if way == "raysweep":
            return used, _trials_in(Path(folder) / "run" / "epochs.jsonl")
        note = Path(folder) / "note"
        return used, note.read_text() if note.exists() else ""


def _trials_in(file: Path) -> str:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    wall = max(row["time"] for row in rows) - min(row["time"] - row["seconds"] for row in rows)
    return json.dumps({"trials_wall_s": wall, "epochs_added_s": sum(row["seconds"] for row in rows)})


def table_of(ways: Sequence[str], epochs: int) -> pd.DataFrame:
    """A row for each way, with how many times raysweep's time it takes."""
    lines = []
    for way in ways:
        used, note = measure(way, epochs)
        lines.append({"way": NAMES[way], "seconds": used.wall_s, "cpu_seconds": used.cpu_s, "note": note})
        print(f"{NAMES[way]}: {used.wall_s:.0f} s, {used.cpu_s:.0f} CPU-seconds {note}", flush=True)
    table = pd.DataFrame(lines)
    own = table[table["way"] == "raysweep"]
    for column, ratio in (("seconds", "times raysweep"), ("cpu_seconds", "CPU times raysweep")):
        table[ratio] = table[column] / own[column].iloc[0] if len(own) else float("nan")
    return table


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--child", choices=("floor", "tune", "loop"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    if given.child:
        {"floor": run_floor, "tune": run_tune, "loop": run_loop}[given.child](given.epochs)
        return
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, load {os.getloadavg()}")
    table = table_of(given.ways, given.epochs)
    given.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(given.out / "peers.csv", index=False)
    figure(table, given.out / "peers.png")
    print(table.to_string(index=False, float_format="{:.2f}".format))


if __name__ == "__main__":
    main()
