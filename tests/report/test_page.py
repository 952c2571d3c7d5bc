"""The page of every kind of run, and the tables behind it."""

import shlex

import numpy as np
import pandas as pd
import pytest

from raysweep import report
from raysweep.recipe import load
from raysweep.report import page
from raysweep.sweep.ledger import RunFolderError
from tests.report.synthetic_runs import digits_outcomes, epoch_rows, final_result, finished, planned

HOSTILE = "<script>alert('x')</script>|`$"
FIGURES = {
    "which_depth_is_enough", "accuracy_by_depth", "overfitting_by_depth", "cost_by_depth", "learning_curves",
    "loss_curves",
}  # fmt: skip


def two_depths(make_run, name, **more):
    """A small run of one seed."""
    return make_run([finished(planned(depth), 0.9 + depth / 100) for depth in (1, 3)], name=name, **more)


@pytest.fixture
def blank(monkeypatch):
    """Pictures are not drawn, which takes most of the time."""
    monkeypatch.setattr(page, "png", lambda figure: b"")


@pytest.fixture
def html_of(blank):
    """The page of a run without its pictures."""
    return lambda run: page.build(run.folder).read_text(encoding="utf-8")


def titles_of(html):
    return [part.partition("</h2>")[0] for part in html.split("<h2>")[1:]]


def test_report_of_a_whole_run(digits_run):
    index = page.build(digits_run.folder)
    html = index.read_text(encoding="utf-8")
    assert index == digits_run.folder / "report" / "index.html"
    answer = page.answer([digits_run.folder])
    assert answer.startswith("Fine-tune the last 33 layers of tf_efficientnet_lite0 at lr 0.001: ")
    assert (
        "lose more than 0.5 points. Whether tf_efficientnet_lite0 at depth 21 would do is open: measured 1.0" in answer
    )
    assert answer in html
    assert "97.8 % ± 0.8" in html  # the test accuracy, 352 of 360
    pictures = {path.stem for path in (index.parent / "figures").glob("*.png")}
    assert pictures == FIGURES | {"confusion", "calibration", "recall_by_class"}
    assert html.count("data:image/png;base64,") == len(pictures)
    assert "http" not in html.replace("http-equiv", "")
    results = pd.read_csv(digits_run.folder / "results.csv")
    assert len(results) == 22
    assert results["stopped_early"].sum() == 10
    summary = (index.parent / "summary.md").read_text(encoding="utf-8")
    assert "Expect 95.9 % ± 0.7 (2 seeds, 1,000 validation images;" in summary
    assert "![Accuracy by depth](figures/accuracy_by_depth.png)" in summary
    assert "## Depths" in summary
    assert "## Test" in summary


def test_sections_from_top_to_bottom(digits_run, html_of):
    assert titles_of(html_of(digits_run)) == [
        "Which depth is enough", "Accuracy by depth", "Overfitting by depth", "Cost by depth", "Depths",
        "Recall by class", "Test", "Confusion", "Accuracy by class", "Calibration", "Learning curves", "Loss curves",
        "Trials", "How this was run",
    ]  # fmt: skip


def test_the_first_screen(digits_run):
    facts = page.gather([digits_run])
    (expected, decided, tested, finished_, _, images) = page.key_numbers(facts)
    assert expected[:2] == ("95.9 % ± 0.7", "expected validation accuracy")
    assert expected[2] == "tf_efficientnet_lite0, depth 33; measured 96.0 %; ± 0.6 by the images, 0.3 by the seeds"
    assert decided[:2] == ("decided", "with a tolerance of 0.5 points")
    assert tested == ("97.8 % ± 0.8", "test accuracy of the final fit", "tf_efficientnet_lite0, depth 33")
    assert finished_ == ("12 of 22", "trials finished", "10 stopped early")
    assert images == ("1,000", "validation images", "360 test images")


def test_one_configuration_decides_nothing(make_run):
    numbers = list(page.key_numbers(page.gather([make_run([finished(planned(3), 0.9)])])))
    assert not {"decided", "undecided"} & {number for number, _, _ in numbers}


