"""The sections on the final fits."""

import json

import numpy as np
import pytest
from PIL import Image

from raysweep.report import page
from raysweep.report.sections import final
from raysweep.report.sections.predictions import classes, samples
from tests.report.synthetic_runs import digits_outcomes, final_result, finished, planned

OTHER = {"backbone": "small_cnn", "depth": "all", "depth_label": "all", "test_accuracy": 0.9, "trial": "0" * 12}


@pytest.fixture
def several(make_run):
    """Facts of a run with two final fits."""
    finals = {"best": final_result(), "small_cnn": final_result(**OTHER)}
    return page.gather([make_run(digits_outcomes(), finals=finals)])


def with_samples(facts, name, said):
    """Leave a picture of one test image beside a final fit."""
    folder = facts.runs[0].final_folder(name)
    one = {"image": "a", "true": "1", "predicted": said, "probability": 0.5}
    (folder / "samples.json").write_text(json.dumps({"tile": 8, "samples": [one], "superclasses": None}))
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(folder / "samples.png")


def test_one_final_fit(digits_run):
    (row,) = final.test(page.gather([digits_run])).table
    assert row["final fit"] == "run: recommended"
    assert row["test accuracy (%)"] == "97.8 ± 0.8"
    assert (row["balanced accuracy (%)"], row["macro-F1 (%)"], row["top-5 (%)"]) == ("97.7", "97.6", "99.9")
    assert row["calibration error (points)"] == "2.1"
    assert row["validation accuracy (%)"] == "95.4"  # of the trial with seed 0, before its refit
    assert row["test images"] == "360"


def test_several_final_fits(several):
    rows = final.test(several).table
    assert [row["final fit"] for row in rows] == ["run: best", "run: small_cnn"]
    assert [row["test accuracy (%)"] for row in rows] == ["97.8 ± 0.8", "90.0 ± 1.6"]
    assert rows[1]["validation accuracy (%)"] == "–"  # the trial is not in the run's rows


def test_figures_of_one_model_are_not_shown_of_several(several):
    assert final.confusion(several) is None
    assert final.calibration(several) is None


def test_sections_on_one_of_several_models_say_which(several):
    assert classes(several).text == "Of the final model run: best (the first of 2), on the test images."
    with_samples(several, "small_cnn", "8")
    assert samples(several) is None
    with_samples(several, "best", "7")
    assert samples(several).text.startswith("Test images as the final model run: best (the first of 2) sees them")


def test_sections_on_the_one_model(digits_run):
    facts = page.gather([digits_run])
    assert classes(facts).text == "Of the final model, on the test images."
    with_samples(facts, "recommended", "7")
    assert samples(facts).text.startswith("Test images as the final model sees them")


def test_calibration(digits_run):
    section = final.calibration(page.gather([digits_run]))
    assert section.title == "Calibration"
    assert section.figure.axes[0].get_xlabel() == "confidence of the model (%)"


def test_a_fit_of_the_first_edition_has_no_calibration(make_run):
    bare = final_result(
        calibration=(), test_calibration_error=None, test_balanced_accuracy=None, test_macro_f1=None, test_top5=None
    )
    facts = page.gather([make_run(digits_outcomes(), final=bare)])
    assert final.calibration(facts) is None
    (row,) = final.test(facts).table
    assert {row["balanced accuracy (%)"], row["macro-F1 (%)"], row["calibration error (points)"]} == {"–"}


def test_no_final_fit_no_sections(make_run):
    facts = page.gather([make_run([finished(planned(3), 0.9)])])
    sections = (final.test, final.confusion, final.calibration, classes, samples)
    assert [make(facts) for make in sections] == [None] * 5
