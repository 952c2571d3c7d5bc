"""The stages of a sweep on Ray: features, trials, the final fit; every row into the ledger.

A sweep that is interrupted keeps its rows.
"""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..data import audit
from ..data.dataset import Dataset, split_key
from ..data.findings import Findings, refuse_overlap
from ..features.decide import Decision, unwritable
from ..files import write_text
from ..nets import task
from ..recipe import Recipe, dump
from ..report import page
from ..report.answer import to_refit
from ..sweep import ledger
from ..sweep.choice import counted, epochs_by_phase
from ..sweep.evidence import write_labels
from ..sweep.history import History, history_of, other_versions
from ..sweep.ledger import Ledger, Run, RunFolderError, written_to
from ..sweep.loggers import Loggers
from ..sweep.plan import PlannedTrial
from ..sweep.progress import Display
from . import features, final
from .errors import last_line
from .features import decisions_of
from .interrupts import Interrupts
from .resources import Machine, this_machine
from .saving import save_running
from .session import Session, check_address
from .storage import LocalCopy, Storage
from .trials import Jobs, run_trials, rungs_of

PACKAGES = ("raysweep", "torch", "torchvision", "timm", "ray", "numpy", "pandas")
HEAD_IS_LOST = "Ray's head process has ended"
"""The problem of a sweep whose Ray is gone."""


@dataclass(frozen=True)
class Outcome:
    """How a sweep ended."""

    interrupted: bool = False
    problem: str = ""
    """Why there is no final model, if something went wrong."""


@dataclass(frozen=True)
class Place:
    """Where a sweep runs and what it leaves."""

    copy: LocalCopy
    """The run folder, and the part of it on this machine."""
    address: str | None = None
    """Of a Ray cluster; a local one is started when None."""
    files: Path | None = None
    """Folder for a local Ray's files (see `environment.prepare`)."""
    interrupts: Interrupts = field(default_factory=Interrupts)
    leave: Callable[[], None] = lambda: None
    """Called from another thread when Ray's head is gone and the sweep still waits for it."""

    @property
    def folder(self) -> Path:
        """The run folder, or the copy of it on this machine where it is in an object store."""
        return self.copy.folder

    @property
    def ray_folder(self) -> str:
        """Folder or URL of Ray's own files: on this machine where Ray is, else where all nodes reach it."""
        return str(self.folder / "ray") if self.address is None else f"{self.copy.storage.where}/ray"


def run(
    recipe: Recipe, planned: Sequence[PlannedTrial], place: Place, command: str, recorded: Run | None = None
) -> Outcome:
    """Run a sweep into its folder, or what is missing of it.

    Args:
        recipe: the sweep.
        planned: its trials (see `plan.plan`).
        place: where it runs, and the run folder: new or empty, or that of `recorded`.
        command: the command line, for the record.
        recorded: what an interrupted run of this recipe has left.

    Raises:
        RecipeError: a trial that can never be placed, data or weights that cannot be used, no cluster.
        RunFolderError: the folder is in use or holds another run.
    """
    dataset, findings, snapshots = _examine(recipe, planned, place.address)
    logs = place.folder / "ray" / "logs"
    with (
        Ledger(place.folder, resume=recorded is not None) as book,
        Session(recipe, place.address, place.files, logs, place.interrupts, place.leave) as session,
    ):
        machine = session.machine()
        machine.check(recipe)
        with Display([one.configuration for one in planned]) as display:
            stages = _Stages(recipe, planned, session, book, display, dataset, findings, place)
            try:
                stages.describe(command, recorded)
                return Outcome(problem=stages.run(recorded, machine, snapshots))
            except KeyboardInterrupt:
                if session.head_is_lost:
                    return Outcome(problem=HEAD_IS_LOST)
                stages.interrupt()
                return Outcome(interrupted=True)
            except OSError as error:
                where = Path(place.copy.storage.where)
                return Outcome(problem=str(error) if isinstance(error, RunFolderError) else written_to(where, error))


