"""Cleans up after a sweep, however it ended: `python -m raysweep.engine.reaper FOLDER`.

It waits until its standard input ends, which happens when the sweep's process closes it or
dies, by SIGKILL too. Then it ends what is left of the sweep's own Ray and removes its folder.
It knows Ray's processes by that folder: it is in their environment, or they have a file in it open.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Container
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import psutil

VARIABLE = "RAY_TMPDIR"
"""Names the folder in the environment of the processes of the sweep's Ray."""
PATIENCE_S = 3.0
"""How long processes may take to end by themselves."""


class Reaper:
    """A process that cleans up a folder and its Ray when the block ends or this process dies; a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Reaper:
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "raysweep.engine.reaper", str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the sweep
            cwd="/",
            env=_environment(),
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()  # closes its input


def reap(folder: Path, sweep: int | None = None) -> None:
    """End the processes of a sweep's Ray, but not the sweep's own with this id, and remove its folder."""
    deadline = time.monotonic() + PATIENCE_S
    while (left := _processes(folder, {os.getpid(), sweep})) and time.monotonic() < deadline:
        time.sleep(0.1)
    for process in left:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=PATIENCE_S)
    shutil.rmtree(folder, ignore_errors=True)


def _processes(folder: Path, but: Container[int | None]) -> list[psutil.Process]:
    """The processes of the sweep's Ray, without some by their ids."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid not in but and process.status() != psutil.STATUS_ZOMBIE and _is_of(process, folder):
                found.append(process)
    return found


def _is_of(process: psutil.Process, folder: Path) -> bool:
    """Whether a process has the folder in its environment, or a file below it open.

    Some of Ray's processes change their title, which overwrites what can be read of their environment.
    """
    if process.environ().get(VARIABLE) == str(folder):
        return True
    return any(Path(file.path).is_relative_to(folder) for file in process.open_files())


def _environment() -> dict[str, str]:
    """This process's environment without what would make the reaper one of its own."""
    package = Path(__file__).parents[2]
    path = os.pathsep.join(filter(None, (str(package), os.environ.get("PYTHONPATH"))))
    return {key: value for key, value in os.environ.items() if key != VARIABLE} | {"PYTHONPATH": path}


if __name__ == "__main__":
    sweep = os.getppid()
    sys.stdin.read()
    reap(Path(sys.argv[1]), sweep)
