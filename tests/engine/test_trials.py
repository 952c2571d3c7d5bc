"""The trials of a sweep as Ray Tune has them, without a cluster."""

from types import SimpleNamespace

import pytest

from raysweep.engine.jobs import job_of
from raysweep.engine.resources import Machine
from raysweep.engine.trials import Jobs, _Recorder, last_line, strata_of
from raysweep.recipe import Recipe
from raysweep.sweep.ledger import Ledger, read
from raysweep.sweep.progress import Display
from raysweep.sweep.rungs import Strata
from tests.sweep.sample_rows import configuration, epoch_row

GRID = {"backbone": "small_cnn", "depth": [1, ["stage1", "head"]], "lr": [0.1, 0.2], "seed": [0, 1]}


def recipe(**more):
    return Recipe.model_validate({"grid": GRID, "model": {"weights": "none"}, **more})


# ---- strata ----


@pytest.mark.parametrize(
    ("within", "count"),
    [
        (["backbone", "depth", "seed"], 4),
        (["depth"], 2),
        ([], 1),
        (["lr", "optimizer"], 4),
        (["image_size", "phases", "head"], 2),
    ],
)
def test_trials_compete_with_those_equal_in_the_axes_named(within, count):
    """Each is worse than all before it, so that of each stratum the first alone goes on."""
    grid = GRID | {"optimizer": ["sgd", "adam"], "head": ["linear", {"kind": "mlp", "sizes": [8, 4]}]}
    sweep = recipe(grid=grid, asha={"grace_epochs": 1, "compare_within": within})
    strata = strata_of(sweep, sweep.trials())
    verdicts = [strata.decide(trial.name, 1, -place) for place, trial in enumerate(sweep.trials())]
    assert verdicts.count("continue") == count


def test_trials_run_their_own_number_of_epochs():
    sweep = recipe(grid=GRID | {"epochs": [1, 3]}, asha={"grace_epochs": 1, "compare_within": []})
    strata = strata_of(sweep, sweep.trials())
    verdicts = {trial.name: strata.decide(trial.name, 1, -place) for place, trial in enumerate(sweep.trials())}
    stopped = [trial for trial in sweep.trials() if verdicts[trial.name] == "stop"]
    assert stopped
    assert {trial.train.epochs for trial in stopped} == {3}
    assert strata.stopped == {trial.name for trial in stopped}


def test_without_asha_there_are_no_strata():
    sweep = recipe(asha=None)
    assert strata_of(sweep, sweep.trials()) is None


# ---- jobs ----


def test_a_job_has_all_that_its_process_needs(tmp_path):
    sweep = recipe(resources={"workers_per_trial": 2, "cpus_per_worker": 3}, features={"dtype": "bfloat16"})
    trial = sweep.trials()[1]
    job = Jobs(sweep, Machine(8, 2), tmp_path, ("a", "b")).of(trial)
    assert (job.name, job.trial, job.workers, job.cpus, job.gpus) == (trial.name, trial, 2, 3, 1.0)
    assert (job.storage, job.features, job.stored, job.refit) == (str(tmp_path), sweep.features, ("a", "b"), None)
    assert job_of({"job": job.model_dump_json()}) == job


# ---- errors ----


@pytest.mark.parametrize(
    ("error", "line"),
    [
        ("Traceback (most recent call last):\n  File ...\nraysweep.train.loop.DivergedError: lower lr\n\n",
         "DivergedError: lower lr"),
        ("ray.exceptions.RayTaskError(RuntimeError): x\n  RuntimeError: out of memory", "RuntimeError: out of memory"),
        (ValueError("two\nlines"), "lines"),
        ("no error in it", "no error in it"),
        ("", ""),
        (RuntimeError(), ""),
    ],
)  # fmt: skip
def test_last_line(error, line):
    assert last_line(error) == line


# ---- rows into the ledger ----


class FakeTrial:
    """As far as the recorder touches one of Tune's trials."""

    def __init__(self, name, error_file=None):
        self.name, self.error_file = name, error_file

    def __str__(self):
        return self.name


@pytest.fixture
def recorded(tmp_path):
    """A recorder, and a reader of what it has written."""
    with Ledger(tmp_path / "run") as book:
        book.describe({})
        display = Display([configuration("a"), configuration("b")])
        strata = Strata({"a": 0, "b": 0}, {"a": 4, "b": 4}, 1, 2)
        yield SimpleNamespace(
            recorder=_Recorder(book, display, strata), strata=strata, read=lambda: read(tmp_path / "run")
        )


def send(recorder, trial, epoch):
    recorder.on_trial_result(0, [], FakeTrial(trial), {"row": epoch_row(trial, epoch).model_dump_json()})


def test_every_epoch_is_written_once(recorded):
    recorded.recorder.on_trial_start(0, [], FakeTrial("a"))
    for epoch in (1, 2, 2, 1):
        send(recorded.recorder, "a", epoch)
    recorded.recorder.on_trial_complete(0, [], FakeTrial("a"))
    run = recorded.read()
    assert [row["epoch"] for row in run.epochs] == [1, 2]
    assert [row["state"] for row in run.trials] == ["running", "finished"]
    assert (run.trials[-1]["epochs_completed"], run.trials[-1]["stopped_early"]) == (2, False)


def test_a_trial_that_was_stopped_is_told_from_one_that_finished(recorded):
    for trial, accuracy in (("a", 0.9), ("b", 0.1)):
        send(recorded.recorder, trial, 1)
        recorded.strata.decide(trial, 1, accuracy)
        recorded.recorder.on_trial_complete(0, [], FakeTrial(trial))
    assert {row["trial"]: (row["state"], row["stopped_early"]) for row in recorded.read().trials} == {
        "a": ("finished", False),
        "b": ("stopped", True),
    }


@pytest.mark.parametrize(
    ("text", "error"),
    [("Traceback\nraysweep.train.loop.DivergedError: the loss is nan", "DivergedError: the loss is nan"), (None, None)],
)
@pytest.mark.parametrize("last", ["step", "experiment"])
def test_a_failed_trial_says_why(recorded, tmp_path, text, error, last):
    """Tune stores the error only after it has told of it."""
    send(recorded.recorder, "a", 1)
    trial = FakeTrial("a")
    recorded.recorder.on_trial_error(0, [], trial)
    assert recorded.read().trials == []
    if text is not None:
        trial.error_file = tmp_path / "error.txt"
        trial.error_file.write_text(text, encoding="utf-8")
    ends = (recorded.recorder.on_step_end, (0, [])), (recorded.recorder.on_experiment_end, ([],))
    for end, words in ends if last == "step" else ends[1:]:
        end(*words)
    (row,) = recorded.read().trials
    assert (row["state"], row["epochs_completed"]) == ("failed", 1)
    assert row["error"] == (error or "the trial's process ended")
