"""The features stage: one pass over the images for each backbone, before the trials, in parallel.

On a machine without GPUs the shards of the images go to threads of this process, which has
the network already, while Ray starts. On GPUs they are Ray tasks. On a cluster each node
makes its own features, or all share a folder (`features.dir`) and they are made once. A
node that joins later makes what it misses in its first trial (see `trial`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysweep import assembly
from raysweep.assembly import Shard
from raysweep.caching import Decision, group_key
from raysweep.cluster import Cluster
from raysweep.features import Spec
from raysweep.plan import Planned
from raysweep.progress import Display
from raysweep.recipe import Features, Recipe, Trial

LEAST_SHARD, MOST_SHARD = 64, 1024
SHARDS_PER_LANE = 3
"""More than one, so that lanes end together and progress is seen."""


@dataclass(frozen=True)
class Made:
    """What one pass made."""

    backbone: str
    cuts: int
    images: int
    mebibytes: float
    seconds: float
    """Wall time."""
    lanes: int
    problem: str = ""
    """Why nothing was stored; the trials then compute the prefix themselves."""


def make(
    planned: Sequence[Planned],
    decisions: Sequence[Decision],
    recipe: Recipe,
    where: Cluster,
    display: Display,
    stop: threading.Event,
) -> list[Made]:
    """Make the features that were decided on.

    Args:
        planned: the trials.
        decisions: which cuts to store.
        recipe: the sweep.
        where: how many shards to compute at a time, and with what; on a cluster by every node that has room.
        display: told of the progress.
        stop: set by another thread to give up soon.
    """
    machine = where.machine()
    lanes, gpus = machine.lanes(recipe), machine.gpus_per_worker(recipe) if where.makes_features() else None
    chosen = {name for one in decisions if one.store for name in one.phases}
    groups: dict[Any, dict[Any, Trial]] = {}
    for one in planned:
        for phase in one.config.phases():
            if phase.name in chosen:
                groups.setdefault(group_key(phase), {}).setdefault(phase.depth, phase)
    made = []
    for trials in groups.values():
        work = _Work(list(trials.values()), recipe.features, lanes, recipe.resources.cpus_per_worker, gpus)
        if where.address is not None and recipe.features.dir is None:
            made.extend(_on_every_node(work))
        else:
            made.append(work.run(display, stop=stop))
    return made


class _Work:
    """One pass over the images of trials that share their base."""

    def __init__(
        self,
        trials: list[Trial],
        settings: Features,
        lanes: int,
        cpus: int,
        gpus: float | None,
    ) -> None:
        self.trials, self.settings, self.lanes = trials, settings, lanes
        self.cpus, self.gpus = cpus, gpus
        self.images = 0

    def run(self, display: Display | None = None, node: str | None = None, stop: threading.Event | None = None) -> Made:
        """Make what is missing; a full disk is a problem to tell of, not an error."""
        started = time.perf_counter()
        made, problem = 0, ""
        views = assembly.views_of(self.trials[0])
        dataset = assembly.base_of(self.trials[0]).dataset
        images = sum(len(getattr(dataset, split)) for split, _ in views)
        size = min(MOST_SHARD, max(LEAST_SHARD, -(-images // (self.lanes * SHARDS_PER_LANE))))
        try:
            made = assembly.make_features(
                self.trials,
                self.settings,
                lambda shards, files: self._compute(shards, files, display, node, stop),
                size,
            )
        except OSError as error:
            problem = f"features of {self.trials[0].backbone} are not stored: {error.strerror or error}"
        seconds = time.perf_counter() - started
        name = self.trials[0].backbone
        return Made(name, len(self.trials), self.images, made / 2**20, seconds, self.lanes, problem)

    def _compute(
        self,
        shards: list[Shard],
        files: dict[Spec, Path],
        display: Display | None,
        node: str | None,
        stop: threading.Event | None,
    ) -> None:
        total = sum(end - start for *_, start, end in shards)
        counts = self._in_threads(shards, files, stop) if self.gpus is None else self._on_ray(shards, files, node)
        for count in counts:
            self.images += count
            if display:
                display.features(self.images, total)

    def _in_threads(self, shards: list[Shard], files: dict[Spec, Path], stop: threading.Event | None) -> Iterator[int]:
        import torch

        cpu = torch.device("cpu")
        torch.set_num_threads(self.cpus)
        for split, flip in {shard[:2] for shard in shards}:
            wanted = [spec for spec in files if (spec.split, spec.flip) == (split, flip)]
            assembly.prefix_of(self.trials[0], wanted, cpu)
        with ThreadPoolExecutor(self.lanes) as pool:
            waiting = [pool.submit(assembly.compute_shard, self.trials[0], shard, files, cpu) for shard in shards]
            try:
                for ready in as_completed(waiting):
                    if stop is not None and stop.is_set():
                        raise CancelledError("the sweep was interrupted")
                    yield ready.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _on_ray(self, shards: list[Shard], files: dict[Spec, Path], node: str | None) -> Iterator[int]:
        options: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus or 0.0}
        if node is not None:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=False)
        plain = self.trials[0].model_dump(mode="json")
        remote = ray.remote(_compute).options(**options)
        waiting = [remote.remote(plain, shard, files, self.cpus, self.gpus or 0.0) for shard in shards]
        while waiting:
            ready, waiting = ray.wait(waiting, num_returns=1)
            yield from ray.get(ready)


def _compute(plain: dict[str, Any], shard: Shard, files: dict[Spec, Path], cpus: int, gpus: float) -> int:
    import torch

    torch.set_num_threads(cpus)
    device = torch.device("cuda" if gpus else "cpu")
    return assembly.compute_shard(Trial.model_validate(plain), shard, files, device)


def _on_every_node(work: _Work) -> list[Made]:
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and _has_room(node["Resources"], work)]
    options = [
        {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)} for node in nodes
    ]
    remote = ray.remote(_run_at)
    return ray.get([remote.options(**some).remote(work, node) for some, node in zip(options, nodes, strict=True)])


def _run_at(work: _Work, node: str) -> Made:
    return work.run(node=node)


def _has_room(resources: dict[str, float], work: _Work) -> bool:
    return resources.get("CPU", 0) >= work.cpus and resources.get("GPU", 0) >= (work.gpus or 0)


def record(decisions: Sequence[Decision], made: Sequence[Made]) -> dict[str, Any]:
    """What ledger.FEATURES holds; `stored` are the names of the phases that read what was stored."""
    failed = {one.backbone for one in made if one.problem}
    stored = {name for one in decisions if one.store and one.backbone not in failed for name in one.phases}
    return {
        "decisions": [asdict(one) for one in decisions],
        "made": [asdict(one) for one in made],
        "stored": sorted(stored),
    }


def failure(error: BaseException) -> dict[str, Any]:
    """What ledger.FEATURES holds when there will be no features, for trials that wait for them."""
    return {"decisions": [], "made": [], "stored": [], "error": f"{type(error).__name__}: {error}"}
