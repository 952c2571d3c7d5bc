"""How a sweep is ended from outside: Ctrl-C, SIGTERM (a scheduler, a spot notice), SIGHUP (a closed terminal).

The first signal ends the sweep in order: trials save their state, rows are kept, the report
is built. A second one ends it at once.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Interrupts:
    """Turns the first signal into KeyboardInterrupt and lets the second end the process; a context manager.

    A SIGHUP that was ignored before stays ignored: with nohup a sweep outlives its terminal.

    Args:
        on_second: what to say before the process ends at once.
    """

    def __init__(self, on_second: str = "") -> None:
        self.on_second = on_second
        self.interrupted = False
        """Whether there was a signal."""
        self._held = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        before = {number: signal.getsignal(number) for number in SIGNALS}
        ignored = [signal.SIGHUP] if hasattr(signal, "SIGHUP") and before[signal.SIGHUP] == signal.SIG_IGN else []
        self._before = {number: handler for number, handler in before.items() if number not in ignored}
        self.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def install(self) -> None:
        """Within the block: answer the signals again, for Ray puts handlers of its own in place."""
        for number in self._before:
            signal.signal(number, self._on_signal)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let a block that cleans up end although a first signal comes."""
        before, self._held = self._held, True
        try:
            yield
        finally:
            self._held = before

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if hasattr(signal, "alarm"):
            signal.alarm(0)  # Ray would abort the process three seconds after SIGTERM
        if self.interrupted:
            self._end_at_once()
        self.interrupted = True
        if not self._held:
            raise KeyboardInterrupt

    def _end_at_once(self) -> None:
        """End as a process does that answers Ctrl-C with nothing; what it started is cleaned up from outside."""
        sys.stderr.write(f"\n{self.on_second}\n")
        sys.stderr.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
