"""The final fit where no cluster is needed to see what it does; the fit itself is in test_run.py."""

import io
import json
import math
import signal
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score

from raysweep.engine import final, run
from raysweep.engine.resources import Machine
from raysweep.engine.storage import Storage
from raysweep.engine.trials import Jobs
from raysweep.recipe import Features, Recipe, dump
from raysweep.sweep.choice import counted, epochs_by_phase
from raysweep.sweep.ledger import Ledger, read
from raysweep.sweep.plan import plan
from raysweep.sweep.progress import Display
from raysweep.sweep.rows import FinalResult, TrialJob
from raysweep.train import phases
from raysweep.train.ddp import World
from raysweep.train.metrics import Predictions
from raysweep.train.network import assemble
from raysweep.train.phases import Fit, Sharing
from tests.features.small_trials import trial_of
from tests.sweep.sample_rows import configuration, epoch_row

METRICS = {
    "test_accuracy": 0.5, "test_accuracy_without_duplicates": None, "duplicated_test_images": 0, "test_loss": 1.5,
    "test_balanced_accuracy": 0.5, "test_macro_f1": 0.45, "test_top5": None, "test_calibration_error": 0.1,
    "calibration": [(0.6, 0.5, 4)], "test_images": 4, "train_images": 8, "train_loss": 1.25, "seconds": 2.0,
    "workers": 1, "class_names": ["a", "b"], "confusion": [[1, 1], [1, 1]],
}  # fmt: skip


@pytest.fixture
def job(tmp_path):
    (trial,) = Recipe.model_validate({"grid": {"backbone": "small_cnn"}}).trials()
    return TrialJob(
        name=trial.name, trial=trial, workers=1, cpus=1, gpus=0.0, folder=str(tmp_path), ray_folder="ray",
        objective="accuracy", features=Features(), refit=(2, 3),
    )  # fmt: skip


@pytest.fixture
def trainer(monkeypatch):
    """In the place of Ray Train's: `fit` is what a test makes it."""
    fake = SimpleNamespace(fit=lambda: None)
    monkeypatch.setattr(final, "TorchTrainer", lambda *_, **__: fake)
    return fake


def test_an_interrupt_is_the_sweeps_own(job, trainer):
    """Ray Train handles the signal itself and ends the process; the report would not be written."""

    def fit():
        signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
        signal.raise_signal(signal.SIGINT)

    before, trainer.fit = signal.getsignal(signal.SIGINT), fit
    try:
        with pytest.raises((KeyboardInterrupt, SystemExit)) as caught:
            final.refit(job, configuration())
        assert caught.type is KeyboardInterrupt
        assert signal.getsignal(signal.SIGINT) is before
    finally:
        signal.signal(signal.SIGINT, before)


def measured(job, found):
    """A fit that leaves what it measured, as rank 0 does."""

    def fit():
        Storage(job.folder).write(f"checkpoints/{job.name}/measured", json.dumps(found).encode())

    return fit


def test_the_result_is_what_was_measured(job, trainer, tmp_path):
    """Its checkpoints are not kept."""
    trainer.fit = measured(job, METRICS)
    chosen = configuration(axes={"optimizer": "sgd"})
    result = final.refit(job, chosen)
    shared = FinalResult.model_fields.keys() & set(dict(chosen))
    assert result == FinalResult(**METRICS, **{name: getattr(chosen, name) for name in shared}, epochs=5)
    assert not (tmp_path / "checkpoints" / job.name).exists()


def test_a_problem_is_an_error(job, trainer):
    trainer.fit = measured(job, {"problem": "the test loss is nan"})
    with pytest.raises(final.FinalFitError, match="the test loss is nan"):
        final.refit(job, configuration())


def test_a_fit_without_a_result_is_an_error(job, trainer):
    with pytest.raises(OSError, match="measured"):
        final.refit(job, configuration())


# ---- what the predictions of the test images amount to ----


def predictions(classes=3, count=60, outputs=None):
    """Of random images, as a network with so many outputs might predict them."""
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, count)
    predicted = np.where(random.random(count) < 0.6, labels, random.integers(0, outputs or classes, count))
    confidence = random.uniform(0.2, 1, count)
    return Predictions(
        labels=torch.from_numpy(labels),
        predicted=torch.from_numpy(predicted),
        confidence=torch.from_numpy(confidence),
        losses=torch.from_numpy(random.uniform(0, 2, count)),
        in_top5=torch.from_numpy(random.random(count) < 0.9),
    )


