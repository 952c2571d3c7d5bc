"""Successive halving as arithmetic: trials are names, and every trial of an epoch reports before the next epoch."""

from dataclasses import dataclass

import numpy as np
import pytest

from raysweep.sweep.rungs import Rungs, Strata, milestones, quantile


@dataclass(frozen=True)
class FakeTrial:
    depth: int
    lr: float
    epochs: int = 4

    def __str__(self):
        return f"{self.depth}/{self.lr}"


GRID = [FakeTrial(depth, lr) for depth in (3, 1) for lr in (0.9, 0.5, 0.1)]


def strata(trials=GRID, grace=1, factor=2, by_depth=True):
    return Strata(
        {str(trial): trial.depth if by_depth else None for trial in trials},
        {str(trial): trial.epochs for trial in trials},
        grace,
        factor,
    )


def run(halving, trials=GRID):
    """Every trial's number of epochs, when trials report in turns."""
    reached = dict.fromkeys(map(str, trials), 0)
    running = list(trials)
    for epoch in range(1, max(trial.epochs for trial in trials) + 1):
        for trial in list(running):
            reached[str(trial)] = epoch
            verdict = halving.decide(str(trial), epoch, deeper_is_better(trial, epoch))
            if verdict == "stop" or epoch == trial.epochs:
                running.remove(trial)
            if epoch == trial.epochs:
                assert verdict == "continue"
    return reached


def deeper_is_better(trial, epoch):
    """Any depth 3 is ahead of any depth 1; within a depth the larger learning rate is. Best come first."""
    return 0.1 * trial.depth + 0.1 * trial.lr + 0.01 * epoch


def test_one_stratum_destroys_the_comparison():
    """The three of depth 3 report first, so each of depth 1 is below the median of the rung at epoch 1."""
    halving = strata(by_depth=False)
    reached = run(halving)
    assert [reached[f"1/{lr}"] for lr in (0.9, 0.5, 0.1)] == [1, 1, 1]
    assert reached["3/0.9"] == 4
    assert {"1/0.9", "1/0.5", "1/0.1"} <= halving.stopped


def test_strata_keep_the_best_of_every_depth():
    halving = strata()
    reached = run(halving)
    assert (reached["1/0.9"], reached["3/0.9"]) == (4, 4)
    assert [reached[f"{depth}/{lr}"] for depth in (1, 3) for lr in (0.5, 0.1)] == [1] * 4
    assert halving.stopped == {"1/0.5", "1/0.1", "3/0.5", "3/0.1"}


@pytest.mark.parametrize("grace", [1, 2, 3])
def test_nothing_is_stopped_in_its_grace_epochs(grace):
    assert min(run(strata(grace=grace)).values()) == grace


@pytest.mark.parametrize("grace", [4, 10])
def test_grace_of_all_epochs_or_more_stops_nothing(grace):
    halving = strata(grace=grace)
    assert set(run(halving).values()) == {4}
    assert halving.stopped == set()


@pytest.mark.parametrize(("factor", "verdict"), [(2, "continue"), (4, "stop")])
def test_reduction_factor(factor, verdict):
    """0.7 is above the median of 0.9 and 0.3, which is 0.6, and below their upper quartile, 0.75."""
    trials = [FakeTrial(1, lr) for lr in (0.9, 0.3, 0.7)]
    halving = strata(trials, factor=factor)
    assert [halving.decide(str(trial), 1, trial.lr) for trial in trials][-1] == verdict


def test_the_last_epoch_is_not_stopped_early():
    """Trials of 2 epochs among trials of 4: at epoch 2, a rung, they end by themselves however bad."""
    short = [FakeTrial(1, lr, epochs=2) for lr in (0.2, 0.05)]
    trials = [*GRID[3:], *short]
    halving = strata(trials, grace=2)
    reached = run(halving, trials)
    assert [reached[str(trial)] for trial in short] == [2, 2]
    assert halving.stopped == {"1/0.5", "1/0.1"}


def test_a_trial_that_fails_before_its_rung_counts_for_nothing():
    halving = strata()  # 3/0.9 never reports
    assert halving.decide("3/0.5", 1, 0.1) == "continue"
    assert halving.stopped == set()


def test_who_is_first_at_a_rung_goes_on():
    assert Rungs(grace=1, most=4, factor=2).decide("a", 1, 0.0) == "continue"


def test_of_equals_none_is_stopped():
    rungs = Rungs(grace=1, most=4, factor=2)
    assert [rungs.decide(name, 1, 0.5) for name in "abc"] == ["continue"] * 3


def test_a_stopped_trial_still_sets_the_mark():
    """The median of 0.8 and 0.2 is 0.5, though the trial of 0.2 is gone."""
    rungs = Rungs(grace=1, most=4, factor=2)
    assert [rungs.decide(*at) for at in (("a", 1, 0.8), ("b", 1, 0.2), ("c", 1, 0.55))] == [
        "continue", "stop", "continue",
    ]  # fmt: skip


def test_between_rungs_nobody_is_stopped():
    """With grace 2 and factor 2 of 8 epochs, trials are compared after 2, 4 and 8 epochs."""
    rungs = Rungs(grace=2, most=8, factor=2)
    for epoch in range(1, 8):
        assert rungs.decide("good", epoch, 0.9) == "continue"
    assert [rungs.decide("bad", epoch, value) for epoch, value in ((1, 0.0), (2, 0.9), (3, 0.0), (4, 0.0))] == [
        "continue", "continue", "continue", "stop",
    ]  # fmt: skip


@pytest.mark.parametrize("factor", [2, 1.5])
def test_the_same_question_has_the_same_answer(factor):
    """So that a run can be replayed from its rows, however the marks moved since."""
    rungs = Rungs(grace=2, most=20, factor=factor)
    asked = [(name, epoch) for epoch in range(1, 8) for name in "abcd"]
    values = {name: place / 10 for place, name in enumerate("dbca")}
    first = [rungs.decide(name, epoch, values[name]) for name, epoch in asked]
    assert "stop" in first
    marks = {rung: dict(reached) for rung, reached in rungs.reached.items()}
    assert [rungs.decide(name, epoch, 1 - values[name]) for name, epoch in asked] == first
    assert rungs.reached == marks


@pytest.mark.parametrize(
    ("grace", "most", "factor", "expected"),
    [
        (1, 10, 2, [1, 2, 4, 8]),
        (3, 24, 2, [3, 6, 12, 24]),
        (2, 9, 1.5, [2, 3, 4.5, 6.75]),
        (5, 5, 4, [5]),
    ],
)
def test_milestones(grace, most, factor, expected):
    assert milestones(grace, most, factor) == pytest.approx(expected)


def test_a_rung_at_the_last_epoch_is_not_lost_to_rounding():
    assert len(milestones(1, 3, 3 ** (1 / 5))) == 6  # 3 ** (1 / 5) five times is a little more than 3


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 2 / 3, 0.75, 1.0])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_quantile_is_numpys(count, share):
    values = np.random.default_rng(count).random(count).tolist()
    assert quantile(values, share) == pytest.approx(np.quantile(values, share), rel=1e-12)
