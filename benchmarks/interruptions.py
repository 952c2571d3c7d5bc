"""What a sweep loses when it is killed: `python -m benchmarks.interruptions [CASE ...] [--times N] [--seed S]`.

Each case runs a small sweep undisturbed, then again and again with an accident at a random
moment, lets the run go on with `--resume` where its process ended, and compares the rows.

| case | accident | compared |
|---|---|---|
| driver | the sweep's process gets SIGKILL; two lanes, no stopping | all rows are equal |
| guarded | the same; one lane, early stopping | all rows and all ends are equal |
| raced, halved | the same; two lanes, the guard or halving | rows as far as both runs go; ends are what the rule says |
| lane | a trial's process gets SIGKILL | all rows are equal, none is lost or doubled |
| ddp | one of two ranks gets SIGKILL | all rows are equal within 1e-4 |
| node | one of two nodes of a cluster vanishes | all rows are equal, none is lost or doubled |
| sigterm, sighup | the sweep's process gets the signal | exit status 130, report, nothing left; all rows are equal |
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import psutil

from benchmarks.compared import ended_early, ends_against_rule, ends_differ, rows_differ, rows_of
from benchmarks.measure import lanes_of
from benchmarks.nodes import NODES, Nodes
from raysweep.engine.reaper import VARIABLE

COMMAND = [sys.executable, "-m", "raysweep.grid"]
RECIPE = {
    "name": "interrupted",
    "data": {"dataset": "fake:4", "limit": 512, "image_size": 32, "augment": ["hflip"]},
    "grid": {"backbone": "small_cnn", "depth": [1, 3, "all"], "lr": [0.03, 0.01, 0.001], "seed": [0, 1]},
    "model": {"weights": "none", "batch_norm": "recalibrated"},
    "train": {"epochs": 6, "batch_size": 8},
    "asha": None,
    "final": {"enabled": True},
}
NOTHING_LEFT_S = 10.0


@dataclass(frozen=True)
class Case:
    """An accident, and the sweep that meets it."""

    changes: dict[str, Any] = field(default_factory=dict)
    """Sections of the recipe that differ."""
    signal: int = signal.SIGKILL
    victim: str = "driver"
    tolerance: float = 0.0
    """Of numbers in the rows."""
    ends: Literal["", "equal", "by the rule"] = ""
    """Whether the ends of trials are compared too. By the rule, where they differ between any two runs."""


CASES = {
    "driver": Case(),
    "guarded": Case({"asha": {"grace_epochs": 2}, "resources": {"max_concurrent": 1}}, ends="equal"),
    "raced": Case({"asha": {"grace_epochs": 2}}, ends="by the rule"),
    "halved": Case({"asha": {"grace_epochs": 2, "compare_within": []}}, ends="by the rule"),
    "lane": Case(victim="lane"),
    "ddp": Case(
        {
            "resources": {"workers_per_trial": 2},
            "grid": {"backbone": "small_cnn", "depth": ["all"], "lr": [0.001], "seed": [0, 1]},
            "train": {"epochs": 20, "batch_size": 8},
        },
        victim="lane",
        tolerance=1e-4,
    ),
    "node": Case({"grid": {"backbone": "small_cnn", "depth": [1, "all"], "lr": [0.01], "seed": [0, 1]}}, victim="node"),
    "sigterm": Case(signal=signal.SIGTERM),
    "sighup": Case(signal=signal.SIGHUP),
}


class Sweep:
    """A running sweep and its folder."""

    def __init__(self, folder: Path, *words: str, environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.log = folder.with_suffix(".log").open("ab")
        around = os.environ | (environment or {})
        self.process = subprocess.Popen([*COMMAND, *words], stdout=self.log, stderr=self.log, env=around)

    def rows(self) -> int:
        """How many rows there are."""
        path = self.folder / "epochs.jsonl"
        return path.read_bytes().count(b"\n") if path.is_file() else 0

    def wait_for_rows(self, count: int) -> None:
        """Wait until there are so many rows, or it has ended."""
        while self.process.poll() is None and self.rows() < count:
            time.sleep(0.02)

    def end(self) -> int:
        """Wait for its end."""
        status = self.process.wait()
        self.log.close()
        return status


def main() -> None:
    """Run the cases and print a line for each accident."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=list(CASES))
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    wrong = 0
    for name in given.cases:
        top = Path(tempfile.mkdtemp(prefix=f"interruptions-{name}-"))
        wrong += sum(not equal for equal in run_case(name, CASES[name], top, given.times, given.seed))
        shutil.rmtree(top)
    sys.exit(1 if wrong else 0)


