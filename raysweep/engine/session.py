"""Where a sweep runs: Ray on this machine or at an address, and what there is for a trial.

Starting Ray and stopping it are seconds of waiting, so they happen in a thread beside the
plan and the report.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

from raysweep import forkserver
from raysweep.forkserver import ForkServer
from raysweep.head import Head
from raysweep.recipe import Recipe, RecipeError
from raysweep.startup import quick_imports

os.environ.update(
    {
        # read when Ray is imported: our ledger replaces Tune's loggers, our handler its Ctrl-C; relative paths stay
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        # read by glibc as a process of Ray's starts: its sixty threads need no heaps of their own
        "MALLOC_ARENA_MAX": "1",
        # read by Ray's daemon: workers that it starts unasked are no forks, and nobody would use them
        "RAY_prestart_worker_first_driver": "0",
    }
)
MOST_FINAL_WORKERS = 8
PRELOADED = (
    "torch",
    "torchvision",
    "raysweep.phases",
    *("pandas", "pyarrow.fs", "pyarrow.parquet", "requests", "fsspec", "jsonschema", "google.protobuf"),  # Ray's own
)
"""What Ray's worker processes have when they start, beside the library of the networks."""

CONNECT_S = 5.0
"""How long an address may take to answer."""


@dataclass(frozen=True)
class Machine:
    """What a trial may occupy."""

    cpus: int
    gpus: int

    def gpus_per_worker(self, recipe: Recipe) -> float:
        """GPUs of one worker, `auto` resolved."""
        asked = recipe.resources.gpus_per_worker
        return float(min(1, self.gpus)) if asked == "auto" else float(asked)

    def check(self, recipe: Recipe) -> None:
        """Raise RecipeError if a trial, or the final fit, can never be placed."""
        asked, gpus = recipe.resources, self.gpus_per_worker(recipe)
        if asked.workers_per_trial > 1 and 0 < gpus < 1:
            raise RecipeError(
                f"resources.gpus_per_worker={gpus:g} with workers_per_trial={asked.workers_per_trial}: workers that "
                "train together cannot share a GPU; use workers_per_trial=1, or a whole GPU a worker"
            )
        for field, workers in (
            ("resources.workers_per_trial", asked.workers_per_trial),
            ("final.workers", recipe.final.workers),
        ):
            need = (workers or 1) * asked.cpus_per_worker
            if need > self.cpus:
                raise RecipeError(
                    f"{field}={workers} with resources.cpus_per_worker={asked.cpus_per_worker} needs {need} CPUs, but "
                    f"there are {self.cpus}; ask for fewer, or run on a cluster with --address"
                )
            if (workers or 1) * gpus > self.gpus:
                raise RecipeError(
                    f"{field}={workers} with resources.gpus_per_worker={gpus:g} needs {(workers or 1) * gpus:g} GPUs, "
                    f"but there are {self.gpus}; ask for fewer, or set resources.gpus_per_worker=0"
                )

    def lanes(self, recipe: Recipe) -> int:
        """How many trials run at a time."""
        asked, gpus = recipe.resources, self.gpus_per_worker(recipe)
        fit = self.cpus // (asked.workers_per_trial * asked.cpus_per_worker)
        if gpus:
            fit = min(fit, int(self.gpus / (asked.workers_per_trial * gpus)))
        return max(1, min(fit, asked.max_concurrent or fit))

    def final_workers(self, recipe: Recipe) -> int:
        """Ranks of the final fit."""
        if recipe.final.workers:
            return recipe.final.workers
        gpus = self.gpus_per_worker(recipe)
        by_cpu = self.cpus // recipe.resources.cpus_per_worker
        return max(1, min(MOST_FINAL_WORKERS, int(self.gpus // max(1, gpus)) if gpus else by_cpu, by_cpu))


def this_machine() -> Machine:
    """CPUs and GPUs that this process may use."""
    import torch

    return Machine(_cpus(), torch.cuda.device_count())


class Cluster:
    """Ray for one sweep; use as a context manager, within which it starts at once and beside other work.

    Args:
        recipe: the sweep that will run on it.
        address: of a Ray cluster; a local one is started when None, and stopped at the end.
    """

    def __init__(self, recipe: Recipe, address: str | None = None) -> None:
        self.recipe, self.address = recipe, address
        self._side = ThreadPoolExecutor(1, thread_name_prefix="ray")
        self._logs: Path | None = None
        self._head: Head | None = None
        self._forks: ForkServer | None = None
        self._started: Future[Machine]
        self._stopped: Future[None] | None = None

    def __enter__(self) -> Cluster:
        if self.address not in (None, "auto"):
            check_address(str(self.address))
        if self.address is None and forkserver.is_sound():
            for name, value in _private().items():
                os.environ.setdefault(name, value)
            self._head = Head(**self._local())
            try:
                _import_for_workers(self.recipe)
                self._forks = ForkServer()
            except BaseException:
                self._head.stop()
                raise
        self._started = self._side.submit(self._start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _uninterrupted():  # half started or half stopped, Ray would leave processes
            self.stop()
            self._side.shutdown(wait=True)
            if self._forks is not None:
                self._forks.stop()

    def machine(self) -> Machine:
        """What a trial may occupy; on this machine without GPUs known before Ray is up.

        Raises:
            RecipeError: there is no cluster at the address.
        """
        if self.address is not None:
            return self._started.result()
        here = this_machine()
        return Machine(here.cpus, min(here.gpus, self._started.result().gpus)) if here.gpus else here

    def makes_features(self) -> bool:
        """Whether features are made by Ray's processes, before the trials, and not by threads of this one.

        On a machine without GPUs threads make them while Ray and its lanes start.
        """
        return self.address is not None or self.machine().gpus_per_worker(self.recipe) > 0

    def wait(self) -> None:
        """Wait until Ray is up."""
        self._started.result()

    def stop(self, folder: Path | None = None) -> None:
        """Begin to stop Ray, if that was not done before; its logs are copied to the folder."""
        if self._stopped is None:
            import ray

            with suppress(Exception):
                self._started.result()
            ray.shutdown()  # beside no other work: freeing what is Ray's meanwhile ends the process
            self._stopped = self._side.submit(self._stop, folder)

    def _local(self) -> dict[str, Any]:
        # without the dashboard a stopped trial would keep the resources of its workers
        return {"num_cpus": _cpus(), "include_dashboard": self.recipe.resources.workers_per_trial > 1}

    def _start(self) -> Machine:
        import ray

        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self._forks is not None:
            options["runtime_env"] = {"py_executable": self._forks.command()}
        if self._head is None and self.address is None:
            options |= self._local()
        try:
            ray.init(self._head.address() if self._head else self.address or "local", **options)
        except ConnectionError:
            if self.address is None:
                raise
            raise RecipeError(
                f"--address={self.address}: no Ray cluster lets this process in; start one with ray up or "
                "ray start --head, and where it asks for a token, set RAY_AUTH_MODE=token"
            ) from None
        for name in ("ray", "ray.tune", "ray.train"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # a failed trial's error is in its row
        self._logs = Path(ray._private.worker._global_node.get_logs_dir_path())  # type: ignore[attr-defined]
        total = ray.cluster_resources()
        return Machine(int(total.get("CPU", 0)), int(total.get("GPU", 0)))

    def _stop(self, folder: Path | None) -> None:
        if self._logs and self.address is None and folder is not None:
            with suppress(OSError, shutil.Error):
                shutil.copytree(self._logs, folder / "ray" / "logs", dirs_exist_ok=True, ignore_dangling_symlinks=True)
        if self._head is not None:
            self._head.stop()  # which removes them


def _private() -> dict[str, str]:
    """What Ray reads as it starts to listen on the loopback alone, and there to none but this sweep's processes."""
    return {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's name for: this machine has no address but 127.0.0.1
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def _import_for_workers(recipe: Recipe) -> None:
    """Import what the workers need and Ray's own library does not have to be loaded for."""
    with quick_imports():  # what they make is set apart: forks that collect would copy every page
        for name in PRELOADED:
            import_module(name)
        from raysweep import zoo

        for backbone in {name for block in recipe.grid for name in block.backbone}:
            with suppress(RecipeError):  # the plan says so
                zoo.check(backbone)


def check_address(address: str) -> None:
    """Raise RecipeError unless something listens at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise RecipeError(f"--address={address} is not auto or HOST:PORT, such as 10.0.0.1:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise RecipeError(f"--address={address}: nothing answers there ({error})") from None


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let the block end although Ctrl-C is pressed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