@pytest.mark.parametrize(
    ("objective", "title", "tile"),
    [
        ("balanced_accuracy", "Balanced accuracy by depth", "expected validation balanced accuracy"),
        ("macro_f1", "Macro-F1 by depth", "expected validation macro-F1"),
        ("loss", "Loss by depth", "expected validation loss"),
    ],
)
def test_the_page_is_about_the_objective(make_run, objective, title, tile, html_of):
    run = two_depths(make_run, "run", recipe={"data": {"dataset": "digits"}, "objective": objective})
    html = html_of(run)
    assert title in titles_of(html)
    assert tile in html


def test_dropped_trials_are_stopped_early(make_run, html_of):
    outcomes = [finished(planned(depth), 0.9) for depth in (1, 3)]
    html = html_of(make_run([*outcomes, (planned(3, lr=0.1), "dropped", [])]))
    assert "1 stopped early" in html
    assert "7.1 ± 1.2 points behind lr 0.001 at epoch 3" in html
    assert "incomplete" not in html


def test_partial_run_says_so(make_run, html_of):
    outcomes = [
        finished(planned(1), 0.8),
        (planned(3), "interrupted", epoch_rows(planned(3), 0.9, 2)),
        (planned(9), "planned", []),
        (planned("all"), "failed", []),
    ]
    html = html_of(make_run(outcomes))
    assert "This run is incomplete: of 4 trials, 1 not started, 1 interrupted." in html
    assert "1 trial failed" in html
    assert "CUDA &lt;out&gt; of memory" in html
    assert "the only configuration with a finished trial" in html
    assert "for want of a finished trial: tf_efficientnet_lite0 at depth 3;" in html
    assert "tf_efficientnet_lite0 with all layers." in html


def test_run_of_which_no_trial_finished(make_run, html_of):
    plan = planned(3)
    html = html_of(make_run([(plan, "interrupted", epoch_rows(plan, 0.9, 2))]))
    assert "No trial has finished, so there is no recommendation." in html
    assert "after 2 of 6 epochs" in html
    assert {"Learning curves", "Loss curves"} <= set(titles_of(html))


@pytest.mark.parametrize("outcomes", [[], [(planned(1), "planned", [])]])
def test_run_without_rows(make_run, outcomes, html_of):
    html = html_of(make_run(outcomes))
    assert "Nothing has finished" in html
    assert "How this was run" in html


def test_an_axis_that_varies_among_failed_trials_alone(make_run, html_of):
    """The finished trials are of adam; the one of sgd failed."""
    outcomes = [finished(planned(depth, optimizer="adam"), 0.9) for depth in (1, 3)]
    run = make_run([*outcomes, (planned("all", optimizer="sgd"), "failed", [])])
    assert "1 trial failed" in html_of(run)


def test_hostile_names_are_escaped(make_run, blank):
    plan = planned([HOSTILE], backbone=HOSTILE)
    final = final_result(12, class_names=(HOSTILE,) * 12, backbone=HOSTILE)
    index = page.build(make_run([finished(plan, 0.8)], final=final, command=HOSTILE).folder)
    assert "<script>alert" not in index.read_text(encoding="utf-8")
    assert "<script>alert" not in (index.parent / "summary.md").read_text(encoding="utf-8").replace("\\<", "")


# ---- what to do next ----


def test_an_undecided_run_says_what_would_decide_it(make_run, html_of):
    """And with the tolerance that it names there is the answer that it names."""
    scores = {1: 0.945, 3: 0.950, 9: 0.955}
    outcomes = [finished(planned(depth, seed=seed), score) for depth, score in scores.items() for seed in (0, 1)]
    run = make_run(outcomes, predictions=False)
    facts = page.gather([run])
    text = page.next_step(facts)
    assert text.startswith("To decide: about ")
    assert text in html_of(run)
    assert page.answer([run.folder]) == f"{page.headline(facts)} {text}"
    tolerance = float(text.partition("tolerance of ")[2].split()[0])
    again = page.gather([run], tolerance=tolerance).answer
    assert again.verdict.is_decided
    assert text.endswith(f"the answer is depth {again.recommended['depth']}.")
    assert not page.gather([run], tolerance=tolerance - 0.1).answer.verdict.is_decided


