"""What a trial's process leaves beside its rows: predictions of the validation images, and what they contribute."""

import errno
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from raysweep.engine.jobs import REPORT, _own_problem, report_of, sharing_of
from raysweep.engine.saving import CountedPredictions, Saver, save_running
from raysweep.engine.storage import Storage
from raysweep.recipe import Features
from raysweep.sweep.evidence import contributions, read_predictions, unpack
from raysweep.sweep.rows import Report, TrialJob
from raysweep.train.checkpoint import Checkpoint
from raysweep.train.ddp import World
from raysweep.train.loop import DivergedError
from raysweep.train.metrics import Predictions
from tests.features.small_trials import trial_of
from tests.sweep.sample_rows import epoch_row

LABELS = np.array([0, 0, 0, 1, 1, 2])
CLASSES = 3


def job_of(tmp_path, objective="accuracy", **settings):
    trial = trial_of(**settings)
    return TrialJob(
        name="a", trial=trial, workers=1, cpus=1, gpus=0.0, folder=str(tmp_path), ray_folder=str(tmp_path / "ray"),
        objective=objective, features=Features(), stored=("x",),
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


def counted_of(job):
    return CountedPredictions(job, Storage(job.folder), CLASSES, "key")


def seen(job, losses, without=()):
    """What was counted after each epoch: the epoch, as the folder has it."""
    counted, epochs = counted_of(job), []
    for epoch, loss in enumerate(losses, start=1):
        counted.see(epoch_row(epoch=epoch, val_loss=loss), None if epoch in without else predictions(epoch))
        found = read_predictions(Path(job.folder), "a")
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


def test_in_an_object_store_no_phases_are_shared(tmp_path):
    job = job_of(tmp_path).model_copy(update={"ray_folder": "s3://bucket/run/ray"})
    assert sharing_of(job).folder is None


def test_a_report_crosses_as_json():
    report = Report(row=epoch_row(evidence="bits:2:wA==", over=True), warning="no room")
    assert report_of({REPORT: report.model_dump_json(), "training_iteration": 1}) == report


# ---- checkpoints ----


@pytest.mark.parametrize("keep", ["last", "best_loss"])
def test_what_counts_is_in_the_checkpoint(tmp_path, keep):
    """After a restart the same is counted, to the last bit."""
    job = job_of(tmp_path, "loss", keep=keep)
    counted, _ = seen(job, (3.0, 1.0, 2.0))
    saver = Saver(job, World(), counted)
    saver.rows.append(epoch_row(epoch=3))
    saver.keep(Checkpoint({"x": torch.ones(2)}, {}))
    again = counted_of(job)
    other = Saver(job, World(), again)
    assert other.read().facts["rows"] == [epoch_row(epoch=3).model_dump(mode="json")]
    assert list(other.rows) == [epoch_row(epoch=3)]
    assert again.packed() == counted.packed()
    for one in (counted, again):
        one.see(epoch_row(epoch=4, val_loss=1.5), predictions(4))
    assert (again.found.epoch, again.packed()) == (counted.found.epoch, counted.packed())


def test_without_a_checkpoint_a_trial_begins_anew(tmp_path):
    saver = Saver(job_of(tmp_path), World(), counted_of(job_of(tmp_path)))
    assert saver.read() is None
    assert list(saver.rows) == []


def test_without_room_it_is_told_once_and_the_trial_goes_on(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("raysweep.train.checkpoint.write_bytes", full)
    monkeypatch.setattr("raysweep.engine.storage.write_bytes", full)
    saver = Saver(job_of(tmp_path), World())
    saver.keep(Checkpoint({}, {}))
    assert "No space left on device" in saver.told()["warning"]
    assert saver.told() == {"warning": None}


def test_rank_0_alone_writes(tmp_path):
    Saver(job_of(tmp_path), World(rank=1, size=2)).keep(Checkpoint({"x": torch.ones(1)}, {}))
    assert not (tmp_path / "checkpoints").exists()


def test_within_an_epoch_a_checkpoint_is_due_after_its_minutes(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr("raysweep.engine.saving.time.monotonic", lambda: clock.now)
    saver = Saver(job_of(tmp_path).model_copy(update={"checkpoint_minutes": 0.5}), World())
    due = []
    for _ in range(10):
        clock.now += 10
        due.append(saver.due())
        if due[-1]:
            saver.keep(Checkpoint({"x": torch.ones(1)}, {}))
    assert due == [False, False, False, True, False, False, False, True, False, False]


def test_when_the_sweep_is_stopped_every_running_trial_saves_itself_once(tmp_path):
    """Three trials: one in an epoch, one that waits with a row, and one that never answers."""
    job = job_of(tmp_path)
    running = Saver(job, World())
    waits = Saver(job.model_copy(update={"name": "waits"}), World())
    waits.rows.append(epoch_row(epoch=3))
    waits.keep(Checkpoint({"x": torch.ones(1)}, {}))
    saved = []

    def train():
        while not saved:
            if running.due():
                running.keep(Checkpoint({"x": torch.ones(1)}, {}))
                saved.append(running.due())
            time.sleep(0.05)

    thread = threading.Thread(target=train)
    thread.start()
    started = time.monotonic()
    save_running(str(tmp_path), {"a": 1, "waits": 2})
    thread.join()
    assert time.monotonic() - started < 5
    assert saved == [False]
    assert running.read() is not None
    assert not (tmp_path / ".stop").exists()


def test_a_trial_that_does_not_answer_is_not_waited_for_long(tmp_path, monkeypatch):
    monkeypatch.setattr("raysweep.engine.saving.SAVE_S", 0.2)
    save_running(str(tmp_path), {"a": 1})
    assert not (tmp_path / ".stop").exists()


# ---- whose fault ----


@pytest.mark.parametrize(
    ("error", "problem", "diverged"),
    [
        (DivergedError("the loss is nan"), "the loss is nan", True),
        (torch.OutOfMemoryError("CUDA out of memory"), "lower train.batch_size", False),
        (OSError(errno.ENOSPC, "No space left on device"), "there is no room", False),
        (ValueError("two\nlines"), "ValueError: two lines", False),
    ],
)
def test_what_fails_for_its_own_reason_is_reported(error, problem, diverged):
    found = _own_problem(error)
    assert problem in found.problem
    assert found.diverged == diverged


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), ConnectionError("reset"), RuntimeError("NCCL error")]
)
def test_what_may_go_better_next_time_is_not(error):
    assert _own_problem(error) is None
