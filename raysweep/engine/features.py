"""The features stage: one pass over the images for each task before the trials, as Ray tasks.

Each node that will train makes its own features, in one task that takes what its trials
would; where the nodes share a folder (`features.dir`) they make them together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions
import torch
from pydantic import ValidationError
from ray import ObjectRefGenerator
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ..features import batch_norm
from ..features.compute import Progress, are_stored
from ..features.decide import Decision, decide, group_key
from ..features.stored import FeatureOverflowError
from ..nets.cpu import compute_on
from ..recipe import Features, Recipe, Trial
from ..sweep.progress import Display
from ..sweep.rows import Versioned
from .resources import Machine

LOST = (
    ray.exceptions.NodeDiedError, ray.exceptions.TaskUnschedulableError, ray.exceptions.WorkerCrashedError,
)  # fmt: skip
"""What Ray raises of a task whose node is gone."""


class MadeFeatures(Versioned):
    """What one pass on one node made."""

    backbone: str
    cuts: int
    images: int
    mebibytes: float
    seconds: float
    """Wall time."""
    lanes: int
    problem: str = ""
    """Why nothing was stored; the trials then compute the prefix themselves."""
    overflow: bool = False
    """Whether that was for features too large for their type; the prefix is then computed in float32."""


class FeaturesRecord(Versioned):
    """What features.json holds."""

    decisions: tuple[Decision, ...]
    made: tuple[MadeFeatures, ...]
    stored: tuple[str, ...]
    """Names of the phases that read stored features."""

    @property
    def overflow(self) -> bool:
        """Whether features were too large for the type that they were to be computed or stored in."""
        return any(one.overflow for one in self.made)


def decisions_of(record: Mapping[str, Any]) -> list[Decision] | None:
    """The decisions in a features.json; None where it cannot be read."""
    try:
        return list(FeaturesRecord.model_validate(record).decisions)
    except ValidationError:
        return None


def decided(trials: Sequence[Trial], recipe: Recipe, machine: Machine) -> list[Decision]:
    """What to store, from rates of the device that will train: of this process's threads, or of a GPU of a worker's."""
    cpus, gpus = recipe.resources.cpus_per_worker, machine.gpus_per_worker(recipe)
    compute_on(cpus, gpu=gpus > 0)
    if not gpus or recipe.features.cache == "never":
        return decide(trials, recipe.features)
    lane = _decide.options(num_cpus=cpus, num_gpus=min(1.0, gpus))  # type: ignore[attr-defined]
    texts = [trial.model_dump_json() for trial in trials]
    found: list[str] = ray.get(lane.remote(texts, recipe.features.model_dump_json(), cpus))
    return [Decision.model_validate_json(text) for text in found]


@ray.remote(max_calls=1)
def _decide(trials: list[str], settings: str, cpus: int) -> list[str]:
    """`decide` with the GPU of this task; trials, settings and decisions are JSON."""
    compute_on(cpus, gpu=True)
    found = decide(
        [Trial.model_validate_json(text) for text in trials],
        Features.model_validate_json(settings),
        torch.device("cuda"),
    )
    return [one.model_dump_json() for one in found]


def make(
    trials: Sequence[Trial],
    decisions: Sequence[Decision],
    recipe: Recipe,
    machine: Machine,
    display: Display,
    snapshots: Sequence[str] = (),
) -> FeaturesRecord:
    """Make the features that were decided on, on every node that has room for a trial.

    What trials share beside features, the statistics of recalibrated batch norm, is made before.

    Args:
        trials: of the sweep.
        decisions: which cuts are stored.
        recipe: the sweep.
        machine: what there is for it.
        display: is told how far the pass is.
        snapshots: of the data sets (see `TrialJob`).
    """
    chosen = {name for decision in decisions if decision.store for name in decision.phases}
    groups: dict[Any, _Group] = {}
    for trial in trials:
        for phase in trial.phases():
            group = groups.setdefault(group_key(phase), _Group(phase, {}))
            if phase.name in chosen:
                group.stored.setdefault(phase.depth, phase)
    made = [one for group in groups.values() for one in _pass(group, recipe, machine, display, snapshots)]
    failed = {one.backbone for one in made if one.problem}
    stored = {name for one in decisions if one.store and one.backbone not in failed for name in one.phases}
    return FeaturesRecord(decisions=tuple(decisions), made=tuple(made), stored=tuple(sorted(stored)))


@dataclass(frozen=True)
class _Group:
    """Phases that share their task."""

    first: Trial
    stored: dict[Any, Trial]
    """One for each depth whose features are stored."""

    def is_there(self, settings: Features) -> bool:
        """Whether this machine has all that the phases share."""
        stored = list(self.stored.values())
        return batch_norm.are_kept(self.first, settings) and (not stored or are_stored(stored, settings))


def _pass(
    group: _Group, recipe: Recipe, machine: Machine, display: Display, snapshots: Sequence[str]
) -> list[MadeFeatures]:
    """One pass over the images of phases that share their task, on all nodes at once."""
    if not group.stored and group.first.model.batch_norm != "recalibrated":
        return []
    started, lanes = time.perf_counter(), _lanes_by_node(recipe, machine)
    progress = dict.fromkeys(lanes, Progress(0, 0, 0))
    problems: dict[str, Exception] = {}
    for node, found in _as_they_come(_tasks(group, recipe, machine, lanes, snapshots)):
        if isinstance(found, Progress):
            progress[node] = found
            display.features(sum(one.images for one in progress.values()), sum(one.total for one in progress.values()))
        else:
            problems[node] = found
    seconds = time.perf_counter() - started
    return [
        MadeFeatures(
            backbone=group.first.backbone,
            cuts=len(group.stored),
            images=progress[node].images,
            mebibytes=progress[node].nbytes / 2**20,
            seconds=seconds,
            lanes=count,
            **_problem(group.first.backbone, problems.get(node)),
        )
        for node, count in lanes.items()
        if group.stored
    ]


def _tasks(
    group: _Group, recipe: Recipe, machine: Machine, lanes: Mapping[str, int], snapshots: Sequence[str]
) -> dict[ObjectRefGenerator, str]:
    """A task on every node that lacks something, with the node's id."""
    here, texts = ray.get_runtime_context().get_node_id(), [phase.model_dump_json() for phase in group.stored.values()]
    first, settings = group.first.model_dump_json(), recipe.features.model_dump_json()
    cpus, gpus = recipe.resources.cpus_per_worker, machine.gpus_per_worker(recipe)
    return {
        _compute.options(  # type: ignore[attr-defined]
            num_cpus=count * cpus,
            num_gpus=math.ceil(count * gpus),
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        ).remote(first, texts, settings, count, cpus, gpus, list(snapshots)): node
        for node, count in lanes.items()
        if not (node == here and group.is_there(recipe.features))
    }


