"""Life after a failure, through the command: each accident once. `python -m benchmarks.interruptions` repeats them."""

import json
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.interruptions import CASES, RECIPE, Sweep, run_case

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.mark.parametrize("name", ["driver", "guarded", "raced", "lane", "ddp", "node", "sigterm"])
def test_after_an_accident_the_rows_are_those_of_an_undisturbed_run(name, tmp_path, capsys):
    assert list(run_case(name, CASES[name], tmp_path, times=1, seed=3)) == [True], capsys.readouterr().out


@pytest.fixture
def sweep(tmp_path):
    """A sweep that has a few rows."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(RECIPE))
    running = Sweep(tmp_path / "run", str(recipe), "--run-dir", str(tmp_path / "run"))
    running.wait_for_rows(10)
    assert running.process.poll() is None
    yield running
    if running.process.poll() is None:
        running.process.kill()
        running.end()


def said(sweep):
    return sweep.folder.with_suffix(".log").read_text()


def test_a_head_that_is_gone_is_noticed_within_seconds(sweep):
    children = psutil.Process(sweep.process.pid).children(recursive=True)
    (head,) = [one for one in children if one.name() == "gcs_server"]
    head.kill()
    began = time.monotonic()
    assert sweep.end() == 1
    assert time.monotonic() - began < 40
    assert "error: Ray's head process has ended" in said(sweep)
    assert f"--resume {sweep.folder} continues" in said(sweep)
    assert (sweep.folder / "report" / "index.html").is_file()


def test_a_second_interrupt_ends_at_once_and_says_how_to_go_on(sweep):
    sweep.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    sweep.process.send_signal(signal.SIGINT)
    assert sweep.process.wait(timeout=5) in (-signal.SIGINT, 130)
    assert f"--resume {sweep.folder} continues" in said(sweep)
    assert f"raysweep.report {sweep.folder} builds the report" in said(sweep)


def full(folder: Path) -> bool:
    """Whether a small disk could be mounted there."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_full_run_disk_is_said_and_nothing_is_lost(tmp_path):
    disk = tmp_path / "disk"
    if not full(disk):
        pytest.skip("needs the right to mount a file system")
    try:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(json.dumps(RECIPE))
        running = Sweep(tmp_path / "log", str(recipe), "--run-dir", str(disk / "run"))
        assert running.end() == 1
        assert f"its disk is full; free some space, then --resume {disk / 'run'} continues" in said(running)
        assert "Traceback" not in said(running)
        rows = (disk / "run" / "epochs.jsonl").read_text().splitlines()
        assert rows
        assert all(json.loads(row)["trial"] for row in rows)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
