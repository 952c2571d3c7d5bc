"""The section on shared computation, from a features.json as `raysweep.engine.features.make` has it."""

import json

import pytest

from raysweep.report import page
from raysweep.report.sections.features import features
from raysweep.sweep.ledger import read
from tests.report.synthetic_runs import digits_outcomes

MADE = {
    "backbone": "tf_efficientnet_lite0", "cuts": 1, "images": 1_437, "mebibytes": 7.0, "seconds": 30.0, "lanes": 2,
    "problem": "",
}  # fmt: skip


def note(run, made=(MADE,), **changed):
    """Depth 1 is stored for its 4 trials, depth 33 is not, and the small CNN has no prefix."""
    names = {}
    for row in run.trials:
        if row["state"] == "planned":
            names.setdefault((row["backbone"], row["depth_label"]), []).append(row["trial"])
    common = {"images_computed": 1_437, "images_an_epoch": 1_800, "images_read": 43_200}
    late = common | {
        "backbone": "tf_efficientnet_lite0", "depth_label": "1", "mebibytes": 1_234.56, "prefix_ms_per_image": 2.0,
        "predicted_saving_s": 83.5, "store": True, "reason": "saves time",
        "trials": names["tf_efficientnet_lite0", "1"],
    }  # fmt: skip
    early = late | {
        "depth_label": "33", "store": False, "reason": "reading would take longer than computing again",
        "predicted_saving_s": -9.0, "trials": names["tf_efficientnet_lite0", "33"],
    }  # fmt: skip
    whole = late | {
        "backbone": "small_cnn", "depth_label": "all", "mebibytes": 0.0, "prefix_ms_per_image": 0.0, "store": False,
        "predicted_saving_s": 0.0, "reason": "nothing is frozen before the first trained layer",
        "trials": names["small_cnn", "all"],
    }  # fmt: skip
    decisions = [late | changed, early, whole]
    (run.folder / "features.json").write_text(json.dumps({"decisions": decisions, "made": list(made)}))
    return page.gather([read(run.folder)])


def test_table_has_the_cuts_that_have_a_prefix(digits_run):
    section = features(note(digits_run))
    assert section.title == "Shared computation"
    assert section.figure is None
    assert section.table == (
        {
            "network": "tf_efficientnet_lite0", "depth": "1", "stored": "yes", "size (MiB)": "1,234.6",
            "prefix (ms an image)": "2.00", "predicted saving": "84 s", "why": "saves time",
        },
        {
            "network": "tf_efficientnet_lite0", "depth": "33", "stored": "no", "size (MiB)": "1,234.6",
            "prefix (ms an image)": "2.00", "predicted saving": "0.0 s",
            "why": "reading would take longer than computing again",
        },
    )  # fmt: skip


def test_predicted_and_measured(digits_run):
    """Two trials of depth 1 ran 6 epochs and two were stopped at 3: 18 epochs of 1,800 images at 2 ms, 64.8 s.

    The pass took two lanes 30 s.
    """
    text = features(note(digits_run)).text
    assert "Predicted saving: 84 s of one process, if no trial is stopped early." in text
    assert "the pass over 1,437 images took 60 s of one process" in text
    assert "would have taken 65 s to compute." in text
    assert "Warning" not in text
    assert "float" not in text


@pytest.mark.parametrize("mark", [{"cached": False}, {"cached": True, "shared": True}])
def test_epochs_that_computed_the_prefix_or_were_another_trials_saved_nothing(make_run, mark):
    outcomes = digits_outcomes()
    marked = [
        (plan, state, [row.model_copy(update=mark) for row in rows] if plan.lr == 1e-3 else rows)
        for plan, state, rows in outcomes  # leaves the two trials of 3 epochs
    ]
    text = features(note(make_run(marked))).text
    assert "would have taken 22 s to compute." in text  # 6 × 1,800 × 2 ms = 21.6 s


@pytest.mark.parametrize("made", [(), (MADE | {"images": 0, "mebibytes": 0.0},)])
def test_features_of_an_earlier_run(digits_run, made):
    text = features(note(digits_run, made)).text
    assert "everything was there from an earlier run, so no pass was made. The epochs" in text


def test_problems_are_told(digits_run):
    problem = "features of tf_efficientnet_lite0 are not stored: No space left on device"
    text = features(note(digits_run, [MADE | {"images": 0, "problem": problem}])).text
    assert text.endswith(f" Warning: {problem}.")


def test_a_failed_pass_is_not_an_earlier_run(digits_run):
    failed = MADE | {"images": 0, "problem": "features of tf_efficientnet_lite0 are not stored: No space left"}
    assert "from an earlier run" not in features(note(digits_run, [failed])).text


@pytest.mark.parametrize(
    ("settings", "sentences"),
    [
        ({"dtype": "bfloat16"}, "It is stored as bfloat16, which rounds it. "),
        (
            {"precision": "float16", "dtype": None},
            "It is computed in float16, which rounds it. It is stored as float16, which rounds it. ",
        ),
        ({"precision": "tf32", "dtype": None}, "It is computed in tf32, which rounds it. "),
        ({"precision": "float32", "dtype": "float32"}, ""),
    ],
)
def test_rounding_is_told(make_run, settings, sentences):
    about = {"recipe": {"name": "r", "data": {"dataset": "digits"}, "features": settings}}
    text = features(note(make_run(digits_outcomes(), **about))).text
    assert f"computed once and stored. {sentences}Predicted" in text


def test_without_a_note_or_a_prefix_there_is_no_section(digits_run):
    assert features(page.gather([digits_run])) is None
    facts = note(digits_run)
    path = digits_run.folder / "features.json"
    whole = json.loads(path.read_text())["decisions"][2]
    assert features(facts) is not None
    path.write_text(json.dumps({"decisions": [whole], "made": []}))
    assert features(page.gather([read(digits_run.folder)])) is None


def test_it_is_in_the_report(digits_run, monkeypatch):
    monkeypatch.setattr(page, "png", lambda figure: b"")
    note(digits_run)
    html = page.build(digits_run.folder).read_text(encoding="utf-8")
    assert "Shared computation" in html
    assert "1,234.6" in html


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"data": {"dataset": "digits"}, "grid": {"depth": [1]}}, ""),
        ({"data": {"views": 4}, "grid": {"depth": [1]}}, "Where data.views=4,"),
        ({"data": {"views": None}, "grid": [{"views": [None, 16]}, {"views": 4}]}, "Where data.views=4 or 16,"),
    ],
)
def test_fixed_views_are_said_to_be_so(digits_run, recipe, words):
    facts = note(digits_run)
    facts.runs[0].about["recipe"] = recipe
    text = features(facts).text
    assert ("fixed random views" in text) == bool(words)
    assert words in text
