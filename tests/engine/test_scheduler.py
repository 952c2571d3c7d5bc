"""StratifiedAsha without a cluster: trials are names, and every trial of an epoch reports before the next epoch."""

from dataclasses import dataclass, field

import pytest
from ray.tune.schedulers import TrialScheduler

from raysweep.recipe import Asha
from raysweep.engine.scheduler import METRIC, StratifiedAsha


@dataclass
class FakeTrial:
    depth: int
    lr: float
    epochs: int = 4
    config: dict = field(default_factory=dict)
    last_result: dict = field(default_factory=dict)

    @property
    def trial_id(self):
        return str(self)

    def __str__(self):
        return f"{self.depth}/{self.lr}"


def asha(settings, by_depth=True, most_epochs=4):
    return StratifiedAsha(
        settings,
        stratum=lambda trial: trial.depth if by_depth else None,
        epochs=lambda trial: trial.epochs,
        most_epochs=most_epochs,
    )


def run(scheduler, trials, accuracy):
    """Every trial's number of epochs, when trials report in turns. `accuracy` is of (trial, epoch)."""
    reached = dict.fromkeys(map(str, trials), 0)
    for trial in trials:
        scheduler.on_trial_add(None, trial)
    running = list(trials)
    for epoch in range(1, max(trial.epochs for trial in trials) + 1):
        for trial in list(running):
            reached[str(trial)] = epoch
            result = {"epoch": epoch, "training_iteration": epoch, METRIC: accuracy(trial, epoch)}
            decision = scheduler.on_trial_result(None, trial, result)
            if decision == TrialScheduler.STOP or epoch == trial.epochs:
                running.remove(trial)
            if epoch == trial.epochs:
                assert decision == TrialScheduler.CONTINUE
                scheduler.on_trial_complete(None, trial, result)
    return reached


def deeper_is_better(trial, epoch):
    """Any depth 3 is ahead of any depth 1; within a depth the larger learning rate is. Best come first."""
    return 0.1 * trial.depth + 0.1 * trial.lr + 0.01 * epoch


GRID = [FakeTrial(depth, lr) for depth in (3, 1) for lr in (0.9, 0.5, 0.1)]


def test_plain_asha_destroys_the_comparison():
    """The three of depth 3 report first, so each of depth 1 is below the median of the rung at epoch 1."""
    scheduler = asha(Asha(grace_epochs=1, compare_within=()), by_depth=False)
    reached = run(scheduler, GRID, deeper_is_better)
    assert [reached[f"1/{lr}"] for lr in (0.9, 0.5, 0.1)] == [1, 1, 1]
    assert reached["3/0.9"] == 4
    assert {"1/0.9", "1/0.5", "1/0.1"} <= scheduler.stopped


def test_stratified_asha_keeps_the_best_of_every_depth():
    scheduler = asha(Asha(grace_epochs=1))
    reached = run(scheduler, GRID, deeper_is_better)
    assert (reached["1/0.9"], reached["3/0.9"]) == (4, 4)
    assert [reached[f"{depth}/{lr}"] for depth in (1, 3) for lr in (0.5, 0.1)] == [1] * 4
    assert scheduler.stopped == {"1/0.5", "1/0.1", "3/0.5", "3/0.1"}


@pytest.mark.parametrize("grace", [1, 2, 3])
def test_nothing_is_stopped_in_its_grace_epochs(grace):
    reached = run(asha(Asha(grace_epochs=grace)), GRID, deeper_is_better)
    assert min(reached.values()) == grace


def test_grace_of_all_epochs_or_more_stops_nothing():
    scheduler = asha(Asha(grace_epochs=10))
    assert set(run(scheduler, GRID, deeper_is_better).values()) == {4}
    assert scheduler.stopped == set()


@pytest.mark.parametrize(("factor", "decision"), [(2, TrialScheduler.CONTINUE), (4, TrialScheduler.STOP)])
def test_reduction_factor(factor, decision):
    """0.7 is above the median of 0.9 and 0.3, which is 0.6, and below their upper quartile, 0.75."""
    scheduler = asha(Asha(grace_epochs=1, reduction_factor=factor))
    for lr in (0.9, 0.3, 0.7):
        trial = FakeTrial(1, lr)
        scheduler.on_trial_add(None, trial)
        last = scheduler.on_trial_result(None, trial, {"epoch": 1, METRIC: lr})
    assert last == decision


def test_the_last_epoch_is_not_stopped_early():
    """Trials of 2 epochs among trials of 4: at epoch 2, a rung, they end by themselves however bad."""
    short = [FakeTrial(1, lr, epochs=2) for lr in (0.2, 0.05)]
    trials = [*GRID[3:], *short]
    scheduler = asha(Asha(grace_epochs=2))
    reached = run(scheduler, trials, deeper_is_better)
    assert [reached[str(trial)] for trial in short] == [2, 2]
    assert scheduler.stopped == {"1/0.5", "1/0.1"}


def test_a_failed_trial_leaves_its_stratum():
    scheduler = asha(Asha(grace_epochs=1))
    for trial in GRID:
        scheduler.on_trial_add(None, trial)
    scheduler.on_trial_remove(None, GRID[0])
    assert scheduler.on_trial_result(None, GRID[1], {"epoch": 1, METRIC: 0.1}) == TrialScheduler.CONTINUE
    assert scheduler.stopped == set()


@pytest.mark.parametrize(("within", "text"), [(("depth",), "within depth: 2 strata"), ((), "within the whole grid")])
def test_debug_string(within, text):
    scheduler = asha(Asha(compare_within=within))
    for trial in GRID:
        scheduler.on_trial_add(None, trial)
    assert text in scheduler.debug_string()
