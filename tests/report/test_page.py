"""The page of every kind of run, and the tables behind it."""

import pandas as pd
import pytest

from raysweep import report
from raysweep.report import page
from raysweep.sweep.ledger import RunFolderError
from tests.report.synthetic_runs import digits_outcomes, epoch_rows, final_result, planned

HOSTILE = "<script>alert('x')</script>|`$"


def two_depths(make_run, name, **more):
    """A small run of one seed."""
    outcomes = [(plan := planned(depth), "finished", epoch_rows(plan, 0.9 + depth / 100)) for depth in (1, 3)]
    return make_run(outcomes, name=name, **more)


def html_of(run):
    return page.build(run.folder).read_text(encoding="utf-8")


def test_report_of_a_whole_run(digits_run):
    index = page.build(digits_run.folder)
    html = index.read_text(encoding="utf-8")
    assert index == digits_run.folder / "report" / "index.html"
    answer = page.answer(digits_run.folder)
    assert answer.startswith("Fine-tune the last 33 layers of tf_efficientnet_lite0 at lr 0.001")
    assert answer in html
    assert "97.8 % ± 0.8" in html  # the test accuracy, 352 of 360
    assert html.count("data:image/png;base64,") == 5 == len(list(index.parent.glob("*.png")))
    assert "http" not in html.replace("http-equiv", "")
    results = pd.read_csv(index.parent / "results.csv")
    assert len(results) == 22
    assert results["stopped_early"].sum() == 10
    summary = (index.parent / "summary.md").read_text(encoding="utf-8")
    assert "validation accuracy 96.0 % ± 0.6 (2 seeds)" in summary
    assert "![Accuracy by depth](accuracy_by_depth.png)" in summary


def test_partial_run_says_so(make_run):
    one, other, third = planned(1), planned(3), planned(9)
    outcomes = [
        (one, "finished", epoch_rows(one, 0.8)),
        (other, "interrupted", epoch_rows(other, 0.9, 2)),
        (third, "planned", []),
        (planned(21), "failed", []),
    ]
    html = html_of(make_run(outcomes))
    assert "This run is incomplete: of 4 trials, 1 not started, 1 interrupted." in html
    assert "1 trial failed" in html
    assert "CUDA &lt;out&gt; of memory" in html
    assert "the only depth with a finished trial" in html
    assert "for want of a finished trial: tf_efficientnet_lite0 at depth 3;" in html


def test_run_of_which_no_trial_finished(make_run):
    plan = planned(3)
    html = html_of(make_run([(plan, "interrupted", epoch_rows(plan, 0.9, 2))]))
    assert "No trial has finished, so there is no recommendation." in html
    assert "after 2 of 6 epochs" in html
    assert "Learning curves" in html


@pytest.mark.parametrize("outcomes", [[], [(planned(1), "planned", [])]])
def test_run_without_rows(make_run, outcomes):
    html = html_of(make_run(outcomes))
    assert "Nothing has finished" in html
    assert "How this was run" in html


def test_an_axis_that_varies_among_failed_trials_alone(make_run):
    """The finished trials are of adam; the one of sgd failed."""
    plans = [planned(depth, optimizer="adam") for depth in (1, 3)]
    outcomes = [(plan, "finished", epoch_rows(plan, 0.9)) for plan in plans]
    run = make_run([*outcomes, (planned("all", optimizer="sgd"), "failed", [])])
    assert "1 trial failed" in html_of(run)


def test_hostile_names_are_escaped(make_run):
    plan = planned([HOSTILE], backbone=HOSTILE)
    final = final_result(12).model_copy(update={"class_names": (HOSTILE,) * 12, "backbone": HOSTILE})
    index = page.build(make_run([(plan, "finished", epoch_rows(plan, 0.8))], final=final, command=HOSTILE).folder)
    assert "<script>alert" not in index.read_text(encoding="utf-8")
    assert "<script>alert" not in (index.parent / "summary.md").read_text(encoding="utf-8").replace("\\<", "")


def test_comparison_of_runs(make_run):
    first, second = (two_depths(make_run, name) for name in ("run0", "run1"))
    index = page.compare([first.folder, second.folder])
    assert index == first.folder / "report" / "compare" / "index.html"
    assert "tf_efficientnet_lite0 (run=run1)" in index.read_text(encoding="utf-8")
    assert pd.read_csv(index.parent / "results.csv")["run"].nunique() == 2


def test_runs_on_different_images_are_not_ranked(make_run, tmp_path):
    first = two_depths(make_run, "digits")
    second = two_depths(make_run, "cifar", recipe={"data": {"dataset": "cifar10"}})
    html = page.compare([first.folder, second.folder], tmp_path / "out").read_text(encoding="utf-8")
    assert "shown side by side and not ranked" in html


def test_samples_without_their_picture_are_left_out(digits_run):
    """As of a run folder that was copied without its pictures."""
    (digits_run.folder / "final" / "samples.json").write_text(
        '{"tile": 96, "samples": [{"image": "a", "true": "1", "predicted": "8", "probability": 0.5}],'
        ' "superclasses": null}'
    )
    assert "Sample predictions" not in html_of(digits_run)


def test_tables_of_one_run_or_several(make_run):
    first, second = (make_run(digits_outcomes((seed,)), name=f"run{seed}") for seed in (0, 1))
    one, both = report.load(str(first.folder)), report.load(first.folder, second.folder)
    assert (len(one.trials), len(both.trials)) == (11, 22)
    assert len(one.depths) == 6
    assert len(both.epochs) == 2 * len(one.epochs)
    assert one.advice is not None


def test_no_tables_of_a_folder_without_a_run(tmp_path):
    with pytest.raises(RunFolderError, match="holds no run"):
        report.load(tmp_path)
