"""Ray for one sweep: started here or joined at an address, and left at the end."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import ray

from ..recipe import Recipe, RecipeError
from .environment import local_address
from .resources import Machine, this_machine, usable_cpus

CONNECT_S = 5.0
"""How long an address may take to answer."""


class Session:
    """Ray while a sweep uses it; a context manager.

    Args:
        recipe: the sweep that will run on it.
        address: of a Ray cluster; a local one is started when None, and stopped at the end.
        files: folder of a local Ray's files (see `environment.prepare`), removed at the end.
        logs: where its logs are copied to first.

    Raises:
        RecipeError: there is no cluster at the address.
    """

    def __init__(self, recipe: Recipe, address: str | None, files: Path | None, logs: Path) -> None:
        self.recipe, self.address, self.files, self.logs = recipe, address, files, logs

    def __enter__(self) -> Session:
        try:
            self._start()
        except BaseException:
            with _uninterrupted():
                self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _uninterrupted():  # half stopped, Ray would leave processes
            self._stop()

    def machine(self) -> Machine:
        """What there is for trials."""
        total = ray.cluster_resources()
        gpus = int(total.get("GPU", 0))
        if gpus and self.address is None:
            gpus = min(gpus, this_machine().gpus)  # torch may be built without CUDA
        return Machine(int(total.get("CPU", 0)), gpus)

    def _start(self) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        nested = self.recipe.resources.workers_per_trial > 1
        if self.address is None:
            # without the dashboard a stopped trial would keep the resources of its workers
            options |= {"num_cpus": usable_cpus(), "include_dashboard": nested}
        if nested and self.address != "auto":
            # the helpers of a trial's Ray Train run look for their cluster by this, else for any on the machine
            options["runtime_env"] = {"env_vars": {"RAY_ADDRESS": self.address or local_address()}}
        try:
            ray.init(self.address or "local", **options)
        except ConnectionError:
            if self.address is None:
                raise
            raise RecipeError(
                f"--address={self.address}: no Ray cluster lets this process in; start one with ray up or "
                "ray start --head, and where it asks for a token, set RAY_AUTH_MODE=token"
            ) from None
        for name in ("ray", "ray.tune", "ray.train"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # a failed trial's error is in its row

    def _stop(self) -> None:
        ray.shutdown()
        if self.files is not None:
            with suppress(OSError):
                _copy_files(self.files / "ray" / "session_latest" / "logs", self.logs)
            shutil.rmtree(self.files, ignore_errors=True)


def check_address(address: str) -> None:
    """Raise RecipeError unless something listens at HOST:PORT: Ray itself would try for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise RecipeError(f"--address={address} is not auto or HOST:PORT, such as 10.0.0.1:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise RecipeError(f"--address={address}: nothing answers there ({error})") from None


def _copy_files(source: Path, target: Path) -> None:
    """Copy a folder's regular files; links are not followed."""
    for folder, _, names in os.walk(source):
        there = target / Path(folder).relative_to(source)
        there.mkdir(parents=True, exist_ok=True)
        for name in names:
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink():
                shutil.copyfile(path, there / name)


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
