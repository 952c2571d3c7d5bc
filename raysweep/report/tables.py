"""Rows of a run folder as pandas tables: one row per (trial, epoch), one row per trial.

A trial's accuracy is the one of its last epoch. Of a trial that was stopped or broken
off it is no result, only the last thing seen, which is why every table here carries
`state`, `epochs_completed` and `stopped_early`.
"""

from __future__ import annotations

import json
import math
from typing import Any

import pandas as pd

from ..recipe import Objective
from ..sweep.ledger import Row, Run
from ..sweep.rows import Stop, why

CONFIG = ("trial", "backbone", "depth", "depth_label", "layers", "lr", "seed")
"""What names a trial, but for the extra axes of its grid."""
KINDS_OF_SCORE = ("loss", "accuracy", "balanced_accuracy", "macro_f1", "top5")
SCORES = tuple(f"{split}_{kind}" for split in ("train", "val") for kind in KINDS_OF_SCORE)
"""Measured after every epoch, in eval mode but for train_loss; all but losses are fractions from 0 to 1."""
FACTS = ("trainable_parameters", "total_parameters", "trainable_tensors", "workers", "val_images", "cached")
AXES = (
    *("weights", "head", "batch_norm", "image_size", "normalize", "epochs", "batch_size", "optimizer", "weight_decay"),
    *("momentum", "schedule", "step_epochs", "step_gamma", "label_smoothing", "clip_norm", "autocast", "patience"),
    "precision",
)
"""Names that are an axis of the grid wherever a row carries them; others come from a planned row's `axes`."""
NULL = "null"
"""How a table holds an axis's null, which is a value as any other; an empty cell is an axis that the trial lacks."""
PROGRESS = ("state", "epochs_planned", "epochs_completed", "stopped_early")
OUTCOME = (*SCORES, "gap", "best_epoch", "best_val_accuracy", "seconds", "prefix_seconds", "error", "why_stopped")
BY_EPOCH = ("epoch", "phase", "val_by_step")
"""What the epochs table has beside scores and seconds, and the trials table has not."""
COLUMNS = (*CONFIG, *PROGRESS, *OUTCOME, *FACTS)
"""Columns of the trials table; beside these it has `run` and one for each extra axis."""
TEXT = ("trial", "backbone", "depth", "depth_label", "state", "error", "why_stopped", "stopped_early", "cached")


def epochs_table(run: Run) -> pd.DataFrame:
    """One row per (trial, epoch), in order of epochs, with the trial's state beside each.

    An epoch that was run twice, after a resume, counts as it was the second time.
    `seconds` are those of the epoch, accuracies fractions. `val_by_step` is what was measured within the epoch:
    a list of mappings with `epoch` (a fraction of epochs in all), `val_loss` and `val_accuracy`; or NaN.
    """
    trials = trials_table(run)
    rows = [row for history in _histories(run).values() for row in history]
    columns = ("trial", *BY_EPOCH, *SCORES, "seconds")
    scores = pd.DataFrame({column: pd.Series([row.get(column, math.nan) for row in rows]) for column in columns})
    labels = trials.drop(columns=[*OUTCOME, "depth"])
    return labels.merge(scores, on="trial", how="inner")


def trials_table(run: Run) -> pd.DataFrame:
    """One row per trial, planned ones included.

    Scores are those of the last epoch; `gap` is train minus validation accuracy there,
    both in eval mode; `seconds` is the sum over epochs, `prefix_seconds` the trial's share of the prefix pass that
    was made for several; `best_epoch` is the first with the
    highest validation accuracy.
    """
    notes, histories, shares = _notes(run), _histories(run), _prefix_shares(run)
    objective: Objective = (run.about.get("recipe") or {}).get("objective") or "accuracy"
    names = dict.fromkeys([*notes, *histories])
    rows = [
        _trial(notes.get(name, {}), histories.get(name, []), objective) | {"prefix_seconds": shares.get(name, 0.0)}
        for name in names
    ]
    extra = dict.fromkeys(column for row in rows for column in row if column not in COLUMNS)
    table = pd.DataFrame(rows, columns=[*CONFIG, *extra, *PROGRESS, *OUTCOME, *FACTS])
    for column in [column for column in COLUMNS if column not in TEXT]:
        table[column] = pd.to_numeric(table[column], errors="coerce")
    table.insert(0, "run", run.folder.resolve().name)
    return table.astype({"stopped_early": bool})


