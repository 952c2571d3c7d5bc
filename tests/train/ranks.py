"""Helper: trials that several processes train together, each of a small network on a few images."""

import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from raysweep.recipe import Features, Trial
from raysweep.train.ddp import World
from raysweep.train.phases import Fit, Sharing
from tests.features import small_trials
from tests.features.processes import Processes

GIVE_UP = timedelta(seconds=20)
"""When ranks wait for each other in vain."""
Case = Callable[[World], Any]


def trial_of(backbone: str, depth: Any, **fields: Any) -> Trial:
    """Ten classes, flips; plain gradient descent, as adam would make much of the least difference."""
    common = {"dataset": "fake:10", "optimizer": "sgd", "augment": ["hflip"]}
    return small_trials.trial_of(backbone, depth, **common | fields)


def trained(trial: Trial, refit: list[int] | None = None) -> Case:
    """A case: the rows of a trial without their times, predictions after every epoch, tensors after the last."""
    return partial(_trained, trial, refit)


def _trained(trial: Trial, refit: list[int] | None, world: World) -> dict[str, Any]:
    fit = Fit(trial, Sharing(Features(cache="never")), world, refit=refit)
    rows, predictions = [], []
    for measures in fit.epochs():
        rows.append(measures.model_dump(exclude={"seconds", "val_by_step"}, exclude_none=True))
        predictions.append(None if fit.predictions is None else asdict(fit.predictions))
    return {"rows": rows, "predictions": predictions, "tensors": fit.network.state()}


def go_through(processes: Processes, size: int, folder: Path, cases: Mapping[str, Case], device: str = "cpu") -> None:
    """Let so many processes go through cases, and leave what each finds in the folder."""
    running = [processes.start(_rank, rank, size, folder, dict(cases), device) for rank in range(size)]
    for one in running:
        processes.end(one, seconds=400)


def results_of(folder: Path, size: int, name: str) -> list[Any]:
    """What each rank found in a case."""
    missing = [rank for rank in range(size) if not _path(folder, size, rank, name).is_file()]
    assert not missing, f"ranks {missing} were killed in this case or an earlier one"
    every = [torch.load(_path(folder, size, rank, name), weights_only=True) for rank in range(size)]
    failures = [one for one in every if isinstance(one, str)]
    assert not failures, failures[0]
    return every


def _path(folder: Path, size: int, rank: int, name: str) -> Path:
    return folder / f"{name}, {rank} of {size}.pt"


def _rank(rank: int, size: int, folder: Path, cases: dict[str, Case], device: str) -> None:
    """One of the ranks; a case that raises spoils no other."""
    torch.set_num_threads(1)
    where = torch.device("cuda", rank) if device == "cuda" else torch.device(device)
    if device == "cuda":
        torch.cuda.set_device(where)
    for name, case in cases.items():
        meet = dist.FileStore(str(folder / f"{name}, {size} meet"), size)
        backend = "nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, store=meet, rank=rank, world_size=size, timeout=GIVE_UP)
        try:
            result = case(World(rank, size, where))
        except Exception:
            result = traceback.format_exc()
        torch.save(result, _path(folder, size, rank, name))
        dist.destroy_process_group()
