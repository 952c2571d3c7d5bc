"""The trials, those that failed, and how the run was made."""

from __future__ import annotations

from ...recipe import yaml_core
from .. import groups, wording
from ..facts import Facts, Section
from ..groups import Group


def trials(facts: Facts) -> Section | None:
    """The table of trials."""
    text = (
        "Accuracies are those of the last epoch completed; of a trial stopped early that is no final accuracy. "
        "A click on a heading sorts. results.csv has every column."
    )
    rows = tuple(_trial_row(row) for row in groups.records(facts.trials))
    return Section("Trials", text, table=rows) if rows else None


def failures(facts: Facts) -> Section | None:
    """Failed trials and their errors."""
    failed = groups.records(facts.trials[facts.trials["state"] == "failed"])
    folded = tuple((wording.trial_name(row), wording.value(row["error"])) for row in failed)
    return Section("Failed trials", folded=folded) if folded else None


def provenance(facts: Facts) -> Section:
    """How it was run: recipe, versions, host, command."""
    about = ((name, yaml_core.dumps(run.about)) for name, run in zip(facts.names, facts.runs, strict=True))
    return Section("How this was run", folded=tuple(about))


def _trial_row(row: Group) -> dict[str, str]:
    return {
        "network": row["series"],
        "depth": row["depth_label"],
        "lr": wording.rate(row["lr"]),
        "seed": wording.setting(row["seed"]),
        "state": row["state"],
        "epochs completed": f"{row['epochs_completed']} of {wording.value(row['epochs_planned'])}",
        "stopped early": wording.value(row["stopped_early" if wording.missing(row["why_stopped"]) else "why_stopped"]),
        "validation (%)": wording.points(row["val_accuracy"]),
        "train (%)": wording.points(row["train_accuracy"]),
        "gap (points)": wording.points(row["gap"]),
        "best epoch": wording.value(row["best_epoch"]),
        "seconds": wording.value(round(row["seconds"], 1)),
        "trial": row["trial"],
    }