class _Stages:
    """A sweep on Ray: features, trials, final fits."""

    def __init__(
        self,
        recipe: Recipe,
        planned: Sequence[PlannedTrial],
        session: Session,
        book: Ledger,
        display: Display,
        dataset: Dataset,
        findings: Findings,
        place: Place,
    ) -> None:
        self.recipe, self.planned, self.session, self.place = recipe, planned, session, place
        self.book, self.display, self.dataset, self.findings = book, display, dataset, findings

    def describe(self, command: str, recorded: Run | None) -> None:
        """Write down what is going to be done, but for what is `recorded`."""
        dataset, folder = self.dataset, self.book.folder
        if recorded is None:
            self.book.describe(_about(self.recipe, command, dataset))
        self.book.plan([one.configuration for one in self.planned])
        audit.write(folder, self.findings, dataset)
        write_labels(folder, dataset.val.labels, len(dataset.class_names), split_key(dataset.val))

    def run(self, recorded: Run | None, machine: Machine, snapshots: tuple[str, ...]) -> str:
        """All stages, or what is missing of them; returns why there is no final model, if there is none."""
        history = History() if recorded is None else history_of(recorded)
        self._announce(recorded, history)
        decided = None if recorded is None or recorded.features is None else decisions_of(recorded.features)
        made = _make_features(self.recipe, self.planned, machine, self.book.folder, self.display, decided, snapshots)
        where, recipe = self.place.copy.storage.where, _in_float32(self.recipe) if made.overflow else self.recipe
        jobs = Jobs(recipe, machine, where, self.place.ray_folder, made.stored, rungs_of(recipe), snapshots)
        self._run_trials(jobs, history)
        self.place.copy.fetch()
        left = replace(jobs, machine=self.session.machine())  # nodes may have come and gone
        return _finals(left, self.planned, self.book.folder, self.display, self.findings)

    def _run_trials(self, jobs: Jobs, history: History) -> None:
        """The trials, whose rows go to the recipe's loggers too."""
        configurations = [one.configuration for one in self.planned]
        sent = Loggers(self.recipe.loggers, self.book.folder, self.recipe.name, configurations, self.display.say)
        with closing(sent) as loggers:
            run_trials(jobs, self.planned, self.book, self.display, history, loggers)

    def _announce(self, recorded: Run | None, history: History) -> None:
        where = self.place.copy.storage.where
        for note in self.dataset.notes:
            self.display.say(note)
        if recorded is None:
            self.display.say(f"{len(self.planned)} trials → {where}")
            return
        left = len(history.unfinished([one.name for one in self.planned]))
        self.display.say(f"{len(self.planned)} trials, {left} of them unfinished → {where}")
        if changed := other_versions(recorded.about.get("versions", {}), _versions()):
            self.display.say(f"warning: other versions than before, so rows may differ a little: {', '.join(changed)}")

    def interrupt(self) -> None:
        """Have the running trials save their state, and say of each that it was interrupted."""
        last = {name: self.display.last.get(name) for name in self.display.running}
        epochs = {name: row.epoch if row else 0 for name, row in last.items()}
        save_running(self.place.copy.storage.where, epochs)
        for name, epoch in epochs.items():
            with suppress(OSError):
                self.book.trial(name, "interrupted", epochs_completed=epoch)


def _examine(
    recipe: Recipe, planned: Sequence[PlannedTrial], address: str | None
) -> tuple[Dataset, Findings, tuple[str, ...]]:
    """Read the data and every pretrained network before anything starts, so that a mistake costs nothing.

    Returns:
        The data set, what the audit found in it, and the names under which the sweep's other processes find
        what was read (see `TrialJob.snapshots`).

    Raises:
        RecipeError: a trial that can never be placed, an address where nothing is, data that cannot be read,
            splits that are the same images, weights that are not there.
    """
    if address is None:
        this_machine().check(recipe)
    else:
        check_address(address)
    kept: dict[str, None] = {}
    for trial in {(one.trial.backbone, one.trial.model, one.trial.data): one.trial for one in planned}.values():
        dataset = task.task_of(trial).dataset
        if (name := task.save_dataset(trial)) is not None:
            kept[name] = None
    findings = audit.audit(dataset)
    refuse_overlap(dataset, findings)
    return dataset, findings, tuple(kept)


