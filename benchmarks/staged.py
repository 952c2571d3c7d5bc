"""The command `python -m raysweep.grid`, with the times at which its stages began and ended written down.

    python -m benchmarks.staged FILE [argument of raysweep.grid ...]

FILE gets a line of JSON for each stage that ended: its name, and when it began and ended. Stages lie
within one another. At the first trial's start the process ends itself by SIGINT, as Ctrl-C would.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

EARLY = {
    "plan the trials": ("raysweep.sweep.plan", "plan"),
    "find or decode the images": ("raysweep.data.dataset", "load"),
    "load network and images": ("raysweep.nets.task", "task_of"),
    "audit the images": ("raysweep.data.audit", "audit"),
    "refuse overlapping splits": ("raysweep.data.findings", "refuse_overlap"),
    "write the audit": ("raysweep.data.audit", "write"),
    "decide what to store": ("raysweep.features.decide", "decide"),
}
"""Stages, and the functions that are these. They are replaced before others import them by name."""
LATE = {
    "start Ray": ("raysweep.engine.session", "Session.__enter__"),
    "make or find features": ("raysweep.engine.features", "make"),
    "set the trials up": ("raysweep.engine.trials", "_Recorder.on_trial_start"),
}
"""The same, of modules that import Ray: its environment is to be set before."""
FIRST_TRIAL = "set the trials up"


def _follow(stage: str, module: str, name: str, note: Callable[[str, float], None]) -> None:
    """Replace a function by one that notes when it began and ended."""
    owner: Any = importlib.import_module(module)
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    inner = getattr(owner, last)

    @functools.wraps(inner)
    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.time()
        try:
            return inner(*args, **kwargs)
        finally:
            note(stage, started)
            if stage == FIRST_TRIAL:
                os.kill(os.getpid(), signal.SIGINT)

    setattr(owner, last, timed)


def main() -> None:
    """Run the command with its stages followed."""
    file, sys.argv = Path(sys.argv[1]), [sys.argv[0], *sys.argv[2:]]
    began = time.time()

    def note(stage: str, started: float) -> None:
        with file.open("a") as lines:
            lines.write(json.dumps({"stage": stage, "began": started, "ended": time.time()}) + "\n")

    for stage, (module, name) in EARLY.items():
        _follow(stage, module, name, note)
    note("import torch", began)
    environment: Any = importlib.import_module("raysweep.engine.environment")
    prepare = environment.prepare

    def prepared(local: bool) -> Any:
        found, started = prepare(local), time.time()
        for stage, (module, name) in LATE.items():
            _follow(stage, module, name, note)
        importlib.import_module("raysweep.engine.run")
        note("import Ray", started)
        return found

    environment.prepare = prepared
    importlib.import_module("raysweep.grid").main(prog_name="python -m raysweep.grid")


if __name__ == "__main__":
    main()
