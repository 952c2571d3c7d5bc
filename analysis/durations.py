"""The same configuration for several epoch budgets: what training longer buys, to read and to copy.

For a sweep with an axis of epochs, such as `grid.epochs=[20,50,100]`:

python -m analysis.durations runs/cifar10-cnn-vs-resnet18-... [durations.png]
"""

import sys

import matplotlib as mpl
import seaborn as sns
from matplotlib.figure import Figure

from raysweep import report

folder, picture = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "durations.png"
trials = report.load(folder).trials
finished = trials[trials["state"] == "finished"]
if finished.empty:
    sys.exit(f"no trial of {folder} has finished")

groups = finished.groupby(["backbone", "depth_label", "lr", "epochs_planned"])
table = groups[["val_accuracy", "gap", "seconds"]].mean().reset_index()
print(table.to_string(index=False, float_format="{:.4g}".format))

with mpl.rc_context(sns.axes_style("whitegrid")):
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    names = finished["backbone"] + ", depth " + finished["depth_label"] + ", lr " + finished["lr"].map("{:g}".format)
    percent = 100 * finished["val_accuracy"]
    sns.lineplot(x=finished["epochs_planned"], y=percent, hue=names, marker="o", errorbar="sd", ax=axes)
    axes.set(xlabel="epochs", ylabel="validation accuracy (%)")
    axes.legend(title=None)
    figure.savefig(picture, dpi=150)
print(picture)
