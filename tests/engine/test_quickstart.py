"""The quickstart, as a newcomer runs it, and its final model, as a newcomer serves it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from raysweep.data import dataset as datasets
from raysweep.recipe import load
from raysweep.sweep import export, ledger

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("quickstart")
    environment = os.environ | {"RAYSWEEP_CACHE": str(home / "cache"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "raysweep.grid", "--run-dir", str(home / "run")]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return home / "run"


@pytest.mark.ray
@pytest.mark.slow
def test_the_served_model_is_the_tested_one(folder, tmp_path):
    """Test images written to files and served by `export.load` get the answers that were reported, one by one."""
    test = datasets.load(load().data).test
    paths = [tmp_path / f"{index}.png" for index in range(len(test))]
    for path, pixels in zip(paths, test.images(), strict=True):
        Image.fromarray(pixels.transpose(1, 2, 0)).save(path)
    run = ledger.read(folder)
    model = run.final_folder("recommended")
    answers = export.load(model)(paths)
    reported = pd.read_csv(model / "predictions.csv", dtype={"true": str, "predicted": str})
    assert [name for name, _ in answers] == reported["predicted"].tolist()
    assert [value for _, value in answers] == pytest.approx(reported["probability"].tolist(), abs=2e-4)
    final = run.finals["recommended"]
    right = sum(name == truth for (name, _), truth in zip(answers, reported["true"], strict=True))
    assert right / len(test) == pytest.approx(final.test_accuracy)
