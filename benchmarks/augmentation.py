"""What augmentation is worth and what it costs: none, flips, fixed random views and new ones in every epoch.

    python -m benchmarks.augmentation [--epochs 6] [--seeds 2] [--run-dir DIR] [--figure docs/augmentation.png]

One sweep of the quickstart's network on digits at two depths, one trial at a time. Flips are an
augmentation that is wrong for digits, crops and colours one that is right. Seconds are those of a
trial, with its share of the prefix pass that several trials use; raysweep's cache is a new one.
Writes the figure, and the table beside the others in benchmarks/results.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from raysweep import report

DEPTHS = [1, 33]
RANDOM = ["crop", "color"]
VARIANTS: dict[str, dict[str, Any]] = {
    "none": {"augment": [[]]},
    "flips": {"augment": [["hflip"]]},
    "4 fixed views": {"augment": [RANDOM], "views": 4},
    "16 fixed views": {"augment": [RANDOM], "views": 16},
    "new views in every epoch": {"augment": [RANDOM]},
}
"""Name of each block of the grid, and what it has of its own."""


def recipe(epochs: int, seeds: int) -> dict[str, Any]:
    """The sweep: a block of the grid for each variant."""
    common = {"backbone": ["tf_efficientnet_lite0"], "depth": DEPTHS, "lr": [1e-3], "seed": list(range(seeds))}
    return {
        "name": "augmentation-measured",
        "data": {"dataset": "digits", "image_size": 64, "crop_scale": [0.6, 1.0]},
        "grid": [common | variant for variant in VARIANTS.values()],
        "train": {"epochs": epochs, "batch_size": 64, "optimizer": "adam"},
        "asha": None,
        "resources": {"max_concurrent": 1},
        "final": {"enabled": False},
    }


def variant(trial: pd.Series) -> str:
    """Name of the variant that a trial belongs to."""
    for name, block in VARIANTS.items():
        augment = "+".join(block["augment"][0]) or "none"
        if (trial["augment"], str(trial["views"])) == (augment, str(block.get("views", "null"))):
            return name
    raise LookupError(f"no variant is {trial['augment']}, {trial['views']}")


def draw(trials: pd.DataFrame, file: Path) -> None:
    """The figure: accuracy on the left, seconds on the right, a row for each variant."""
    with mpl.rc_context({**sns.axes_style("whitegrid"), "font.size": 11}):
        figure = Figure(figsize=(11, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        _points(left, trials, "accuracy (%)")
        _points(right, trials, "seconds of a trial")
        left.set(ylabel="", xlabel="validation accuracy (%), mean and range of the seeds")
        right.set(xscale="log", xlabel="seconds of a trial, prefix included (log scale)")
        right.xaxis.set_major_locator(LogLocator(subs=[1, 2, 5]))
        right.xaxis.set_major_formatter("{x:g}")
        right.xaxis.set_minor_locator(NullLocator())
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, [f"depth {label}" for label in labels], loc="outside upper center", ncols=len(labels))
        for axes in (left, right):
            axes.get_legend().remove()
            axes.hlines(np.arange(len(VARIANTS) - 1) + 0.5, *axes.get_xlim(), color="0.9", linewidth=1)
        figure.savefig(file, dpi=140)


def _points(axes: Axes, trials: pd.DataFrame, column: str) -> None:
    sns.pointplot(
        trials, x=column, y="variant", order=list(VARIANTS), hue="depth", palette="colorblind", dodge=0.35,
        linestyle="none", errorbar=("pi", 100), capsize=0.1, ax=axes,
    )  # fmt: skip


def main() -> None:
    """Run the sweep, print the table, draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--run-dir", type=Path, help="keep the run here; a run that is there already is read")
    parser.add_argument("--figure", type=Path, default=Path("docs/augmentation.png"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = given.run_dir or Path(folder) / "run"
        if not run.exists():
            file = Path(folder) / "recipe.yaml"
            file.write_text(yaml.safe_dump(recipe(given.epochs, given.seeds)))
            command = [sys.executable, "-m", "raysweep.grid", str(file), "--run-dir", str(run)]
            subprocess.run(command, env={**os.environ, "RAYSWEEP_CACHE": f"{folder}/cache"}, check=True)
        trials = report.load(run).trials
    trials["variant"] = trials.apply(variant, axis=1)
    trials["accuracy (%)"] = 100 * trials["val_accuracy"]
    trials["seconds of a trial"] = trials["seconds"] + trials["prefix_seconds"]
    columns = ["accuracy (%)", "seconds of a trial"]
    table = trials.groupby(["variant", "depth"], sort=False)[columns].agg(["mean", "min", "max"])
    given.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(given.out / "augmentation.csv")
    print(table.to_string(float_format="{:.1f}".format))
    draw(trials, given.figure)
    print(given.figure)


if __name__ == "__main__":
    main()
