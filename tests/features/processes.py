"""Helper: other processes, which have nothing of the one that runs the tests: neither its memory nor its locks."""

import multiprocessing
from collections.abc import Callable
from typing import Any


class Processes:
    """Starts and ends processes; events and barriers to meet them at are those of `context`."""

    def __init__(self, method: str) -> None:
        """`method` is spawn, or forkserver for processes that find what they import loaded."""
        self.context: Any = multiprocessing.get_context(method)
        if method == "forkserver":
            self.context.set_forkserver_preload(["pytest", "timm", "torch._dynamo", "raysweep.train.phases"])
            self.end(self.start(int))  # the server takes a while

    def start(self, target: Callable[..., object], *args: Any) -> Any:
        """A process that calls a function of a module."""
        process = self.context.Process(target=target, args=args, daemon=True)
        process.start()
        return process

    def end(self, process: Any, seconds: float = 60) -> int:
        """The exit code of a process: 0 if the function returned, minus the signal that killed it."""
        process.join(seconds)
        assert process.exitcode is not None, "the process does not end"
        return process.exitcode
