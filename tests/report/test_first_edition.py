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
from raysweep.sweep.ledger import FIRST_EDITION, epoch_rows, read

ANSWER = (
    "Undecided between depth 1 and depth 3: 30 validation images and 2 seeds can show 12.9 points, not 0.5. Until "
    "then: train only the classifier of tf_efficientnet_lite0 at lr 0.003, measured best, though another can be "
    "better by up to 12.9 points. Expect 61.3 % ± 8.8 (2 seeds, 30 validation images; measured 66.7, 5.4 of it the "
    "luck of picking the best of 3)."
)
NEXT = "No affordable run decides this; with a tolerance of 12.9 points the answer is depth 1."
TITLES = (
    "Which depth is enough", "Accuracy by depth", "Overfitting by depth", "Cost by depth", "Depths", "Test",
    "Duplicates", "Sample predictions", "Confusion", "Accuracy by class", "Learning curves", "Loss curves",
    "Shared computation", "Trials", "How this was run",
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
    assert page.answer([folder]) == f"{ANSWER} {NEXT}"
    assert [title for title in TITLES if f">{title}</h2>" not in html] == []
    assert "67.6 % ± 7.7" in html  # of 37 test images
    assert "Test accuracy is 67.6 % with them and 69.4 % without." in html
    assert html.count("data:image/png;base64,") == len(list((index.parent / "figures").glob("*.png"))) == 9
    results = pd.read_csv(folder / "results.csv")
    assert len(results) == 8
    assert results.loc[results["stopped_early"], "epochs_completed"].unique().tolist() == [1]


def test_what_the_first_edition_did_not_store_is_said_and_missed_by_no_one(folder, monkeypatch):
    """It left no predictions, no F1 and no calibration."""
    facts = page.gather([read(folder)])
    assert "Predictions of single images are missing: scores are compared unpaired, which tells less." in list(
        page.reservations(facts)
    )
    assert not facts.answer.from_predictions
    assert facts.answer.depths["standard_error"].tolist() == pytest.approx([0.088, 0.090], abs=0.001)
    monkeypatch.setattr(page, "png", lambda figure: b"")
    html = page.build(folder).read_text(encoding="utf-8")
    assert "<td>first</td>" in html  # the final fit goes by its run alone
    assert "Calibration" not in html
    assert "nan" not in html


def test_the_command(folder):
    done = subprocess.run(
        [sys.executable, "-m", "raysweep.report", str(folder)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{ANSWER} {NEXT}\nreport: {folder / 'report' / 'index.html'}\n"
    assert ANSWER in (folder / "report" / "index.html").read_text(encoding="utf-8")


def test_it_is_compared_with_another(folder, digits_run):
    """Two editions in one table."""
    facts = report.load(folder, digits_run.folder)
    assert facts.trials.groupby("run").size().to_dict() == {"first": 8, "run": 22}
    assert not facts.trials["val_accuracy"].isna().any()


def test_its_rows_are_read(folder):
    run = read(folder)
    (final,) = run.finals.values()
    assert run.final_folder(FIRST_EDITION) == folder / "final"
    rows = epoch_rows(run, final.trial)
    assert [row.epoch for row in rows] == [1, 2, 3]
    assert all(row.cached and row.val_images == 30 for row in rows)
