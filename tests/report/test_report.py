"""The report of every kind of run, and the command's exit."""

import subprocess
import sys

import pandas as pd
import pytest
from synthetic_runs import digits_outcomes, epoch_rows, final_result, planned

from raysweep.report import page as report

HOSTILE = "<script>alert('x')</script>|`$"


def test_report_of_a_whole_run(digits_run):
    page = report.build(digits_run.folder)
    html = page.read_text()
    assert page == digits_run.folder / "report" / "index.html"
    assert "Fine-tune the last 33 layers of tf_efficientnet_lite0 at lr 0.001" in html
    assert "97.8 % ± 0.8" in html  # the test accuracy, 352 of 360
    assert html.count("data:image/png;base64,") == 5 == len(list(page.parent.glob("*.png")))
    assert "http" not in html.replace("http-equiv", "")
    results = pd.read_csv(page.parent / "results.csv")
    assert len(results) == 22
    assert results["stopped_early"].sum() == 10
    summary = (page.parent / "summary.md").read_text()
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
    html = report.build(make_run(outcomes).folder).read_text()
    assert "This run is incomplete: of 4 trials, 1 not started, 1 interrupted." in html
    assert "1 trial failed" in html
    assert "CUDA &lt;out&gt; of memory" in html
    assert "the only depth with a finished trial" in html
    assert "for want of a finished trial: tf_efficientnet_lite0 at depth 3;" in html


def test_run_of_which_no_trial_finished(make_run):
    plan = planned(3)
    html = report.build(make_run([(plan, "interrupted", epoch_rows(plan, 0.9, 2))]).folder).read_text()
    assert "No trial has finished, so there is no recommendation." in html
    assert "after 2 of 6 epochs" in html
    assert "Learning curves" in html


@pytest.mark.parametrize("outcomes", [[], [(planned(1), "planned", [])]])
def test_run_without_rows(make_run, outcomes):
    html = report.build(make_run(outcomes).folder).read_text()
    assert "Nothing has finished" in html
    assert "How this was run" in html


def test_hostile_names_are_escaped(make_run):
    plan = planned([HOSTILE], backbone=HOSTILE)
    final = final_result(3 * 4) | {"class_names": [HOSTILE] * 12, "backbone": HOSTILE}
    page = report.build(make_run([(plan, "finished", epoch_rows(plan, 0.8))], final=final, command=HOSTILE).folder)
    assert "<script>alert" not in page.read_text()
    assert "<script>alert" not in (page.parent / "summary.md").read_text().replace("\\<", "")


def test_comparison_of_runs(make_run, capsys):
    first, second = (make_run(digits_outcomes((seed,)), name=f"run{seed}") for seed in (0, 1))
    assert report.main([str(first.folder), str(second.folder)]) == 0
    page = first.folder / "report" / "compare" / "index.html"
    assert capsys.readouterr().out.strip() == str(page)
    assert "tf_efficientnet_lite0 (run=run1)" in page.read_text()
    assert pd.read_csv(page.parent / "results.csv")["run"].nunique() == 2


def test_runs_on_different_images_are_not_ranked(make_run, tmp_path):
    first = make_run(digits_outcomes((0,)), name="digits")
    second = make_run(digits_outcomes((0,)), name="cifar", recipe={"data": {"dataset": "cifar10"}})
    html = report.compare([first.folder, second.folder], tmp_path / "out").read_text()
    assert "shown side by side and not ranked" in html


def test_folder_without_a_run_exits_2_with_one_sentence(tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_importing_the_report_loads_neither_torch_nor_ray():
    code = "import sys, raysweep.report.page; sys.exit(bool({'torch', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
