"""One configuration as a Ray Train run inside a Ray Tune trial.

With one worker the training loop runs in the trial's own process (Ray Train's local
mode), which Tune keeps warm for the next trial; with more it is distributed data parallel
in worker processes of its own. Rank 0's rows reach Tune either way.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.tune

from raysweep.startup import free_memory, keep_freed_memory, quick_imports

MOST_CONTROLLER_FAILURES = 3
"""Failed starts of a trial's workers after which the trial has failed; Ray's own default is to try for ever."""

POLL_S = 0.05
"""Between looks whether the features are there."""

Report = Callable[[dict[str, Any]], None]


def run(space: dict[str, Any]) -> None:
    """The function that Ray Tune calls for a trial.

    Args:
        space: under the key `given`: `trial` (a `recipe.Trial` as plain values), `name`, `workers`, `cpus`,
            `gpus` (of a worker), `storage` (folder for Ray Train's own files), `features`
            (`recipe.Features` as plain values), `stored` (names of the phases that read stored features) and
            `stored_later` (the file to wait for where `stored` is None).
    """
    config = space["given"]
    workers = config["workers"]
    with quick_imports():
        from ray.train.torch import TorchTrainer

        if workers == 1:  # what `_loop` needs, and a process that only directs workers does not
            import torchvision  # noqa: F401

            import raysweep.phases  # noqa: F401
    if workers == 1:
        trainer = TorchTrainer(_loop, train_loop_config=config, scaling_config=ray.train.ScalingConfig(num_workers=0))
    else:
        from ray.tune.integration.ray_train import TuneReportCallback

        _name_this_cluster()
        trainer = TorchTrainer(
            _loop,
            train_loop_config=config,
            scaling_config=scaling(workers, config["cpus"], config["gpus"]),
            run_config=ray.train.RunConfig(
                name=config["name"],
                storage_path=config["storage"],
                callbacks=[TuneReportCallback()],  # type: ignore[list-item]
                failure_config=ray.train.FailureConfig(controller_failure_limit=MOST_CONTROLLER_FAILURES),  # type: ignore[call-arg]
            ),
        )
    try:
        trainer.fit()
    finally:
        free_memory()  # or a lane would grow by what the trials before left behind


def _name_this_cluster() -> None:
    """Tell the helpers of a Ray Train run which cluster is theirs.

    The one that frees the workers of a stopped trial looks for a cluster on the machine, and
    where there are several takes the newest: the resources would then never come free.
    """
    from ray.train.v2._internal import constants

    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    constants.ENV_VARS_TO_PROPAGATE.add("RAY_ADDRESS")


def scaling(workers: int, cpus: int, gpus: float) -> ray.train.ScalingConfig:
    """So many workers, each with so many CPUs and GPUs."""
    resources = {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}
    return ray.train.ScalingConfig(num_workers=workers, use_gpu=gpus > 0, resources_per_worker=resources)


@contextlib.contextmanager
def world(cpus: int, gpus: float) -> Iterator[Any]:
    """This process among the ranks of its Ray Train run, with its device and threads set."""
    import torch
    import torch.distributed as dist

    from raysweep.training import World

    torch.set_num_threads(cpus)
    keep_freed_memory()
    if gpus and not torch.cuda.is_available():
        raise RuntimeError("the trial was given a GPU but torch sees none: install torch for this machine's CUDA")
    group = dist.is_initialized()  # Ray Train makes one for its workers, and none in the trial's own process
    device = torch.device("cpu") if not gpus else ray.train.torch.get_device() if group else torch.device("cuda")
    yield World(dist.get_rank(), dist.get_world_size(), device) if group else World(device=device)


def sharing(config: dict[str, Any]) -> Any:
    """What a trial shares with others (`phases.Sharing`), from what it was given."""
    from raysweep.phases import Sharing
    from raysweep.recipe import Features

    features = Features.model_validate(config["features"])
    return Sharing(features, frozenset(stored_phases(config)), Path(config["storage"]) / "phases")


def stored_phases(config: dict[str, Any]) -> list[str]:
    """Names of the phases that read stored features; waits while the sweep still makes them.

    Raises:
        RuntimeError: the features could not be made.
    """
    if config["stored"] is not None:
        return config["stored"]
    path = Path(config["stored_later"])
    while not path.exists():
        time.sleep(POLL_S)
    record = json.loads(path.read_text(encoding="utf-8"))
    if "error" in record:
        raise RuntimeError(f"the features could not be made: {record['error']}")
    return record["stored"]


def _loop(config: dict[str, Any]) -> None:
    """The training loop of one rank."""
    from raysweep import assembly
    from raysweep.phases import Fit
    from raysweep.recipe import Trial

    trial = Trial.model_validate(config["trial"])
    report: Report = ray.tune.report if config["workers"] == 1 else ray.train.report
    with world(config["cpus"], config["gpus"]) as here:
        assembly.cut_of(trial.phases()[0])  # made while the features still are, and kept
        for row in Fit(trial, sharing(config), here).rows():
            report(row | {"pid": os.getpid(), "device": here.device.type})
