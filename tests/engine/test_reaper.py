"""What is left of a sweep's Ray is ended, and its folder removed, however the sweep ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from raysweep.engine import reaper

SLEEPS = [sys.executable, "-c", "import time; time.sleep(60)"]
SWEEP = """
import os, subprocess, sys, time
from pathlib import Path
from raysweep.engine.reaper import VARIABLE, Reaper
folder = Path(sys.argv[1])
with Reaper(folder):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"],
                             env=os.environ | {VARIABLE: str(folder)}, start_new_session=True)
    print(child.pid, flush=True)
    if sys.argv[2] == "killed":
        time.sleep(60)
"""


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ended", "killed"])
def test_nothing_is_left(tmp_path, how):
    folder = tmp_path / "files"
    (folder / "logs").mkdir(parents=True)
    other = subprocess.Popen(SLEEPS, env=os.environ | {reaper.VARIABLE: str(tmp_path / "of another")})
    sweep = subprocess.Popen([sys.executable, "-c", SWEEP, str(folder), how], stdout=subprocess.PIPE, text=True)
    child = int(sweep.stdout.readline())
    if how == "killed":
        sweep.send_signal(signal.SIGKILL)
    sweep.wait(timeout=30)
    deadline = time.monotonic() + 10
    while (lives(child) or folder.exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not lives(child)
    assert not folder.exists()
    assert other.poll() is None  # another sweep's processes are none of its business
    other.kill()
    other.wait()


def test_processes_that_end_by_themselves_are_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(reaper, "_processes", lambda folder, but: [])
    (tmp_path / "files").mkdir()
    started = time.monotonic()
    reaper.reap(tmp_path / "files")
    assert time.monotonic() - started < 1
    assert not Path(tmp_path / "files").exists()