def test_the_next_run_is_a_command_to_copy(make_run):
    scores = {"head": 0.950, "layer4": 0.953, "layer3": 0.954, "all": 0.954}
    outcomes = [finished(planned(depth, seed=seed), score) for depth, score in scores.items() for seed in (0, 1)]
    command = "python -m raysweep.grid quickstart 'grid.seed=[0,1]' --run-dir runs/first"
    text = page.next_step(page.gather([make_run(outcomes, command=command)]))
    seeds = int(text.removeprefix("To decide: ").split()[0])
    assert text.startswith(f"To decide: {seeds} seeds on the same 1,000 validation images. Next: ")
    words = shlex.split(text.partition("Next: ")[2])
    assert words[:3] == ["python", "-m", "raysweep.grid"]
    recipe = load(words[3], words[4:])
    assert recipe.name == "quickstart"
    assert {block.seed for block in recipe.grid} == {tuple(range(seeds))}


def test_no_command_decides_between_runs(make_run):
    """The first run's command would start the first run again."""
    command = "python -m raysweep.grid quickstart"
    runs = [make_run([finished(planned(1), 0.95)], name=name, command=command) for name in ("one", "two")]
    text = page.next_step(page.gather(runs))
    assert text
    assert "raysweep.grid" not in text


def test_the_answer_at_another_tolerance(make_run):
    run = two_depths(make_run, "run")
    assert page.answer([run.folder], tolerance=4.0).startswith("Train only the classifier")
    assert page.answer([run.folder]).startswith("Fine-tune the last 3 layers")
    assert "(99 % confidence)" in page.answer([run.folder], tolerance=8.0, confidence=0.99)


# ---- several runs, several final fits ----


def test_comparison_of_runs(make_run, blank):
    first, second = (two_depths(make_run, name) for name in ("run0", "run1"))
    index = page.compare([first.folder, second.folder])
    assert index == first.folder / "report" / "compare" / "index.html"
    assert "tf_efficientnet_lite0 (run=run1)" in index.read_text(encoding="utf-8")
    assert pd.read_csv(index.parent / "results.csv")["run"].nunique() == 2
    assert (index.parent / "figures" / "which_depth_is_enough.png").is_file()


def test_runs_on_different_images_are_not_ranked(make_run, tmp_path, blank):
    first = two_depths(make_run, "digits")
    second = two_depths(make_run, "cifar", recipe={"data": {"dataset": "cifar10"}})
    html = page.compare([first.folder, second.folder], tmp_path / "out").read_text(encoding="utf-8")
    assert "shown side by side and not ranked" in html
    assert "Which depth is enough" not in titles_of(html)
    assert "●</td>" not in html


FINALS = {
    "tf_efficientnet_lite0-depth-33": final_result(),
    "small_cnn-all-layers": final_result(backbone="small_cnn", depth="all", depth_label="all", test_accuracy=0.9,
                                         trial=planned("all", backbone="small_cnn", layers=5, weights="none").trial),
}  # fmt: skip


def test_several_final_fits_in_one_table(make_run, html_of):
    run = make_run(digits_outcomes(), finals=FINALS)
    facts = page.gather([run])
    assert {name for _, name, _ in facts.finals} == set(FINALS)
    html = html_of(run)
    for name in FINALS:
        assert f"<td>run: {name}</td>" in html
    assert not {"Confusion", "Calibration"} & set(titles_of(html))
    assert "test accuracy of the final fit" not in html
    assert "Of the final model run: small_cnn-all-layers (the first of 2), on the test images." in html


def test_final_fits_of_several_runs(make_run, tmp_path, blank):
    runs = [make_run(digits_outcomes((0,)), name=name, final=final_result()) for name in ("one", "two")]
    html = page.compare([run.folder for run in runs], tmp_path / "out").read_text(encoding="utf-8")
    for name in ("one", "two"):
        assert f"<td>{name}: recommended</td>" in html


def test_samples_without_their_picture_are_left_out(digits_run, html_of):
    """As of a run folder that was copied without its pictures."""
    (digits_run.folder / "final" / "recommended" / "samples.json").write_text(
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
    assert one.answer is not None
    assert one.names == ["run0"]
    assert np.isfinite(one.depths["standard_error"]).all()


def test_no_tables_of_a_folder_without_a_run(tmp_path):
    with pytest.raises(RunFolderError, match="holds no run"):
        report.load(tmp_path)