def _histories(run: Run) -> dict[str, list[Row]]:
    """Each trial's rows in order of epochs; of two rows for one epoch the later."""
    histories: dict[str, dict[int, Row]] = {}
    for row in run.epochs:
        histories.setdefault(row["trial"], {})[row["epoch"]] = row
    return {trial: [rows[epoch] for epoch in sorted(rows)] for trial, rows in histories.items()}


def _prefix_shares(run: Run) -> dict[str, float]:
    """Seconds of one process that the prefix pass of each trial's cut takes, shared among the trials that read it."""
    shares: dict[str, float] = {}
    for decision in (run.features or {}).get("decisions", []):
        if decision["store"]:
            seconds = decision["images_computed"] * decision["prefix_ms_per_image"] / 1000
            for trial in decision["trials"]:
                shares[trial] = shares.get(trial, 0.0) + seconds / len(decision["trials"])
    return shares


def _notes(run: Run) -> dict[str, Row]:
    """Each trial's rows of trials.jsonl in one; its state is the last, though a plan made again undoes nothing."""
    notes: dict[str, Row] = {}
    for row in run.trials:
        before = notes.get(row["trial"], {})
        state = before.get("state", "planned") if row["state"] == "planned" else row["state"]
        notes[row["trial"]] = before | row | {"state": state}
    return notes


def _trial(note: Row, history: list[Row], objective: Objective) -> Row:
    """The row of one trial, from what trials.jsonl notes of it and its rows of epochs.jsonl."""
    last = _counted(history, note.get("keep"))
    axes = note.get("axes") or {}
    row = note | axes | last
    row = {key: row[key] for key in row if key in COLUMNS} | {
        key: NULL if row[key] is None and key in axes else _plain(row[key]) for key in row if key in axes or key in AXES
    }
    planned, done = row.get("epochs_planned"), len(history)
    complete = bool(history and history[-1].get("over")) or (planned is not None and done >= planned)
    state = _state(note.get("state"), complete)
    row |= {"state": state, "epochs_completed": done, "stopped_early": state in ("stopped", "dropped")}
    row["depth_label"] = row.get("depth_label") or _label(row.get("depth"))
    row["error"] = note.get("error") if state == "failed" else None
    row["why_stopped"] = why(Stop.model_validate(note["stop"]), objective) if note.get("stop") else None
    row["seconds"] = sum(epoch.get("seconds") or 0.0 for epoch in history) if history else None
    return row | _best(history) | _gap(last)


def _counted(history: list[Row], keep: str | None) -> Row:
    """The epoch that a trial counts with: its last, or with `keep` best_loss that of the lowest validation loss."""
    if keep != "best_loss":
        return history[-1] if history else {}
    finite = [row for row in history if math.isfinite(row.get("val_loss", math.inf))]
    return min(finite or history[:1], key=lambda row: row.get("val_loss", math.inf), default={})


def _state(noted: str | None, complete: bool) -> str:
    """A trial whose last epoch is written has finished, even if the sweep was killed before it could say so."""
    if complete and noted not in ("stopped", "dropped", "failed"):
        return "finished"
    return noted or "interrupted"


def _best(history: list[Row]) -> Row:
    scored = [row for row in history if row.get("val_accuracy") is not None]
    if not scored:
        return {}
    best = max(scored, key=lambda row: row["val_accuracy"])
    return {"best_epoch": best["epoch"], "best_val_accuracy": best["val_accuracy"]}


def _gap(last: Row) -> Row:
    train, val = last.get("train_accuracy"), last.get("val_accuracy")
    return {} if train is None or val is None else {"gap": train - val}


def _label(depth: Any) -> str:
    return "+".join(map(str, depth)) if isinstance(depth, list | tuple) else str(depth)


def _plain(value: Any) -> Any:
    """A value that tables can group by; mappings and lists become their JSON."""
    return json.dumps(value) if isinstance(value, dict | list | tuple) else value
