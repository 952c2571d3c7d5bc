"""What a trial's process leaves beside its rows: predictions of the validation images, and what they contribute."""

import numpy as np
import pytest
import torch

from raysweep.engine.jobs import CountedPredictions, ray_folder, row_of, sharing_of
from raysweep.recipe import Features
from raysweep.sweep.evidence import contributions, read_predictions, unpack
from raysweep.sweep.rows import TrialJob
from raysweep.train.metrics import Predictions
from tests.features.small_trials import trial_of
from tests.sweep.sample_rows import epoch_row

LABELS = np.array([0, 0, 0, 1, 1, 2])
CLASSES = 3


def job_of(tmp_path, objective="accuracy", **settings):
    trial = trial_of(**settings)
    return TrialJob(
        name="a", trial=trial, workers=1, cpus=1, gpus=0.0, folder=str(tmp_path), objective=objective,
        features=Features(), stored=("x",),
    )  # fmt: skip


def predictions(seed):
    random = np.random.default_rng(seed)
    losses = random.uniform(0, 2, len(LABELS))
    return Predictions(
        labels=torch.from_numpy(LABELS),
        predicted=torch.from_numpy(random.integers(0, CLASSES, len(LABELS))),
        confidence=torch.full((len(LABELS),), 0.5),
        losses=torch.from_numpy(losses),
        in_top5=torch.ones(len(LABELS), dtype=torch.bool),
    )


def seen(job, losses, without=()):
    """What was counted after each epoch: the epoch, as the folder has it."""
    counted, epochs = CountedPredictions(job, CLASSES, "key"), []
    for epoch, loss in enumerate(losses, start=1):
        counted.see(epoch_row(epoch=epoch, val_loss=loss), None if epoch in without else predictions(epoch))
        found = read_predictions(ray_folder(job).parent, "a")
        epochs.append(found.epoch if found else None)
        assert (counted.packed() is None) == (found is None)
    return counted, epochs


@pytest.mark.parametrize(
    ("keep", "losses", "without", "epochs"),
    [
        ("last", (3.0, 1.0, 2.0), (), [1, 2, 3]),
        ("best_loss", (3.0, 1.0, 2.0), (), [1, 2, 2]),
        ("best_loss", (1.0, 1.0, 0.5), (), [1, 1, 3]),
        ("best_loss", (3.0, 1.0, 2.0, 0.5), (1, 3), [None, 2, 2, 4]),  # an epoch that left none does not count
        ("last", (3.0, 1.0, 2.0, 0.5), (1, 3), [None, 2, 2, 4]),
    ],
)
def test_predictions_are_those_of_the_epoch_that_counts(tmp_path, keep, losses, without, epochs):
    counted, found = seen(job_of(tmp_path, keep=keep), losses, without)
    assert found == epochs
    kept, expected = read_predictions(tmp_path, "a"), predictions(epochs[-1])
    assert kept.predicted.tolist() == expected.predicted.tolist()
    assert kept.true_probability == pytest.approx(np.exp(-expected.losses.numpy()), rel=1e-6)
    assert kept.val_key == "key"
    assert counted.found.epoch == epochs[-1]


@pytest.mark.parametrize("objective", ["accuracy", "balanced_accuracy", "macro_f1", "loss"])
def test_rows_carry_what_images_contribute_to_the_objective(tmp_path, objective):
    counted, _ = seen(job_of(tmp_path, objective), (3.0, 1.0))
    last = predictions(2)
    expected = contributions(objective, last.predicted.numpy(), last.true_probability.numpy(), LABELS, CLASSES)
    assert unpack(counted.packed()) == pytest.approx(expected, rel=1e-3, abs=1e-7)


def test_trials_of_a_run_share_what_they_begin_with(tmp_path):
    sharing = sharing_of(job_of(tmp_path))
    assert (sharing.stored, sharing.folder) == ({"x"}, tmp_path / "ray" / "phases")


def test_a_row_crosses_as_json():
    row = epoch_row(evidence="bits:2:wA==", over=True)
    assert row_of({"row": row.model_dump_json(), "training_iteration": 1}) == row