def _lanes_by_node(recipe: Recipe, machine: Machine) -> dict[str, int]:
    """How many workers fit on each node, by its id; nodes on which none fits are left out."""
    cpus, gpus = recipe.resources.cpus_per_worker, machine.gpus_per_worker(recipe)
    lanes = {}
    for node in ray.nodes():
        if node["Alive"]:
            total = node["Resources"]
            fit = int(total.get("CPU", 0) // cpus)
            lanes[node["NodeID"]] = min(fit, int(total.get("GPU", 0) / gpus)) if gpus else fit
    most = machine.lanes(recipe) * recipe.resources.workers_per_trial
    return {node: min(count, most) for node, count in lanes.items() if count}


def _problem(backbone: str, error: Exception | None) -> dict[str, Any]:
    """Fields of `MadeFeatures` that say why nothing was stored."""
    if error is None:
        return {}
    cause = getattr(error, "cause", error)
    why = str(getattr(cause, "strerror", None) or cause).splitlines()[0]
    return {
        "problem": f"features of {backbone} are not stored: {why}",
        "overflow": isinstance(error, FeatureOverflowError),
    }


def _as_they_come(running: dict[ObjectRefGenerator, str]) -> Iterator[tuple[str, Progress | Exception]]:
    """What the tasks yield, with their nodes, a full disk and an overflow among it; any other error is raised.

    A node that is lost has made nothing: trials on the one that takes its place make what they need.
    """
    waiting: list[Any] = list(running)
    while waiting:
        ready, waiting = ray.wait(waiting, num_returns=1)
        for task in ready:
            try:
                reference: Any = next(task)  # type: ignore[arg-type]
                yield running[task], ray.get(reference)
                waiting.append(task)
            except StopIteration:
                pass
            except LOST:
                yield running[task], Progress(0, 0, 0)
            except (OSError, FeatureOverflowError) as error:
                yield running[task], error


@ray.remote(max_calls=1)  # its memory is for the trials then
def _compute(
    first: str, phases: list[str], settings: str, lanes: int, cpus: int, gpus: float, snapshots: list[str]
) -> Iterator[Progress]:
    """What phases that share their task share, made on one node, which has `phases` to store of; see `_pass`."""
    from ..features.batch_norm import recalibrated
    from ..features.compute import make_features
    from ..nets import task

    task.expect(snapshots)
    count = torch.cuda.device_count() if gpus else lanes
    devices = [torch.device("cuda", index) if gpus else torch.device("cpu") for index in range(count)]
    where = Features.model_validate_json(settings)
    compute_on(cpus * lanes, gpu=gpus > 0)  # one network, with all that this task has
    recalibrated(Trial.model_validate_json(first), where, devices[0])
    compute_on(cpus, gpu=gpus > 0)
    if phases:
        yield from make_features([Trial.model_validate_json(text) for text in phases], where, devices)
