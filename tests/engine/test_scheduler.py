"""Ray Tune's side of early stopping; what is decided is tested in tests/sweep/test_rungs.py."""

import numpy as np
import pytest
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from raysweep.engine.jobs import REPORT
from raysweep.engine.scheduler import EarlyStoppingScheduler, JobQueue
from raysweep.sweep.evidence import pack
from raysweep.sweep.rows import Report
from raysweep.sweep.rungs import Entrant, Guard, Halving
from tests.sweep.sample_rows import epoch_row

CONTINUE, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP
TRIALS = {"good 0": (0.1, 0), "bad 0": (0.2, 0), "good 1": (0.1, 1), "bad 1": (0.2, 1)}
IMAGES = 100


@pytest.fixture
def guard():
    """Two rates with two seeds each, compared after one epoch and after two."""
    return Guard({name: Entrant("g", *place) for name, place in TRIALS.items()}, (1, 2), 0.005, 3.0)


@pytest.fixture
def halving():
    return Halving(dict.fromkeys(TRIALS), (1, 2), 2, "val_accuracy")


def report(scheduler, trial, epoch, accuracy, over=False):
    """What Tune is answered when a trial reports a row."""
    evidence = pack(np.arange(IMAGES) < round(IMAGES * accuracy))
    row = epoch_row(trial, epoch, val_accuracy=accuracy, evidence=evidence, over=over)
    return scheduler.on_trial_result(
        None, None, {REPORT: Report(row=row).model_dump_json(), "training_iteration": epoch}
    )


# ---- after an epoch ----


def test_who_reports_and_is_behind_is_stopped(halving):
    scheduler = EarlyStoppingScheduler(halving)
    assert report(scheduler, "good 0", 1, 0.9) == CONTINUE
    assert report(scheduler, "bad 0", 1, 0.1) == STOP
    assert report(scheduler, "bad 1", 1, 0.0, over=True) == CONTINUE  # its last epoch
    assert halving.stopped.keys() == {"bad 0"}


def test_who_is_found_to_be_behind_is_stopped_at_its_next_report(guard):
    scheduler = EarlyStoppingScheduler(guard)
    assert report(scheduler, "bad 0", 1, 0.1) == CONTINUE
    assert report(scheduler, "bad 1", 1, 0.1) == CONTINUE
    assert report(scheduler, "good 0", 1, 0.9) == CONTINUE
    assert report(scheduler, "bad 0", 2, 0.1) == STOP
    assert report(scheduler, "bad 1", 3, 0.1) == STOP  # at no rung
    assert report(scheduler, "good 0", 2, 0.1) == CONTINUE


def test_after_its_last_epoch_a_trial_ends_by_itself(guard):
    scheduler = EarlyStoppingScheduler(guard)
    report(scheduler, "good 0", 1, 0.9)
    report(scheduler, "bad 0", 1, 0.1)
    assert report(scheduler, "bad 0", 2, 0.1, over=True) == CONTINUE
    assert "bad 0" in guard.stopped


def test_a_trial_that_reports_a_problem_ends_by_itself(guard):
    result = {REPORT: Report(problem="the loss is nan").model_dump_json()}
    assert EarlyStoppingScheduler(guard).on_trial_result(None, None, result) == CONTINUE


def test_a_row_that_arrives_twice_has_the_same_answer(halving):
    scheduler = EarlyStoppingScheduler(halving)
    answers = [report(scheduler, *row) for row in 2 * [("good 0", 1, 0.9), ("bad 0", 1, 0.1)]]
    assert answers == 2 * [CONTINUE, STOP]


def test_debug_string(guard, halving):
    assert EarlyStoppingScheduler(guard).debug_string() == "early stopping by Guard"
    assert EarlyStoppingScheduler(halving).debug_string() == "early stopping by Halving"


# ---- before a trial ----


def names(queue, count):
    """The names that are handed out when Tune asks so many times."""
    suggested = [queue.suggest(str(number)) for number in range(count)]
    return [one if one == Searcher.FINISHED else one["job"] for one in suggested]


def test_jobs_are_handed_out_in_order():
    left = []
    queue = JobQueue(list(TRIALS), None, left.append)
    assert names(queue, 6) == [*TRIALS, Searcher.FINISHED, Searcher.FINISHED]
    assert left == []


def test_what_is_decided_meanwhile_is_left_out(guard):
    left = []
    queue, scheduler = JobQueue(list(TRIALS), guard, left.append), EarlyStoppingScheduler(guard)
    assert names(queue, 2) == ["good 0", "bad 0"]
    report(scheduler, "good 0", 1, 0.9)
    report(scheduler, "bad 0", 1, 0.1)
    assert left == []
    assert names(queue, 2) == ["good 1", Searcher.FINISHED]
    assert left == ["bad 1"]
    assert names(queue, 1) == [Searcher.FINISHED]
    assert left == ["bad 1"]


def test_a_queue_that_is_left_out_to_the_end_is_finished(guard):
    left = []
    queue = JobQueue(["bad 0", "bad 1"], guard, left.append)
    guard.stopped |= dict.fromkeys(["bad 0", "bad 1"])
    assert names(queue, 1) == [Searcher.FINISHED]
    assert left == ["bad 0", "bad 1"]


def test_tune_has_nothing_to_save_and_limits_how_many_run(tmp_path):
    queue = JobQueue(["a"], None, print)
    queue.save_to_dir(str(tmp_path))
    queue.restore("nowhere")
    queue.on_trial_complete("1", {"row": "{}"}, error=True)
    assert list(tmp_path.iterdir()) == []
    assert not queue.set_max_concurrency(1)
    assert names(queue, 2) == ["a", Searcher.FINISHED]
