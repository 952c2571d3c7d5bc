"""A command timed as a whole: wall time, and CPU time and memory of all processes that it starts.

Ray's processes do not stay children of the command, and some are never waited for, so that
the operating system's own account of children misses them. Here every process of the command is known by
a word in its environment, and looked at a few times a second.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import psutil

MARK = "RAYSWEEP_BENCHMARK"
EVERY_S = 0.2


LANES = ("ray::run_trial", "ray::ImplicitFunc", "ray::RayTrain")
"""How the processes that train call themselves."""


@dataclass(frozen=True)
class Used:
    """What a command took."""

    wall_s: float
    cpu_s: float
    """User and system time of all its processes."""
    peak_gb: float
    """Proportional set size of all its processes together."""


def timed(command: Sequence[str], environment: Mapping[str, str] | None = None, memory: bool = False) -> Used:
    """Run a command to its end.

    Args:
        command: and its arguments; its output is thrown away.
        environment: variables beside those of this process.
        memory: measure memory too, which costs the machine some time itself.

    Raises:
        CalledProcessError: the command failed.
    """
    watch = Watch(memory)
    started = time.perf_counter()
    process = subprocess.Popen(
        command, env={**os.environ, **(environment or {}), **watch.environment}, stdout=subprocess.DEVNULL
    )
    with watch:
        status = process.wait()
    wall = time.perf_counter() - started
    if status:
        raise subprocess.CalledProcessError(status, command)
    return Used(wall, watch.cpu_s, watch.peak_bytes / 1e9)


class Watch:
    """Follows the processes that are started with its mark, in a thread.

    Args:
        memory: measure memory too.
        every_s: how often to look.
    """

    def __init__(self, memory: bool = False, every_s: float = EVERY_S) -> None:
        self.mark, self.memory, self.every_s = uuid.uuid4().hex, memory, every_s
        self.peak_bytes = 0
        self.history: list[tuple[float, float]] = []
        """Of each look: `time.time()`, and CPU-seconds until then."""
        self._seen: dict[tuple[int, float], float] = {}
        self._ours: dict[int, psutil.Process] = {}
        self._others: set[tuple[int, float]] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    @property
    def environment(self) -> dict[str, str]:
        """What a process is to be started with to be followed, and with it all that it starts."""
        return {MARK: self.mark}

    @property
    def cpu_s(self) -> float:
        """User and system time of all processes until the last look."""
        return sum(self._seen.values())

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._over.wait(self.every_s):
            self._look()
        self._look()

    def _look(self) -> None:
        total = 0
        for process in psutil.process_iter(["create_time"]):
            key = (process.pid, process.info["create_time"])
            if key in self._others:
                continue
            try:
                if key not in self._seen and process.environ().get(MARK) != self.mark:
                    self._others.add(key)
                    continue
                times = process.cpu_times()
                self._seen[key] = times.user + times.system
                if self.memory:
                    total += process.memory_full_info().pss
            except psutil.Error:
                with suppress(KeyError):
                    self._seen[key] += 0  # it ended: what was seen last counts
        self.peak_bytes = max(self.peak_bytes, total)
        self.history.append((time.time(), self.cpu_s))


def lanes_of(pid: int) -> list[psutil.Process]:
    """The processes below a sweep's that train."""
    return [one for one in psutil.Process(pid).children(recursive=True) if _name(one).startswith(LANES)]


def _name(process: psutil.Process) -> str:
    """A process's command line; empty when it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
