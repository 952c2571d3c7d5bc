"""What the processes of a trial do: its ranks on their devices, its rows to the driver.

With one worker the training loop runs in the trial's own process (Ray Train's local
mode), which Tune keeps warm for the next trial; with more it is distributed data parallel
in worker processes of its own. Rank 0's rows reach Tune either way.
"""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import ray.train
import ray.tune

from ..sweep.evidence import ImagePredictions, contributions, pack, write_predictions
from ..sweep.rows import EpochRow, TrialJob
from ..train.measures import Measures

if TYPE_CHECKING:
    from ..train.ddp import World
    from ..train.metrics import Predictions
    from ..train.phases import Sharing

MOST_CONTROLLER_FAILURES = 3
"""Failed starts of a trial's workers after which the trial has failed; Ray's own default is to try for ever."""


def run_trial(config: dict[str, Any], jobs: dict[str, str]) -> None:
    """The function that Ray Tune calls for a trial.

    Args:
        config: the trial's name under `job`.
        jobs: every `TrialJob` as JSON, by name.
    """
    from ray.train.torch import TorchTrainer

    space = {"job": jobs[config["job"]]}
    job = job_of(space)
    if job.workers == 1:
        trainer = TorchTrainer(_train, train_loop_config=space, scaling_config=ray.train.ScalingConfig(num_workers=0))
    else:
        from ray.tune.integration.ray_train import TuneReportCallback

        trainer = TorchTrainer(
            _train,
            train_loop_config=space,
            scaling_config=scaling(job),
            run_config=ray.train.RunConfig(
                name=job.name,
                storage_path=str(ray_folder(job)),
                callbacks=[TuneReportCallback()],  # type: ignore[list-item]
                failure_config=ray.train.FailureConfig(controller_failure_limit=MOST_CONTROLLER_FAILURES),  # type: ignore[call-arg]
            ),
        )
    try:
        trainer.fit()
    finally:
        gc.collect()  # what the ended trial leaves in cycles, before the next one fills the memory


def job_of(space: dict[str, Any]) -> TrialJob:
    """The job that Train hands on, as JSON under `job`."""
    return TrialJob.model_validate_json(space["job"])


def ray_folder(job: TrialJob) -> Path:
    """Where Ray keeps its own files of the run, and trials what they share."""
    return Path(job.folder) / "ray"


def row_of(result: dict[str, Any]) -> EpochRow:
    """The row in what a trial reported to Tune."""
    return EpochRow.model_validate_json(result["row"])


def scaling(job: TrialJob) -> ray.train.ScalingConfig:
    """A job's workers, each with its CPUs and GPUs."""
    resources = {"CPU": job.cpus, "GPU": job.gpus} if job.gpus else {"CPU": job.cpus}
    return ray.train.ScalingConfig(num_workers=job.workers, use_gpu=job.gpus > 0, resources_per_worker=resources)


def world_of(job: TrialJob) -> World:
    """This process among the ranks of its Ray Train run, with its device and threads set."""
    import torch
    import torch.distributed as dist

    from ..train.ddp import World

    torch.set_num_threads(job.cpus)
    if job.gpus and not torch.cuda.is_available():
        raise RuntimeError("the trial was given a GPU but torch sees none: install torch for this machine's CUDA")
    group = dist.is_initialized()  # Ray Train makes one for its workers, and none in the trial's own process
    device = torch.device("cpu") if not job.gpus else ray.train.torch.get_device() if group else torch.device("cuda")
    return World(dist.get_rank(), dist.get_world_size(), device) if group else World(device=device)


def sharing_of(job: TrialJob) -> Sharing:
    """What a job's trial shares with others."""
    from ..train.phases import Sharing

    return Sharing(job.features, frozenset(job.stored), ray_folder(job) / "phases")


class CountedPredictions:
    """A trial's predictions at the epoch that it counts with, in its run folder and in its rows."""

    def __init__(self, job: TrialJob, classes: int, val_key: str) -> None:
        self.job, self.classes, self.val_key = job, classes, val_key
        self.best_loss = math.inf
        self.labels = np.empty(0)
        self.found: ImagePredictions | None = None

    def see(self, measures: Measures, predictions: Predictions | None) -> None:
        """Take note of an epoch."""
        loss = math.inf if measures.val_loss is None else measures.val_loss
        if predictions is None or (self.job.trial.train.keep == "best_loss" and loss >= self.best_loss):
            return
        self.best_loss, self.labels = loss, predictions.labels.numpy()
        self.found = ImagePredictions(
            measures.epoch, predictions.predicted.numpy(), predictions.true_probability.numpy(), self.val_key
        )
        write_predictions(Path(self.job.folder), self.job.name, self.found)

    def packed(self) -> str | None:
        """What the images contribute to the objective, as text."""
        if self.found is None:
            return None
        predicted, probability = self.found.predicted, self.found.true_probability
        return pack(contributions(self.job.objective, predicted, probability, self.labels, self.classes))


def _train(space: dict[str, Any]) -> None:
    """The training loop of one rank."""
    from ..data.dataset import split_key
    from ..nets.task import task_of
    from ..train.phases import Fit

    job = job_of(space)
    report: Callable[[dict[str, Any]], None] = ray.tune.report if job.workers == 1 else ray.train.report
    world = world_of(job)
    fit, dataset = Fit(job.trial, sharing_of(job), world), task_of(job.trial.phases()[0]).dataset
    counted = CountedPredictions(job, len(dataset.class_names), split_key(dataset.val))
    where = {"trial": job.name, "workers": job.workers, "device": world.device.type, "pid": os.getpid()}
    for measures in fit.epochs():
        if world.rank == 0:
            counted.see(measures, fit.predictions)
        compared = fit.is_over or measures.epoch in job.rungs
        evidence = counted.packed() if compared else None
        row = EpochRow(**dict(measures), **where, over=fit.is_over, evidence=evidence)  # type: ignore[arg-type]
        report({"row": row.model_dump_json()})
