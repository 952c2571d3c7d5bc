"""What crosses processes returns from its JSON as it was, and nothing else is taken for it."""

import pytest
from pydantic import ValidationError

from raysweep.recipe import Features, Recipe
from raysweep.sweep.rows import Stop, TrialJob, TrialRow, why
from tests.sweep.sample_rows import configuration, epoch_row


def job(**changed):
    grid = {"backbone": "small_cnn", "depth": [["stage1", "head"]], "head": {"kind": "mlp", "sizes": [8, 4]}}
    (trial,) = Recipe.model_validate({"grid": grid, "train": {"phases": [{"depth": "head", "epochs": 2}, {}]}}).trials()
    fields = {
        "name": trial.name,
        "trial": trial,
        "workers": 2,
        "cpus": 1,
        "gpus": 0.5,
        "ray_folder": "ray",
        "folder": "/run",
    }
    return TrialJob(
        **fields | {"ray_folder": "ray", "objective": "macro_f1", "features": Features(dtype="bfloat16")} | changed
    )


STOP = Stop(epoch=3, against="lr 0.001", behind=0.125, error=0.0125)
ROWS = {
    "configuration": lambda: configuration(depth=("layer1", "fc"), axes={"patience": None}),
    "job of a trial": lambda: job(rungs=(2, 4)),
    "job of a final fit": lambda: job(refit=(2, 7), duplicated_test=(3, 5), stored=("a",)),
    "epoch": lambda: epoch_row(val_by_step=[{"step": 3, "epoch": 0.5, "val_loss": 1.0, "val_accuracy": 0.5}]),
    "epoch without validation": lambda: epoch_row(val_loss=None, val_accuracy=None, val_images=None),
    "epoch at a rung": lambda: epoch_row(evidence="bits:2:wA==", over=True),
    "why a trial was stopped": lambda: STOP,
    "change of state": lambda: TrialRow(trial="a", state="failed", time=1.5, error="why"),
    "a trial that is not started": lambda: TrialRow(trial="a", state="dropped", time=1.5, stop=STOP),
}
each_row = pytest.mark.parametrize("make", ROWS.values(), ids=ROWS)


@each_row
def test_json_and_back(make):
    row = make()
    assert row.schema_version == 2
    assert type(row).model_validate_json(row.model_dump_json()) == row


@each_row
def test_nothing_in_it_can_be_changed(make):
    with pytest.raises(ValidationError, match="frozen"):
        make().schema_version = 3


@each_row
@pytest.mark.parametrize("more", [{"schema_version": 3}, {"unheard_of": 1}])
def test_another_editions_rows_are_refused(make, more):
    row = make()
    with pytest.raises(ValidationError, match=next(iter(more))):
        type(row).model_validate(row.model_dump() | more)


def test_a_job_keeps_its_trials_name():
    one = job()
    assert TrialJob.model_validate_json(one.model_dump_json()).trial.name == one.name


@pytest.mark.parametrize("state", ["done", ""])
def test_states_are_those_that_are_known(state):
    with pytest.raises(ValidationError, match="state"):
        TrialRow(trial="a", state=state, time=0.0)


@pytest.mark.parametrize("objective", ["top5", "", None])
def test_objectives_are_those_that_are_known(objective):
    with pytest.raises(ValidationError, match="objective"):
        job(objective=objective)


@pytest.mark.parametrize(
    ("stop", "words"),
    [
        (STOP, "12.5 ± 1.2 points behind lr 0.001 at epoch 3"),
        (Stop(epoch=3, against="the trials before it"), "behind the trials before it"),
        (None, ""),
    ],
)
def test_why_a_trial_was_stopped_in_words(stop, words):
    assert why(stop) == words


def test_of_loss_there_are_no_points():
    assert why(STOP, "loss") == "a loss 0.125 ± 0.013 above that of lr 0.001 at epoch 3"
