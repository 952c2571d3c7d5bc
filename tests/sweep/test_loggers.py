"""Rows at experiment trackers, as the trackers' own libraries read them again."""

import pytest

from raysweep.recipe import Recipe, RecipeError
from raysweep.sweep import loggers
from raysweep.sweep.loggers import KINDS, Loggers, check, label, numbers_of
from raysweep.sweep.plan import plan
from tests.sweep.sample_rows import configuration, epoch_row

TRIALS = [configuration("a"), configuration("b", seed=1)]


def follow(names, folder, rows, ends=(), warn=pytest.fail):
    """A sweep's rows and ends at the trackers."""
    followed = Loggers(names, folder, "digits", TRIALS, warn)
    for row in rows:
        followed.row(row)
    for trial, state in ends:
        followed.end(trial, state)
    followed.close()


def test_the_numbers_of_an_epoch_are_grouped_by_split():
    assert numbers_of(epoch_row(train_accuracy=None)) == {
        "train/loss": 1.25, "val/loss": 1.5, "val/accuracy": 0.5, "seconds": 1.5,
    }  # fmt: skip


def test_a_trial_is_named_for_a_person_and_a_folder():
    named = label(configuration("a", backbone="timm/vit_small.augreg", depth_label="layer3+head"))
    assert named == "timm-vit_small.augreg-depth-layer3+head-lr-0.001-seed-0-a"


def test_tensorboard_has_every_row(tmp_path):
    pytest.importorskip("tensorboard", reason="pip install 'raysweep[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    follow(["tensorboard"], tmp_path, [epoch_row("a", 1), epoch_row("b", 1), epoch_row("a", 2, val_accuracy=0.75)])
    follow(["tensorboard"], tmp_path, [epoch_row("a", 3)])  # after a resume
    events = EventAccumulator(str(tmp_path / "tensorboard" / label(TRIALS[0])))
    events.Reload()
    assert [(one.step, one.value) for one in events.Scalars("val/accuracy")] == [(1, 0.5), (2, 0.75), (3, 0.5)]
    assert (tmp_path / "tensorboard" / label(TRIALS[1])).is_dir()


def test_mlflow_has_every_row_and_how_trials_ended(tmp_path, monkeypatch):
    tracking = pytest.importorskip("mlflow.tracking", reason="pip install 'raysweep[mlflow]'")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    follow(["mlflow"], tmp_path, [epoch_row("a", 1), epoch_row("b", 1)], [("b", "failed")])
    follow(["mlflow"], tmp_path, [epoch_row("a", 2, val_accuracy=0.75)], [("a", "finished")])  # after a resume
    client = tracking.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    first, second = sorted(runs, key=lambda run: run.data.tags["raysweep.trial"])
    assert (first.info.status, second.info.status) == ("FINISHED", "FAILED")
    assert first.data.params["lr"] == "0.001"
    values = client.get_metric_history(first.info.run_id, "val/accuracy")
    assert [(one.step, one.value) for one in values] == [(1, 0.5), (2, 0.75)]


def test_wandb_has_a_run_for_each_trial(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="pip install 'raysweep[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    follow(["wandb"], tmp_path, [epoch_row("a", 1), epoch_row("b", 1), epoch_row("a", 2)], [("b", "failed")])
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 2


def test_a_tracker_that_fails_is_left_out_and_said_once(tmp_path, monkeypatch):
    class Broken:
        def __init__(self, folder, name):
            self.calls = 0

        def epoch(self, *_):
            raise OSError("no\n network")

    sent, said = [], []

    class Whole(Broken):
        def epoch(self, configuration, epoch, numbers):
            sent.append((configuration.trial, epoch))

        def end(self, trial, state):
            sent.append((trial, state))

        def close(self):
            sent.append("closed")

    monkeypatch.setitem(KINDS, "mlflow", Broken)
    monkeypatch.setitem(KINDS, "wandb", Whole)
    rows = [epoch_row("a", 1), epoch_row("a", 2)]
    follow(["mlflow", "wandb"], tmp_path, rows, [("a", "finished")], said.append)
    assert said == ["warning: mlflow is left out from now on: no network"]
    assert sent == [("a", 1), ("a", 2), ("a", "finished"), "closed"]


def test_a_missing_package_is_named_before_anything_starts(monkeypatch):
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
    told = r'loggers=mlflow needs the package mlflow: pip install "raysweep\[mlflow\]"'
    with pytest.raises(RecipeError, match=told):
        check(["mlflow"])
    sweep = Recipe.model_validate({"loggers": "mlflow", "data": {"dataset": "fake:2"}})
    with pytest.raises(RecipeError, match=told):
        plan(sweep)
