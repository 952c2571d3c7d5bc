"""Ray's worker processes as forks of this one, from when it had imported torch and nothing had begun.

What a worker imports takes seconds of CPU and 400 MB; a fork has it at once and shares
the memory. `ForkServer` is such a fork, which forks again whenever it is asked to. Ray
starts its workers by a command that asks (`py_executable` of a runtime environment):

    python forkserver.py SOCKET SCRIPT ARGUMENT...    run a Python script in a fork

Ray itself must not be imported before a fork, as its library reads the worker's
environment when it is loaded. The idea is multiprocessing's start method of that name,
which cannot run a script of others.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

STANDARD = (0, 1, 2)
"""Input, output and errors, which a fork takes over from the process that asked."""

FORKED = b"+"


def is_sound() -> bool:
    """Whether this process may be forked: on Linux, while nothing has started threads or imported Ray."""
    import threading

    return sys.platform == "linux" and threading.active_count() == 1 and not {"torch", "ray"} & set(sys.modules)


class ForkServer:
    """A fork of this process as it is now that forks whenever it is asked to, and ends with this process."""

    def __init__(self) -> None:
        import tempfile

        self._folder = tempfile.TemporaryDirectory(prefix="raysweep-")  # nobody else may enter
        self._address = f"{self._folder.name}/forkserver"
        self._process = 0
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self._address)
            listener.listen()
            watched, self._alive = os.pipe()  # its other end is closed when this process ends
            self._process = os.fork()
            if not self._process:
                _serve_until(watched, listener)
            os.close(watched)

    def command(self) -> str:
        """What to run before a Python script and its arguments, instead of Python, as a shell reads it."""
        return shlex.join([sys.executable, "-I", "-S", __file__, self._address])

    def stop(self) -> None:
        """End the server; its forks live on."""
        os.close(self._alive)
        os.waitpid(self._process, 0)
        self._folder.cleanup()


def ask(address: str, arguments: Sequence[str]) -> None:
    """Run a script in a fork, or in a new Python process in place of this one where no server answers."""
    asked = {
        "arguments": arguments,
        "environment": dict(os.environ),
        "folder": os.getcwd(),  # noqa: PTH109 - pathlib is slow to import
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    }
    with suppress(OSError), socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        socket.send_fds(server, [b"?"], STANDARD)
        server.sendall(json.dumps(asked).encode())
        server.shutdown(socket.SHUT_WR)
        if server.recv(1) == FORKED:
            return
    os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606


def _serve_until(watched: int, listener: socket.socket) -> NoReturn:
    """Fork for everyone who asks, until the other end of the pipe is closed."""
    import select

    try:
        os.setsid()  # Ctrl-C is for the process that this was
        _close_all_but(watched, listener.fileno())  # pipes of the process that this was end with that
        null = os.open(os.devnull, os.O_RDWR)
        for standard in STANDARD:
            os.dup2(null, standard)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
        while watched not in select.select([listener.fileno(), watched], [], [])[0]:
            connection, _ = listener.accept()
            with connection, suppress(OSError, ValueError):
                _, files, _, _ = socket.recv_fds(connection, 1, len(STANDARD))
                with connection.makefile("rb") as sent:
                    asked = json.loads(sent.read())
                if os.fork() == 0:
                    os.close(watched)
                    listener.close()
                    connection.sendall(FORKED)
                    connection.close()
                    _become(asked, files)
                for file in files:
                    os.close(file)
    finally:
        os._exit(0)


def _close_all_but(*files: int) -> None:
    kept = {*STANDARD, *files}
    for file in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208
        with suppress(OSError):  # the list's own is closed already
            if file not in kept:
                os.close(file)


def _become(asked: dict[str, Any], files: Sequence[int]) -> NoReturn:
    """Be the process that was asked for, to its end."""
    import runpy
    import traceback

    status: Any = 1
    try:
        for file, standard in zip(files, STANDARD, strict=True):
            os.dup2(file, standard)
            os.close(file)
        os.setpgid(0, 0)  # Ray ends a worker with its whole process group
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, asked["blocked"])
        os.environ.clear()
        os.environ.update(asked["environment"])
        os.chdir(asked["folder"])
        sys.argv = list(asked["arguments"])
        runpy.run_path(sys.argv[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else int(status is not None))


if __name__ == "__main__":
    ask(sys.argv[1], sys.argv[2:])
