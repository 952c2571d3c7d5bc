"""Accuracy layer by layer: the table of depths of a run and its figure, to read and to copy.

python -m analysis.layerwise runs/quickstart-... [layerwise.png]
"""

import sys

import matplotlib as mpl
import seaborn as sns
from matplotlib.figure import Figure

from raysweep import report

folder, picture = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "layerwise.png"
run = report.load(folder)

columns = ["series", "depth_label", "layers", "trainable_parameters", "lr", "n_seeds", "val_accuracy", "gap", "seconds"]
print(run.depths[columns].to_string(index=False, float_format="{:.4g}".format))

finished = run.trials[run.trials["state"] == "finished"].sort_values("layers")
with mpl.rc_context(sns.axes_style("whitegrid")):
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    depth, network = finished["depth_label"], finished["series"]
    sns.lineplot(x=depth, y=100 * finished["val_accuracy"], hue=network, marker="o", errorbar="sd", ax=axes)
    axes.set(
        xlabel="depth (layers trained, counted from the output)", ylabel="validation accuracy (%), finished trials"
    )
    figure.savefig(picture, dpi=150)
print(picture)