def _about(recipe: Recipe, command: str, dataset: Dataset) -> dict[str, Any]:
    """What recipe.yaml holds."""
    return {
        "recipe": dump(recipe),
        "versions": _versions(),
        "host": {"name": socket.gethostname(), "system": platform.platform(), "cpus": os.cpu_count()},
        "images": {split: len(getattr(dataset, split)) for split in ("train", "val", "test")}
        | {"drawn": list(dataset.drawn)},
        "command": command,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def _make_features(
    recipe: Recipe,
    planned: Sequence[PlannedTrial],
    machine: Machine,
    folder: Path,
    display: Display,
    decided: Sequence[Decision] | None,
    snapshots: Sequence[str],
) -> features.FeaturesRecord:
    """Decide what to store if it is not decided, make it and write that down."""
    trials = [one.trial for one in planned]
    decisions = features.decided(trials, recipe, machine) if decided is None else decided
    if decided is None and recipe.features.cache != "never" and (problem := unwritable(recipe.features)):
        display.say(f"warning: {problem}; trials compute the frozen prefix themselves")
    record = features.make(trials, decisions, recipe, machine, display, snapshots)
    task.release()
    for one in record.made:
        if one.problem:
            how = " in float32" if one.overflow else ""
            display.say(f"warning: {one.problem}; its trials compute the frozen prefix themselves{how}")
        elif one.images:
            display.say(
                f"features: {one.backbone}, {one.cuts} cuts of {one.images:,} images "
                f"in {one.seconds:.1f} s, {one.mebibytes:,.0f} MiB"
            )
    write_text(folder / ledger.FEATURES, record.model_dump_json(indent=1))
    return record


def _in_float32(recipe: Recipe) -> Recipe:
    """The recipe with a frozen prefix that is computed in float32."""
    return recipe.model_copy(update={"features": recipe.features.model_copy(update={"precision": "float32"})})


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
        if name in found.finals:
            continue
        chosen = next(one for one in planned if one.name == group["names"][0])
        try:
            _refit(jobs, chosen, found, name, display, findings)
        except Exception as error:  # the sweep's own results must not be lost to whatever went wrong here
            problems.append(f"the final fit of {name} failed: {last_line(error) or type(error).__name__}")
    return "; ".join(problems)


def _refit(jobs: Jobs, chosen: PlannedTrial, found: Run, name: str, display: Display, findings: Findings) -> None:
    """One final fit into its folder."""
    epochs = epochs_by_phase(counted(ledger.epoch_rows(found, chosen.name), chosen.trial.train.keep))
    gpus = jobs.machine.gpus_per_worker(jobs.recipe)
    job = jobs.of(chosen.trial).model_copy(
        update={
            "workers": jobs.machine.final_workers(jobs.recipe),
            "gpus": max(1.0, gpus) if gpus else 0.0,  # ranks cannot share a GPU
            "name": f"final-{name}",
            "refit": epochs,
            "target": f"{ledger.FINAL}/{name}",
            "duplicated_test": findings.duplicated_test,
        }
    )
    network = f"{chosen.configuration.backbone} depth {chosen.configuration.depth_label}"
    display.say(f"final fit: {network}, {sum(epochs)} epochs on train + val, {job.workers} workers")
    result = final.refit(job, chosen.configuration)
    Storage(jobs.folder).write(f"{job.target}/{ledger.RESULT}", result.model_dump_json(indent=2).encode())