def test_scores_of_the_test_images():
    found = predictions()
    labels, predicted = found.labels.numpy(), found.predicted.numpy()
    scores = final._scores(found, ["ant", "bee", "cat"], (0, 1, 2))
    assert scores["test_accuracy"] == pytest.approx((labels == predicted).mean())
    assert scores["test_accuracy_without_duplicates"] == pytest.approx((labels == predicted)[3:].mean())
    assert (scores["duplicated_test_images"], scores["test_images"]) == (3, 60)
    assert scores["test_balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert scores["test_macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert (scores["test_loss"], scores["test_top5"]) == (pytest.approx(found.losses.mean().item()), None)
    assert scores["confusion"] == confusion_matrix(labels, predicted).tolist()
    assert scores["class_names"] == ["ant", "bee", "cat"]
    assert scores.keys() | {"train_images", "train_loss", "seconds", "workers"} == METRICS.keys()


def test_the_five_likeliest_are_scored_where_there_are_many_classes():
    found = predictions(classes=10)
    scores = final._scores(found, [f"class{k}" for k in range(10)], ())
    assert scores["test_top5"] == pytest.approx(found.in_top5.double().mean().item())


def test_outputs_that_are_no_class_are_wrong_and_in_no_column():
    found = predictions(outputs=9)
    matrix = np.array(final._scores(found, ["ant", "bee", "cat"], ())["confusion"])
    assert matrix.shape == (3, 3)
    assert matrix.sum() == (found.predicted < 3).sum()
    assert np.trace(matrix) == (found.predicted == found.labels).sum()


def test_calibration_by_hand():
    """Fifteen bins: 0.95 and 0.97 are in the last, 0.35 and 0.3 in bins of their own."""
    bins = final.calibration(np.array([0.95, 0.35, 0.97, 0.3]), np.array([True, True, False, False]))
    assert bins == [(0.3, 0.0, 1), (0.35, 1.0, 1), (pytest.approx(0.96), 0.5, 2)]


def test_the_calibration_error_is_the_mean_gap_over_images():
    found = predictions(count=500)
    confidence, right = found.confidence.numpy(), (found.predicted == found.labels).numpy()
    bins = np.ceil(confidence * 15)  # a bin holds its upper edge
    gaps = [abs(right[bins == k].mean() - confidence[bins == k].mean()) * (bins == k).sum() for k in set(bins)]
    scores = final._scores(found, ["ant", "bee", "cat"], ())
    assert scores["test_calibration_error"] == pytest.approx(sum(gaps) / 500)
    assert sum(images for _, _, images in scores["calibration"]) == 500


@pytest.mark.parametrize("right", [True, False])
def test_calibration_of_a_model_that_is_always_right_or_never(right):
    confidence = np.array([0.0, 1 / 15, 0.5, 1.0])
    bins = final.calibration(confidence, np.full(4, right))
    assert [accuracy for _, accuracy, _ in bins] == [float(right)] * len(bins)
    assert sum(images for _, _, images in bins) == 4
    assert sum(mean * images for mean, _, images in bins) == pytest.approx(confidence.sum())


# ---- how long it trains, and at which learning rates ----


def epochs_of(trial, refit=None):
    return list(Fit(trial, Sharing(Features(cache="never")), World(), refit=refit).epochs())


def schedule(rows):
    return [(row.epoch, row.phase, row.lr_epoch) for row in rows]


SETTINGS = {
    "cosine": {"schedule": "cosine", "epochs": 5},
    "step": {"schedule": "step", "step_epochs": 2, "step_gamma": 0.1, "epochs": 5},
    "the epoch of the lowest loss": {"schedule": "cosine", "epochs": 6, "keep": "best_loss", "lr": 0.2},
    "out of patience": {"schedule": "cosine", "epochs": 12, "patience": 1, "lr": 0.5},
    "phases": {
        "schedule": "cosine", "keep": "best_loss", "lr": 0.2,
        "phases": [{"depth": "head", "epochs": 3}, {"epochs": 4, "lr": 0.3}],
    },
}  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_refit_follows_the_trials_own_schedule(settings):
    """It halts after the epochs that the trial counts with, at the learning rates that the trial had there."""
    trial = trial_of(depth="all", **settings)
    rows = counted(epochs_of(trial), trial.train.keep)
    again = epochs_of(trial, refit=epochs_by_phase(rows))
    assert schedule(again) == schedule(rows)
    assert len({row.lr_epoch for row in rows}) > 1 or len(rows) == 1
    assert all(row.val_loss is None for row in again)


@pytest.mark.parametrize("halted", [1, 3])
def test_a_refit_that_halts_early_has_the_planned_cosine(halted):
    trial = trial_of(schedule="cosine", epochs=4, lr=0.02)
    rates = [0.01 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(halted)]
    assert [row.lr_epoch for row in epochs_of(trial, refit=(halted,))] == pytest.approx(rates)


@pytest.mark.parametrize("depth", ["head", "all"])
def test_a_batch_of_train_and_validation_images_passes_the_prefix_whole(monkeypatch, depth):
    """Its batch norm uses each batch's own statistics; over several ranks each has to take part every time."""
    sizes = []

    def assembled(*args):
        network = assemble(*args)
        watched = network.suffix if network.prefix is None else network.prefix
        watched.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
        return network

    monkeypatch.setattr(phases, "assemble", assembled)
    epochs_of(trial_of(depth=depth, batch_norm="training", epochs=1), refit=(1,))
    assert sizes == [16, 16, 16, 12]


# ---- which configurations ----

ACCURACY = {("small_cnn", 1): 0.5, ("small_cnn", 3): 0.949, ("cnn_846k", "all"): 0.95}
"""The last takes five times as long as the others."""
GRID = [
    {"backbone": "small_cnn", "depth": [1, 3], "lr": [0.01, 1e-4], "seed": [0, 1]},
    {"backbone": "cnn_846k", "depth": "all", "lr": [0.01, 1e-4], "seed": [0, 1]},
]


@pytest.fixture
def swept(tmp_path):
    """A sweep whose trials have ended, up to its final fits; the smaller learning rate is always worse."""

    def make(ended="finished", **recipe_fields):
        sweep = Recipe.model_validate(
            {"grid": GRID, "data": {"dataset": "fake:4"}, "model": {"weights": "none"}, "train": {"epochs": 3}}
            | {"tolerance": 5.0}
            | recipe_fields
        )
        planned = plan(sweep)
        with Ledger(tmp_path / "run") as book:
            book.describe({"recipe": dump(sweep)})
            book.plan([one.configuration for one in planned])
            for one in planned if ended else ():
                accuracy = ACCURACY[one.trial.backbone, one.trial.depth] - 0.2 * (one.trial.lr == 1e-4)
                seconds = 5.0 if one.trial.backbone == "cnn_846k" else 1.0
                for epoch in (1, 2, 3):
                    book.epoch(epoch_row(one.name, epoch, val_accuracy=accuracy, val_images=1000, seconds=seconds))
                book.trial(one.name, ended, epochs_completed=3, stopped_early=False)
        display = Display([one.configuration for one in planned], Console(file=io.StringIO()))
        words = (
            Jobs(sweep, Machine(2, 0), str(tmp_path / "run"), str(tmp_path / "ray"), ()),
            planned,
            tmp_path / "run",
            display,
        )
        return words, {one.name: one.trial for one in planned}

    return make


@pytest.fixture
def refitted(monkeypatch):
    """The final fits that were asked for, in the place of making them: their jobs by the names of their folders."""
    jobs = {}

    def refit(job, chosen):
        jobs[job.target.removeprefix("final/")] = job
        columns = {key: value for key, value in dict(chosen).items() if key in FinalResult.model_fields}
        return FinalResult.model_validate(columns | METRICS | {"epochs": sum(job.refit)})

    monkeypatch.setattr(run.final, "refit", refit)
    return jobs


FINDINGS = SimpleNamespace(duplicated_test=(3, 5))


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        ("recommended", {"recommended": ("small_cnn", 3)}),
        ("best", {"best": ("cnn_846k", "all")}),
        ("each-network", {"small_cnn": ("small_cnn", 3), "cnn_846k": ("cnn_846k", "all")}),
        (
            "all",
            {
                "small_cnn-depth-1": ("small_cnn", 1),
                "small_cnn-depth-3": ("small_cnn", 3),
                "cnn_846k-all-layers": ("cnn_846k", "all"),
            },
        ),
    ],
)
def test_what_is_refitted(swept, refitted, of, expected):
    """Each at its best learning rate; the recommended is the cheapest that is within the tolerance."""
    words, _ = swept(final={"of": of})
    assert run._finals(*words, FINDINGS) == ""
    chosen = {name: job.trial for name, job in refitted.items()}
    assert {name: (trial.backbone, trial.depth) for name, trial in chosen.items()} == expected
    assert {(trial.lr, trial.seed) for trial in chosen.values()} == {(0.01, 0)}
    assert {(job.refit, job.duplicated_test, job.workers) for job in refitted.values()} == {((3,), (3, 5), 2)}
    assert {name: result.trial for name, result in read(words[2]).finals.items()} == {
        name: job.trial.name for name, job in refitted.items()
    }


def test_without_a_final_fit_there_is_none(swept, refitted):
    words, _ = swept(final={"enabled": False})
    assert run._finals(*words, FINDINGS) == ""
    assert refitted == {}


@pytest.mark.parametrize("ended", [None, "failed"])
def test_where_nothing_came_to_a_result_there_is_nothing_to_refit(swept, refitted, ended):
    words, _ = swept(ended)
    assert run._finals(*words, FINDINGS) == "no trial came to a result"
    assert refitted == {}


def test_a_final_fit_that_fails_leaves_the_others(swept, refitted, monkeypatch):
    sound = run.final.refit

    def refit(job, chosen):
        if chosen.backbone == "small_cnn":
            raise RuntimeError("Traceback\nRuntimeError: out of memory")
        return sound(job, chosen)

    monkeypatch.setattr(run.final, "refit", refit)
    words, _ = swept(final={"of": "each-network"})
    assert run._finals(*words, FINDINGS) == "the final fit of small_cnn failed: RuntimeError: out of memory"
    assert list(read(words[2]).finals) == ["cnn_846k"]
