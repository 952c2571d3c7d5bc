"""What the processes of a trial do: its ranks on their devices, its rows to the driver.

With one worker the training loop runs in the trial's own process (Ray Train's local
mode), which Tune keeps warm for the next trial; with more it is distributed data parallel
in worker processes of its own. Rank 0's rows reach Tune either way.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.exceptions
import ray.train
import ray.tune

from ..files import NO_ROOM
from ..sweep.rows import Report, TrialJob
from .errors import what_was_lost
from .storage import CHECKPOINTS, PROBLEM, Storage

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

    from ..train.ddp import World
    from ..train.phases import Sharing

REPORT = "report"
"""Key of what a trial reports to Tune."""
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
        trainer = _nested(space, job)
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:  # its workers were lost too often
        ray.tune.report({REPORT: Report(problem=what_was_lost(str(error))).model_dump_json()})
    finally:
        _empty_memory()


def _empty_memory() -> None:
    """Give back what the ended trial leaves, before the next one of this lane or another fills the memory."""
    import torch

    gc.collect()  # it is in cycles
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@cache
def _freeze_imports() -> None:
    """Leave what is imported by now out of garbage collection. It is never freed, and looking through its objects
    takes 0.3 s after every trial."""
    gc.freeze()


def _nested(space: dict[str, Any], job: TrialJob) -> TorchTrainer:
    """A trainer with workers of its own, which start again when one of them is lost."""
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    return TorchTrainer(
        _train,
        train_loop_config=space,
        scaling_config=scaling(job),
        run_config=ray.train.RunConfig(
            name=job.name,
            storage_path=job.ray_folder,
            callbacks=[TuneReportCallback()],  # type: ignore[list-item]
            failure_config=failures(job),
        ),
    )


def failures(job: TrialJob) -> ray.train.FailureConfig:
    """How often a job's workers start again."""
    return ray.train.FailureConfig(
        max_failures=job.max_failures,
        controller_failure_limit=MOST_CONTROLLER_FAILURES,  # type: ignore[call-arg]
    )


def job_of(space: dict[str, Any]) -> TrialJob:
    """The job that Train hands on, as JSON under `job`."""
    return TrialJob.model_validate_json(space["job"])


def report_of(result: dict[str, Any]) -> Report:
    """What a trial reported to Tune."""
    return Report.model_validate_json(result[REPORT])


def scaling(job: TrialJob) -> ray.train.ScalingConfig:
    """A job's workers, each with its CPUs and GPUs."""
    resources = {"CPU": job.cpus, "GPU": job.gpus} if job.gpus else {"CPU": job.cpus}
    return ray.train.ScalingConfig(num_workers=job.workers, use_gpu=job.gpus > 0, resources_per_worker=resources)


def world_of(job: TrialJob) -> World:
    """This process among the ranks of its Ray Train run, with its device and threads set."""
    import torch
    import torch.distributed as dist

    from ..nets.cpu import compute_on
    from ..train.ddp import World

    compute_on(job.cpus, gpu=job.gpus > 0)
    if job.gpus and not torch.cuda.is_available():
        raise RuntimeError("the trial was given a GPU but torch sees none: install torch for this machine's CUDA")
    group = dist.is_initialized()  # Ray Train makes one for its workers, and none in the trial's own process
    device = torch.device("cpu") if not job.gpus else ray.train.torch.get_device() if group else torch.device("cuda")
    rank, size = (dist.get_rank(), dist.get_world_size()) if group else (0, 1)
    return World(rank, size, device, gpu_share=min(1.0, job.gpus) if job.gpus else 1.0)


def sharing_of(job: TrialJob) -> Sharing:
    """What a job's trial shares with others."""
    from ..train.phases import Sharing

    folder = None if "://" in job.ray_folder else Path(job.ray_folder) / "phases"
    return Sharing(job.features, frozenset(job.stored), folder)


def _train(space: dict[str, Any]) -> None:
    """The training loop of one rank. What fails for the trial's own reason is reported, and not tried again."""
    from ..nets.task import expect

    job = job_of(space)
    world = world_of(job)
    expect(job.snapshots)
    report = _reporter(job)
    known = _known_problem(job) if world.size > 1 else None
    if known is not None:
        report(known)
        return
    try:
        _epochs(job, world, report)
    except Exception as error:
        found = _own_problem(error)
        if found is None:
            raise
        if world.size > 1 and not found.diverged:
            # the other ranks may be in the middle of a step: all start again, and end by what is written here
            Storage(job.folder).write(_problem_file(job), found.model_dump_json().encode())
            raise
        report(found)


def _reporter(job: TrialJob) -> Callable[[Report], None]:
    send: Callable[[dict[str, Any]], None] = ray.tune.report if job.workers == 1 else ray.train.report

    def report(one: Report) -> None:
        send({REPORT: one.model_dump_json()})

    return report


def _epochs(job: TrialJob, world: World, report: Callable[[Report], None]) -> None:
    """Train from where the trial stands, and report every epoch."""
    from ..data.dataset import split_key
    from ..nets.task import task_of
    from ..train.phases import Fit, Saving
    from .saving import CountedPredictions, Saver

    _freeze_imports()
    dataset = task_of(job.trial.phases()[0]).dataset
    counted = CountedPredictions(job, Storage(job.folder), len(dataset.class_names), split_key(dataset.val))
    saver = Saver(job, world, counted)
    saved = saver.read()
    for row in list(saver.rows):
        report(Report(row=row))
    fit = Fit(job.trial, sharing_of(job), world, saved=saved, saving=Saving(saver.due, saver.keep))
    for measures in fit.epochs():
        if world.rank == 0:
            counted.see(measures, fit.predictions)
        compared = fit.is_over or measures.epoch in job.rungs
        row = saver.take(fit, measures, counted.packed() if compared else None)
        report(Report(row=row, **saver.told()))


def _own_problem(error: Exception) -> Report | None:
    """What to report of an error of the trial's own; None of one that another try may not meet."""
    import torch

    from ..train.loop import DivergedError

    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, DivergedError):
        return Report(problem=text, diverged=True)
    if isinstance(error, torch.OutOfMemoryError):
        return Report(problem=f"the device's memory is too small; lower train.batch_size ({text[:200]})")
    if isinstance(error, OSError):
        return Report(problem=f"there is no room: {text}") if error.errno in NO_ROOM else None
    if isinstance(error, ray.exceptions.RayError) or "NCCL" in text or "Gloo" in text or "gloo" in text:
        return None
    return Report(problem=f"{type(error).__name__}: {text}")


def _problem_file(job: TrialJob) -> str:
    return f"{CHECKPOINTS}/{job.name}/{PROBLEM}"


def _known_problem(job: TrialJob) -> Report | None:
    """What ended an earlier attempt for a reason of the trial's own."""
    try:
        return Report.model_validate_json(Storage(job.folder).read(_problem_file(job)))
    except (OSError, ValueError):
        return None
