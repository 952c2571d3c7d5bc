"""A run folder that the first edition wrote: the quickstart's network at two depths on 120 digits, a model beside it.

The model and the pictures are left out; what recipe.yaml said of the machine is made neutral.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from raysweep import report
from raysweep.report import page
from raysweep.sweep.ledger import epoch_rows, read

ANSWER = (
    "Train only the classifier of tf_efficientnet_lite0 at lr 0.003: validation accuracy 66.7 % ± 3.3 (2 seeds), "
    "the best of the 2 depths tried."
)
TITLES = (
    "Accuracy by depth", "Overfitting by depth", "Cost by depth", "Depths", "Test", "Duplicates", "Sample predictions",
    "Confusion", "Accuracy by class", "Learning curves", "Shared computation", "Trials", "How this was run",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A copy, with pictures in the place of those left out."""
    folder = Path(shutil.copytree(Path(__file__).with_name("first_edition"), tmp_path / "first"))
    about = json.loads((folder / "final" / "samples.json").read_text(encoding="utf-8"))
    shape = (about["tile"], about["tile"] * len(about["samples"]), 3)
    Image.fromarray(np.full(shape, 128, dtype=np.uint8)).save(folder / "final" / "samples.png")
    Image.fromarray(np.full((60, 90, 3), 128, dtype=np.uint8)).save(folder / "audit_pairs.png")
    return folder


def test_the_whole_page(folder):
    index = page.build(folder)
    html = index.read_text(encoding="utf-8")
    assert ANSWER in html
    assert page.answer(folder) == ANSWER
    assert [title for title in TITLES if f">{title}</h2>" not in html] == []
    assert "67.6 % ± 7.7" in html  # of 37 test images
    assert "Test accuracy is 67.6 % with them and 69.4 % without." in html
    assert html.count("data:image/png;base64,") == len(list(index.parent.glob("*.png"))) == 7
    results = pd.read_csv(index.parent / "results.csv")
    assert len(results) == 8
    assert results.loc[results["stopped_early"], "epochs_completed"].unique().tolist() == [1]


def test_the_command(folder):
    done = subprocess.run(
        [sys.executable, "-m", "raysweep.report", str(folder)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{folder / 'report' / 'index.html'}\n"
    assert ANSWER in (folder / "report" / "index.html").read_text(encoding="utf-8")


def test_it_is_compared_with_another(folder, digits_run):
    """Two editions in one table."""
    facts = report.load(folder, digits_run.folder)
    assert facts.trials.groupby("run").size().to_dict() == {"first": 8, "run": 22}
    assert not facts.trials["val_accuracy"].isna().any()


def test_its_rows_are_read(folder):
    run = read(folder)
    assert run.final is not None
    rows = epoch_rows(run, run.final.trial)
    assert [row.epoch for row in rows] == [1, 2, 3]
    assert all(row.cached and row.val_images == 30 for row in rows)
