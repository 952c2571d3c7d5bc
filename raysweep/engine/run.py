"""The stages of a sweep on Ray: features, trials, the final fit; every row into the ledger.

A sweep that is interrupted keeps its rows.
"""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..data import audit
from ..data.dataset import Dataset, split_key
from ..data.findings import Findings, refuse_overlap
from ..features.decide import decide
from ..files import write_text
from ..nets import task
from ..recipe import Recipe, dump
from ..report import page
from ..report.answer import to_refit
from ..sweep import ledger
from ..sweep.choice import counted, epochs_by_phase
from ..sweep.evidence import write_labels
from ..sweep.ledger import Ledger, Run
from ..sweep.plan import PlannedTrial
from ..sweep.progress import Display
from . import features, final
from .resources import Machine, this_machine
from .session import Session, check_address
from .trials import Jobs, last_line, run_trials, rungs_of

PACKAGES = ("raysweep", "torch", "torchvision", "timm", "ray", "numpy", "pandas")


@dataclass(frozen=True)
class Outcome:
    """How a sweep ended."""

    folder: Path
    interrupted: bool = False
    problem: str = ""
    """Why there is no final model, if something went wrong."""


def run(
    recipe: Recipe,
    planned: Sequence[PlannedTrial],
    folder: Path,
    command: str,
    address: str | None = None,
    files: Path | None = None,
) -> Outcome:
    """Run a sweep into its folder.

    Args:
        recipe: the sweep.
        planned: its trials (see `plan.plan`).
        folder: the run folder, new or empty.
        command: the command line, for the record.
        address: of a Ray cluster; a local one is started when None.
        files: folder for a local Ray's files (see `environment.prepare`).

    Raises:
        RecipeError: a trial that can never be placed, data or weights that cannot be used, no cluster.
        RunFolderError: the folder is in use or holds a run.
    """
    dataset, findings = _examine(recipe, planned, address)
    with Ledger(folder) as book, Session(recipe, address, files, folder / "ray" / "logs") as session:
        machine = session.machine()
        machine.check(recipe)
        book.describe(_about(recipe, command, dataset))
        configurations = [one.configuration for one in planned]
        book.plan(configurations)
        with Display(configurations) as display:
            display.say(f"{len(planned)} trials → {folder}")
            audit.write(folder, findings, dataset)
            write_labels(folder, dataset.val.labels, len(dataset.class_names), split_key(dataset.val))
            try:
                return _stages(recipe, planned, machine, book, display, findings)
            except KeyboardInterrupt:
                for name in display.running:
                    row = display.last.get(name)
                    book.trial(name, "interrupted", epochs_completed=row.epoch if row else 0)
                return Outcome(folder, interrupted=True)


def _stages(
    recipe: Recipe,
    planned: Sequence[PlannedTrial],
    machine: Machine,
    book: Ledger,
    display: Display,
    findings: Findings,
) -> Outcome:
    stored = _make_features(recipe, planned, machine, book.folder, display)
    jobs = Jobs(recipe, machine, book.folder.resolve(), stored, rungs_of(recipe))
    run_trials(jobs, planned, book, display)
    return Outcome(book.folder, problem=_finals(jobs, planned, book.folder, display, findings))


def _examine(recipe: Recipe, planned: Sequence[PlannedTrial], address: str | None) -> tuple[Dataset, Findings]:
    """Read the data and every pretrained network before anything starts, so that a mistake costs nothing.

    Raises:
        RecipeError: a trial that can never be placed, an address where nothing is, data that cannot be read,
            splits that are the same images, weights that are not there.
    """
    if address is None:
        this_machine().check(recipe)
    else:
        check_address(address)
    for trial in {(one.trial.backbone, one.trial.model): one.trial for one in planned}.values():
        dataset = task.task_of(trial).dataset
    findings = audit.audit(dataset)
    refuse_overlap(dataset, findings)
    return dataset, findings


def _about(recipe: Recipe, command: str, dataset: Dataset) -> dict[str, Any]:
    """What recipe.yaml holds."""
    return {
        "recipe": dump(recipe),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "host": {"name": socket.gethostname(), "system": platform.platform(), "cpus": os.cpu_count()},
        "images": {split: len(getattr(dataset, split)) for split in ("train", "val", "test")}
        | {"drawn": list(dataset.drawn)},
        "command": command,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _make_features(
    recipe: Recipe, planned: Sequence[PlannedTrial], machine: Machine, folder: Path, display: Display
) -> tuple[str, ...]:
    """Decide what to store, make it and write that down; returns the names of the phases that read it."""
    torch.set_num_threads(recipe.resources.cpus_per_worker)  # rates are those of a lane
    trials = [one.trial for one in planned]
    record = features.make(trials, decide(trials, recipe.features), recipe, machine, display)
    task.release()
    for one in record.made:
        if one.problem:
            display.say(f"warning: {one.problem}; its trials compute the frozen prefix themselves")
        elif one.images:
            display.say(
                f"features: {one.backbone}, {one.cuts} cuts of {one.images:,} images "
                f"in {one.seconds:.1f} s, {one.mebibytes:,.0f} MiB"
            )
    write_text(folder / ledger.FEATURES, record.model_dump_json(indent=1))
    return record.stored


def _finals(jobs: Jobs, planned: Sequence[PlannedTrial], folder: Path, display: Display, findings: Findings) -> str:
    """Refit what is to be refitted, all of it chosen before any test image is looked at.

    Returns why that could not be done, or nothing.
    """
    found = ledger.read(folder)
    answer = page.gather([found]).answer
    if answer is None:
        return "no trial came to a result"
    if not jobs.recipe.final.enabled:
        return ""
    problems = []
    for name, group in to_refit(answer, jobs.recipe.final.of).items():
        chosen = next(one for one in planned if one.name == group["names"][0])
        try:
            _refit(jobs, chosen, found, folder / ledger.FINAL / name, display, findings)
        except Exception as error:  # the sweep's own results must not be lost to whatever went wrong here
            problems.append(f"the final fit of {name} failed: {last_line(error) or type(error).__name__}")
    return "; ".join(problems)


def _refit(jobs: Jobs, chosen: PlannedTrial, found: Run, folder: Path, display: Display, findings: Findings) -> None:
    """One final fit into its folder."""
    epochs = epochs_by_phase(counted(ledger.epoch_rows(found, chosen.name), chosen.trial.train.keep))
    gpus = jobs.machine.gpus_per_worker(jobs.recipe)
    job = jobs.of(chosen.trial).model_copy(
        update={
            "workers": jobs.machine.final_workers(jobs.recipe),
            "gpus": max(1.0, gpus) if gpus else 0.0,  # ranks cannot share a GPU
            "refit": epochs,
            "duplicated_test": findings.duplicated_test,
        }
    )
    name = f"{chosen.configuration.backbone} depth {chosen.configuration.depth_label}"
    display.say(f"final fit: {name}, {sum(epochs)} epochs on train + val, {job.workers} workers")
    result = final.refit(job, chosen.configuration, folder)
    write_text(folder / ledger.RESULT, result.model_dump_json(indent=2))
