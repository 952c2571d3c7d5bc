"""Ray for one sweep: started here or joined at an address, and left at the end."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ..recipe import Recipe, RecipeError
from .environment import local_address, train_settings
from .errors import last_line
from .interrupts import Interrupts
from .resources import Machine, this_machine, usable_cpus

PACKAGE = Path(__file__).parents[1]
"""The code that a cluster's nodes get."""
CONNECT_S = 5.0
"""How long an address may take to answer."""
ANSWER_S = 60.0
"""How long a node may take to run a task."""
NOT_STARTED = "Ray did not start on this machine, which may have too much to do or too little memory; try again"
LOOK_S = 1.0
"""Between looks at whether the head is there."""
LEAVE_S = 3.0
"""How long the main thread may take to answer; within Ray's own code it does not."""
FAILED_LOOKS = 3
"""In a row, after which it is lost."""


class Session:
    """Ray while a sweep uses it; a context manager.

    Args:
        recipe: the sweep that will run on it.
        address: of a Ray cluster; a local one is started when None, and stopped at the end.
        files: folder of a local Ray's files (see `environment.prepare`).
        logs: where its logs are copied to at the end.
        interrupts: how the sweep is ended from outside.
        leave: called from another thread when the head is gone and this one still waits for it.

    Raises:
        RecipeError: there is no cluster at the address.
    """

    def __init__(
        self,
        recipe: Recipe,
        address: str | None,
        files: Path | None,
        logs: Path,
        interrupts: Interrupts | None = None,
        leave: Callable[[], None] = lambda: None,
    ) -> None:
        self.recipe, self.address, self.files, self.logs, self.leave = recipe, address, files, logs, leave
        self.interrupts = interrupts or Interrupts()
        self.head_is_lost = False
        """Whether Ray's head process has ended while the sweep ran; nothing of Ray can be called then."""
        self._over = threading.Event()

    def __enter__(self) -> Session:
        try:
            self._start()
        except BaseException:
            with self.interrupts.held():
                self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self.interrupts.held():  # half stopped, Ray would leave processes
            self._stop()

    def machine(self) -> Machine:
        """What there is for trials: on a cluster, the nodes that answer now."""
        total = ray.cluster_resources() if self.address is None else _resources_of_nodes()
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
        if environment := self._runtime_env(nested):
            options["runtime_env"] = environment
        self._init(options)
        for name in ("ray", "ray.tune", "ray.train"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # a failed trial's error is in its row
        self.interrupts.install()
        address = ray.get_runtime_context().gcs_address
        threading.Thread(target=self._watch, args=[address], daemon=True).start()

    def _init(self, options: dict[str, Any]) -> None:
        """Start Ray, or join the cluster.

        Raises:
            RecipeError: that did not work.
        """
        try:
            ray.init(self.address or "local", **options)
        except ConnectionError:
            if self.address is not None:
                raise RecipeError(
                    f"--address={self.address}: no Ray cluster lets this process in; start one with ray up or "
                    "ray start --head, and where it asks for a token, set RAY_AUTH_MODE=token"
                ) from None
            raise RecipeError(NOT_STARTED) from None
        except Exception as error:  # Ray raises nothing more special when a part of it is not there in time
            if self.address is not None:
                raise
            raise RecipeError(f"{NOT_STARTED} ({last_line(error)})") from None

    def _runtime_env(self, nested: bool) -> dict[str, Any]:
        """What the processes of trials find: on a cluster this package's code and Ray Train's settings, and their
        cluster."""
        found: dict[str, Any] = {}
        if self.address is not None:
            found |= {"py_modules": [str(PACKAGE)], "env_vars": train_settings()}
        if nested and self.address != "auto":
            # the helpers of a trial's Ray Train run look for their cluster by this, else for any on the machine
            found["env_vars"] = found.get("env_vars", {}) | {"RAY_ADDRESS": self.address or local_address()}
        return found

    def _stop(self) -> None:
        self._over.set()
        if self.head_is_lost:
            atexit.unregister(ray.shutdown)  # it would wait a minute for the head
        else:
            ray.shutdown()
        if self.files is not None:
            with suppress(OSError):
                _copy_files(self.files / "ray" / "session_latest" / "logs", self.logs)

    def _watch(self, address: str) -> None:
        """Interrupt the sweep when the head is gone: Ray itself would wait a minute and then end the process."""
        failures = 0
        while not self._over.wait(LOOK_S):
            failures = 0 if _answers(address) else failures + 1
            if failures == FAILED_LOOKS:
                self.head_is_lost = True
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                if not self._over.wait(LEAVE_S):
                    self.leave()
                return


def _resources_of_nodes() -> Counter[str]:
    """Resources of the nodes that run a task. Ray takes a while to notice that one is gone."""
    nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    tasks = {_answer.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(): node
             for node in nodes}  # fmt: skip
    total: Counter[str] = Counter()
    for task in ray.wait(list(tasks), num_returns=len(tasks), timeout=ANSWER_S)[0]:
        with suppress(ray.exceptions.RayError):
            ray.get(task)
            total.update(nodes[tasks[task]])
    return total


@ray.remote(num_cpus=0, max_retries=0)
def _answer() -> None:
    """A node that runs this is there."""


def check_address(address: str) -> None:
    """Raise RecipeError unless something listens at HOST:PORT: Ray itself would try for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise RecipeError(f"--address={address} is not auto or HOST:PORT, such as 10.0.0.1:6379")
    try:
        _connect(address)
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


def _answers(address: str) -> bool:
    """Whether something listens at HOST:PORT."""
    try:
        _connect(address)
    except OSError:
        return False
    return True


def _connect(address: str) -> None:
    """Open and close a connection to HOST:PORT; raises OSError if nothing listens there."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
