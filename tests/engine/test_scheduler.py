"""Ray Tune's side of successive halving; what is decided is tested in tests/sweep/test_rungs.py."""

import pytest
from ray.tune.schedulers import TrialScheduler

from raysweep.engine.scheduler import HalvingScheduler
from raysweep.sweep.rungs import Strata
from tests.sweep.sample_rows import epoch_row

EPOCHS = {"good": 4, "bad": 4, "short": 1}


@pytest.fixture
def strata():
    return Strata(dict.fromkeys(EPOCHS), EPOCHS, grace=1, factor=2)


def report(scheduler, trial, epoch, accuracy):
    """What Tune is answered when a trial reports a row."""
    row = epoch_row(trial, epoch, val_accuracy=accuracy)
    return scheduler.on_trial_result(None, None, {"row": row.model_dump_json(), "training_iteration": epoch})


def test_verdicts_are_those_of_the_strata(strata):
    scheduler = HalvingScheduler(strata)
    assert report(scheduler, "good", 1, 0.9) == TrialScheduler.CONTINUE
    assert report(scheduler, "bad", 1, 0.1) == TrialScheduler.STOP
    assert report(scheduler, "short", 1, 0.0) == TrialScheduler.CONTINUE  # its last epoch
    assert strata.stopped == {"bad"}


def test_a_row_that_arrives_twice_has_the_same_answer(strata):
    scheduler = HalvingScheduler(strata)
    answers = [report(scheduler, *row) for row in 2 * [("good", 1, 0.9), ("bad", 1, 0.1)]]
    assert answers == 2 * [TrialScheduler.CONTINUE, TrialScheduler.STOP]


def test_debug_string(strata):
    assert HalvingScheduler(strata).debug_string() == "successive halving within strata"