def run_case(name: str, case: Case, top: Path, times: int, seed: int) -> Iterator[bool]:
    """Whether each accident left what it should; a line is printed for each."""
    recipe = top / "recipe.yaml"
    recipe.write_text(json.dumps(RECIPE | case.changes))
    begin = [str(recipe), "--run-dir"]
    whole = undisturbed(recipe.read_text())
    rows = len(rows_of(whole))
    for number in range(seed, seed + times):
        folder = top / f"run{number}"
        moment = random.Random(number)
        if case.victim == "node":
            found = _without_a_node(folder, [*begin, str(folder)], moment, rows)
        else:
            found = _accident(case, Sweep(folder, *begin, str(folder)), moment, rows)
        problems = [*found.problems, *rows_differ(whole, folder, case.tolerance, case.ends == "by the rule")]
        if case.ends == "equal":
            problems += ends_differ(whole, folder)
        elif case.ends == "by the rule":
            problems += ends_against_rule(recipe, folder)
        ended = f", {ended_early(folder)} trials ended early" if case.ends else ""
        problems += ["no trial ended early: nothing was decided"] if case.ends and not ended_early(folder) else []
        print(f"{name} seed {number}: {found.what}{ended}: {'; '.join(problems) or 'equal'}", flush=True)
        yield not problems


@cache
def undisturbed(recipe: str) -> Path:
    """The folder of a sweep to which nothing happens; run once a process.

    Args:
        recipe: as JSON.
    """
    top = Path(tempfile.mkdtemp(prefix="interruptions-undisturbed-"))
    atexit.register(shutil.rmtree, top, ignore_errors=True)
    file = top / "recipe.yaml"
    file.write_text(recipe)
    sweep = Sweep(top / "run", str(file), "--run-dir", str(top / "run"))
    assert sweep.end() == 0, (top / "run.log").read_text()
    return sweep.folder


@dataclass
class Found:
    """What became of a run."""

    what: str
    problems: list[str]


def _without_a_node(folder: Path, begin: Sequence[str], moment: random.Random, rows: int) -> Found:
    """Let a sweep on a cluster lose a node at a random moment between the first row and the last."""
    with Nodes() as nodes:
        sweep = Sweep(folder, *begin, "--address", nodes.address, environment=nodes.environment)
        sweep.wait_for_rows(moment.randint(1, rows - 1))
        time.sleep(moment.random() * 0.3)
        before = sweep.rows()
        nodes.remove(moment.randrange(NODES))
        status = sweep.end()
    return Found(f"removed one of {NODES} nodes after {before} rows", [f"exit status {status}"] if status else [])


def _accident(case: Case, sweep: Sweep, moment: random.Random, rows: int) -> Found:
    """Let the accident happen at a random moment between the first row and the last, and the run go on."""
    sweep.wait_for_rows(moment.randint(1, rows - 1))
    time.sleep(moment.random() * 0.3)
    before, problems = sweep.rows(), []
    if case.victim == "lane":
        lanes = lanes_of(sweep.process.pid)
        if lanes:
            moment.choice(lanes).kill()
        status = sweep.end()
        if status:
            problems.append(f"exit status {status}")
        return Found(f"killed one of {len(lanes)} after {before} rows", problems)
    files = _files_of(sweep)
    sweep.process.send_signal(case.signal)
    status = sweep.end()
    problems += _left(files)
    if case.signal != signal.SIGKILL:
        problems += [] if status == 130 else [f"exit status {status}"]
        problems += [] if (sweep.folder / "report" / "index.html").is_file() else ["no report"]
    again = Sweep(sweep.folder, "--resume", str(sweep.folder))
    if again.end():
        problems.append("--resume failed")
    return Found(f"signal {case.signal} after {before} rows", problems)


def _files_of(sweep: Sweep) -> str:
    """The folder of the sweep's Ray."""
    for child in psutil.Process(sweep.process.pid).children(recursive=True):
        try:
            if folder := child.environ().get(VARIABLE):
                return folder
        except psutil.Error:
            continue
    return ""


def _left(files: str) -> list[str]:
    """What is left of a sweep, ten seconds after its end."""
    ended = time.monotonic()
    while True:
        processes = [one for one in psutil.process_iter() if files and _variable(one) == files]
        folder = bool(files) and Path(files).exists()
        if not processes and not folder:
            return []
        if time.monotonic() - ended > NOTHING_LEFT_S:
            return [f"left {len(processes)} processes{' and a folder' if folder else ''}"]
        time.sleep(0.2)


def _variable(process: psutil.Process) -> str | None:
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else process.environ().get(VARIABLE)
    except psutil.Error:
        return None


if __name__ == "__main__":
    main()
