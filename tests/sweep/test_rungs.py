"""Early stopping as arithmetic: rows in, the names of trials that end out."""

from collections import deque
from dataclasses import dataclass

import numpy as np
import pytest

from raysweep.sweep.evidence import pack
from raysweep.sweep.rows import EpochRow
from raysweep.sweep.rungs import SEED_VARIANCE, Entrant, Guard, Halving, Rungs, difference, milestones, quantile
from tests.sweep.sample_rows import epoch_row

# ---- the guard ----

TOLERANCE, ERRORS = 0.005, 3.0
RUNGS = (2, 4)
LAST = 6
IMAGES = 400
GOOD, BAD = 0.1, 0.2
RIGHT = 360
"""Of 400 images, by the better of two rates."""


def name(lr, seed=0, group="g"):
    return f"{group} {lr} {seed}"


def guard(rates=(GOOD, BAD), seeds=(0, 1, 2), groups=("g",)):
    entrants = {name(lr, seed, group): Entrant(group, lr, seed) for group in groups for seed in seeds for lr in rates}
    return Guard(entrants, RUNGS, TOLERANCE, ERRORS)


def right(count, images=IMAGES):
    """The first so many are classified right."""
    return np.arange(images) < count


def row(trial, epoch, values, over=False):
    evidence = None if values is None else pack(values)
    return epoch_row(trial, epoch, evidence=evidence, over=over)


def compared(behind, epoch=RUNGS[0], over=False, order=(GOOD, BAD)):
    """A guard that has seen one seed of both rates, one of which has so many fewer images right."""
    one = guard()
    for lr in order:
        one.report(row(name(lr), epoch, right(RIGHT - (behind if lr == BAD else 0)), over))
    return one


def test_difference_by_hand():
    """Eight of ten images right against six: three that only the one has, one that only the other has.

    The differences 1, 1, 1, -1 and six 0 have the mean 0.2 and the variance (4 - 10 · 0.04) / 9 = 0.4.
    u is the mean of 9/12 · 3/12 and 7/12 · 5/12.
    """
    one, other = right(8, 10), np.isin(np.arange(10), (0, 1, 2, 3, 4, 8))
    u = (27 / 144 + 35 / 144) / 2
    found = difference({0: one}, {0: other})
    assert found.ahead == pytest.approx(0.2)
    assert found.error**2 == pytest.approx(0.4 / 10 + 2 / 5000 * u + 1 / 100, rel=1e-12)
    back = difference({0: other}, {0: one})
    assert (back.ahead, back.error) == (pytest.approx(-0.2), pytest.approx(found.error))


def test_seeds_are_averaged_image_by_image():
    """Two seeds: images 0 to 3 always right, image 4 by one seed of the one; the seed that one alone has is left out.

    The differences are 0.5 once and four times 0: mean 0.1, variance (0.25 - 5 · 0.01) / 4 = 0.05.
    Shares right are 0.9 and 0.8 of five images, smoothed 5.5/7 and 5/7.
    """
    one = {3: right(5, 5), 7: right(4, 5), 9: right(0, 5)}
    other = {3: right(4, 5), 7: right(4, 5), 8: right(5, 5)}
    u = (5.5 / 7 * 1.5 / 7 + 5 / 7 * 2 / 7) / 2
    found = difference(one, other)
    assert found.ahead == pytest.approx(0.1)
    assert found.error**2 == pytest.approx(0.05 / 5 + 2 * SEED_VARIANCE * u / 2 + 1 / 25, rel=1e-12)


def test_contributions_that_are_not_right_or_wrong_have_a_variance_of_their_own():
    """It is that of single images, not of their means over seeds, which get smaller with more of them."""
    one = {0: np.array([0.0, 2.0, 2.0, 0.0]), 1: np.array([2.0, 0.0, 2.0, 0.0])}
    other = {seed: np.full(4, -1.0) for seed in (0, 1)}
    found = difference(one, other)
    assert found.ahead == pytest.approx(2.0)
    u = (1.0 + 0.0) / 2
    of_images = np.var([1.0, 1.0, 2.0, 0.0], ddof=1) / 4
    assert found.error**2 == pytest.approx(of_images + 2 * SEED_VARIANCE * u / 2 + 1 / 16, rel=1e-9)


@pytest.mark.parametrize("images", [100, 40_000])
def test_half_precision_is_that_of_rows_alone(images):
    """What is computed from them is as exact as ever; the variance of a mean over many images is very small."""
    random = np.random.default_rng(0)
    one, other = (random.normal(0.9, 0.05, images).astype(np.float16) for _ in range(2))
    apart = one.astype(float) - other.astype(float)
    u = (one.astype(float).var() + other.astype(float).var()) / 2
    found = difference({0: one}, {0: other})
    assert found.ahead == pytest.approx(apart.mean(), rel=1e-9)
    assert found.error**2 == pytest.approx(apart.var(ddof=1) / images + 2 * SEED_VARIANCE * u + 1 / images**2, rel=1e-9)


def test_without_a_common_seed_there_is_no_difference():
    assert difference({0: right(3, 5)}, {1: right(3, 5)}) is None
    assert difference({}, {1: right(3, 5)}) is None


@pytest.mark.parametrize(
    ("behind", "at_a_rung", "at_the_end"),
    [(0, False, False), (3, False, False), (4, False, True), (14, False, True), (17, True, True), (100, True, True)],
)
@pytest.mark.parametrize("order", [(GOOD, BAD), (BAD, GOOD)], ids=["the better first", "the worse first"])
def test_dropped_beyond_three_errors_and_the_tolerance_or_one_error_at_the_end(behind, at_a_rung, at_the_end, order):
    """Whoever of the two reports last."""
    found = difference({0: right(RIGHT)}, {0: right(RIGHT - behind)})
    assert (found.ahead > 3 * found.error + TOLERANCE, found.ahead > found.error) == (at_a_rung, at_the_end)
    everything = {name(BAD, seed) for seed in (0, 1, 2)}
    assert set(compared(behind, order=order).stopped) == (everything if at_a_rung else set())
    assert set(compared(behind, LAST, True, order).stopped) == (everything if at_the_end else set())


def test_all_seeds_of_the_loser_and_no_other():
    one = compared(100)
    assert one.stopped.keys() == {name(BAD, seed) for seed in (0, 1, 2)}
    (why,) = set(one.stopped.values())
    found = difference({0: right(RIGHT)}, {0: right(RIGHT - 100)})
    assert (why.epoch, why.against, why.behind, why.error) == (2, "lr 0.1", 0.25, found.error)


def test_trials_are_compared_at_one_rung():
    """What one has after four epochs says nothing of another after two."""
    one = guard()
    one.report(row(name(GOOD), 4, right(RIGHT)))
    one.report(row(name(BAD), 2, right(RIGHT - 100)))
    assert one.stopped == {}
    one.report(row(name(BAD), 4, right(RIGHT - 90)))
    assert {(why.epoch, why.behind) for why in one.stopped.values()} == {(4, 90 / IMAGES)}


def test_last_epochs_are_compared_however_many_there_were():
    """A trial that ran out of patience counts with what it has; at no rung it is compared by its last epoch."""
    one = guard()
    one.report(row(name(GOOD), 3, right(RIGHT), over=True))
    one.report(row(name(BAD), RUNGS[0], right(RIGHT - 10), over=True))
    assert one.stopped.keys() == {name(BAD, seed) for seed in (0, 1, 2)}


@pytest.mark.parametrize(("epoch", "values"), [(1, right(100)), (3, right(100)), (RUNGS[0], None)])
def test_elsewhere_nothing_is_compared(epoch, values):
    one = guard()
    one.report(row(name(GOOD), epoch, right(RIGHT)))
    one.report(row(name(BAD), epoch, values))
    assert one.stopped == {}


def test_only_rates_that_are_equal_in_everything_else_are_compared():
    one = guard(groups=("g", "h"))
    one.report(row(name(GOOD, 0, "g"), 2, right(RIGHT)))
    one.report(row(name(BAD, 0, "h"), 2, right(0)))
    assert one.stopped == {}
    one.report(row(name(BAD, 0, "g"), 2, right(0)))
    assert one.stopped.keys() == {name(BAD, seed, "g") for seed in (0, 1, 2)}


def test_only_common_seeds_are_compared():
    one = guard()
    one.report(row(name(GOOD, 0), 2, right(RIGHT)))
    one.report(row(name(BAD, 1), 2, right(0)))
    assert one.stopped == {}
    one.report(row(name(GOOD, 1), 2, right(RIGHT)))
    assert one.stopped.keys() == {name(BAD, seed) for seed in (0, 1, 2)}


def test_seeds_together_show_what_one_does_not():
    """Each misses ten images more, each other ones, so that their mean varies less over images."""
    one = guard()
    found = []
    for seed in (0, 1, 2):
        missed = np.arange(IMAGES) // 10 == seed
        one.report(row(name(GOOD, seed), 2, right(RIGHT)))
        one.report(row(name(BAD, seed), 2, right(RIGHT) & ~missed))
        found.append(bool(one.stopped))
    assert found == [False, False, True]


def test_what_is_dropped_drops_nobody():
    """The second rate is dropped at seed 0; the third, far behind it at seed 1, is compared with the first alone."""
    one = guard(rates=(0.1, 0.2, 0.3))
    one.report(row(name(0.1, 0), 2, right(RIGHT)))
    one.report(row(name(0.2, 1), 2, right(RIGHT)))
    one.report(row(name(0.2, 0), 2, right(RIGHT - 100)))
    before = dict(one.stopped)
    assert before.keys() == {name(0.2, seed) for seed in (0, 1, 2)}
    one.report(row(name(0.3, 1), 2, right(0)))
    assert one.stopped == before
    one.report(row(name(0.1, 1), 2, right(RIGHT)))
    assert one.stopped.keys() == before.keys() | {name(0.3, seed) for seed in (0, 1, 2)}


def test_of_three_rates_the_best_is_left():
    one = guard(rates=(0.1, 0.2, 0.3))
    for lr, count in ((0.3, RIGHT - 50), (0.1, RIGHT - 100), (0.2, RIGHT)):
        one.report(row(name(lr), 2, right(count)))
    assert one.stopped.keys() == {name(lr, seed) for lr in (0.1, 0.3) for seed in (0, 1, 2)}
    assert {one.stopped[name(lr)].against for lr in (0.1, 0.3)} <= {"lr 0.2", "lr 0.3"}


def history(random, rates=(0.1, 0.2, 0.3, 0.4), seeds=(0, 1, 2)):
    """Rows of trials that are better or worse, in the order in which some lanes might deliver them."""
    skill = dict(zip(rates, random.permutation([0.0, 0.0, -0.15, -0.9]), strict=True))
    common = random.normal(1.3, 1, IMAGES)
    trials = {
        (lr, seed): common + random.normal(skill[lr], 0.1, IMAGES) + random.normal(0, 0.05)
        for lr in rates
        for seed in seeds
    }
    waiting = {key: deque((*RUNGS, LAST)) for key in trials}
    while waiting:
        key = list(waiting)[random.integers(min(3, len(waiting)))]
        epoch = waiting[key].popleft()
        yield row(name(*key), epoch, trials[key] + 0.02 * epoch > 0, epoch == LAST)
        if not waiting[key]:
            del waiting[key]


def replayed(rows, entrants=None):
    one = entrants or guard(rates=(0.1, 0.2, 0.3, 0.4))
    for each in rows:
        one.report(each)
    return one.stopped


@pytest.mark.parametrize("seed", range(5))
def test_a_run_is_replayed_from_its_rows(seed):
    """Asked again about a row, at once or after all others, the answer is what it was."""
    rows = list(history(np.random.default_rng(seed)))
    expected = replayed(rows)
    assert 3 <= len(expected) < 12
    assert replayed([EpochRow.model_validate_json(each.model_dump_json()) for each in rows]) == expected
    assert replayed([again for each in rows for again in (each, each)]) == expected
    assert replayed(rows + rows) == expected


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_rates_in_the_grid_changes_nothing(seed):
    rows = list(history(np.random.default_rng(seed)))
    assert replayed(rows) == replayed(rows, guard(rates=(0.4, 0.2, 0.1, 0.3)))


# ---- whom early stopping favours ----

EQUAL, SLOW = (0.0, 0.0, 0.0, 0.0), (-1.0, -0.5, 0.0, 0.5)
"""Points by which a second rate is ahead at each of four rungs, the last its end."""
SWEEPS = 300
MANY_IMAGES = 1000


def sweeps(ahead):
    """Sweeps of two rates and three seeds: (rate, seed, rung, image), whether it is classified right.

    An image is right where the sum of normal variables is above zero: what is common to all trials, what is a
    rate's own and what is a trial's own. 94 % are; trials of one rate disagree on 3.3 % of them, of two rates on
    3.9 %, and a seed moves the accuracy by 0.3 points.
    """
    random = np.random.default_rng(0)
    for _ in range(SWEEPS):
        latent = (
            random.normal(1.6, 1, MANY_IMAGES)
            + random.normal(0, 0.155, (2, 1, MANY_IMAGES))
            + random.normal(0, 0.25, (2, 3, MANY_IMAGES))
            + random.normal(0, 0.025, (2, 3, 1))
        )
        shift = np.zeros((2, 1, 4, 1))
        shift[1, 0, :, 0] = np.array(ahead) / 100 / 0.12  # the density at the threshold
        yield latent[:, :, None, :] + shift > 0


def winner(right_at, rule, lanes):
    """The rate with the highest mean over seeds, of those that have finished with all seeds; else with most.

    Trials are started by seed, then by rate, on so many lanes that take turns.
    """
    waiting = deque((rate, seed) for seed in range(3) for rate in range(2))
    running, finished = [], {0: [], 1: []}
    while waiting or running:
        while waiting and len(running) < lanes:
            rate, seed = waiting.popleft()
            if name(rate, seed) not in rule.stopped:
                running.append([rate, seed, 0])
        for one in list(running):
            rate, seed, rung = one
            values, over = right_at[rate, seed, rung], rung == 3
            rule.report(
                epoch_row(name(rate, seed), 2**rung, evidence=pack(values), over=over, val_accuracy=values.mean())
            )
            one[2] += 1
            if over:
                finished[rate].append(values.mean())
            if over or name(rate, seed) in rule.stopped:
                running.remove(one)
    most = max(map(len, finished.values()))
    means = {rate: np.mean(values) for rate, values in finished.items() if len(values) == most}
    return max(means, key=means.get), {rate: len(values) for rate, values in finished.items()}


class NoStopping:
    def __init__(self):
        self.stopped = {}

    def report(self, row):
        pass


def rule_of(kind):
    trials = {name(rate, seed): (rate, seed) for rate in range(2) for seed in range(3)}
    if kind == "guard":
        return Guard({key: Entrant("g", *place) for key, place in trials.items()}, (1, 2, 4), TOLERANCE, ERRORS)
    if kind == "halving":
        return Halving({key: seed for key, (_, seed) in trials.items()}, (1, 2, 4), 2, "val_accuracy")
    return NoStopping()


def shares(ahead, lanes):
    """How often the second rate wins under each rule, and how often the guard leaves it without a finished trial."""
    wins, lost = {"guard": 0, "halving": 0, "none": 0}, 0
    for right_at in sweeps(ahead):
        for kind in wins:
            won, finished = winner(right_at, rule_of(kind), lanes)
            wins[kind] += won / SWEEPS
            lost += (kind == "guard" and finished[1] == 0) / SWEEPS
    return wins, lost


@pytest.mark.parametrize("lanes", [2, 16])
def test_equal_rates_are_each_chosen_half_the_time(lanes):
    """Measured with 1,680 sweeps: 49 %, as without early stopping."""
    wins, _ = shares(EQUAL, lanes)
    assert wins["guard"] == pytest.approx(0.5, abs=0.06)
    assert wins["guard"] == pytest.approx(wins["none"], abs=0.04)


@pytest.mark.parametrize("lanes", [2, 16])
def test_a_rate_that_starts_slowly_and_ends_better_is_not_dropped(lanes):
    """It is better by half a point at the end. Measured: it wins in 81 % of sweeps, without early stopping in 83 %."""
    wins, lost = shares(SLOW, lanes)
    assert wins["none"] == pytest.approx(0.83, abs=0.04)
    assert wins["guard"] >= wins["none"] - 0.02
    assert lost <= 0.04
    assert wins["halving"] < 0.1


# ---- successive halving ----


@dataclass(frozen=True)
class FakeTrial:
    depth: int
    lr: float
    epochs: int = 4

    def __str__(self):
        return f"{self.depth}/{self.lr}"


GRID = [FakeTrial(depth, lr) for depth in (3, 1) for lr in (0.9, 0.5, 0.1)]


def halving(trials=GRID, grace=1, factor=2, by_depth=True, value="val_accuracy"):
    most = max(trial.epochs for trial in trials)
    return Halving(
        {str(trial): trial.depth if by_depth else None for trial in trials},
        milestones(grace, most, factor),
        factor,
        value,
    )


def stops(rule, trial, epoch, value, over=False):
    """Whether a trial ends after an epoch with this accuracy, before its last."""
    rule.report(epoch_row(str(trial), epoch, val_accuracy=value, over=over))
    return str(trial) in rule.stopped


def run(rule, trials=GRID):
    """Every trial's number of epochs, when trials report in turns, all of an epoch before the next."""
    reached = dict.fromkeys(map(str, trials), 0)
    running = list(trials)
    for epoch in range(1, max(trial.epochs for trial in trials) + 1):
        for trial in list(running):
            reached[str(trial)] = epoch
            over = epoch == trial.epochs
            ends = stops(rule, trial, epoch, deeper_is_better(trial, epoch), over)
            assert not (ends and over)
            if ends or over:
                running.remove(trial)
    return reached


def deeper_is_better(trial, epoch):
    """Any depth 3 is ahead of any depth 1; within a depth the larger learning rate is. Best come first."""
    return 0.1 * trial.depth + 0.1 * trial.lr + 0.01 * epoch


def test_one_stratum_destroys_the_comparison():
    """The three of depth 3 report first, so each of depth 1 is below the median of the rung at epoch 1."""
    rule = halving(by_depth=False)
    reached = run(rule)
    assert [reached[f"1/{lr}"] for lr in (0.9, 0.5, 0.1)] == [1, 1, 1]
    assert reached["3/0.9"] == 4
    assert {"1/0.9", "1/0.5", "1/0.1"} <= rule.stopped.keys()


def test_strata_keep_the_best_of_every_depth():
    rule = halving()
    reached = run(rule)
    assert (reached["1/0.9"], reached["3/0.9"]) == (4, 4)
    assert [reached[f"{depth}/{lr}"] for depth in (1, 3) for lr in (0.5, 0.1)] == [1] * 4
    assert rule.stopped.keys() == {"1/0.5", "1/0.1", "3/0.5", "3/0.1"}
    assert {(why.epoch, why.behind) for why in rule.stopped.values()} == {(1, None)}


@pytest.mark.parametrize("grace", [1, 2, 3])
def test_nothing_is_stopped_in_its_grace_epochs(grace):
    assert min(run(halving(grace=grace)).values()) == grace


@pytest.mark.parametrize("grace", [4, 10])
def test_grace_of_all_epochs_or_more_stops_nothing(grace):
    rule = halving(grace=grace)
    assert set(run(rule).values()) == {4}
    assert rule.stopped == {}


@pytest.mark.parametrize(("factor", "stopped"), [(2, False), (4, True)])
def test_reduction_factor(factor, stopped):
    """0.7 is above the median of 0.9 and 0.3, which is 0.6, and below their upper quartile, 0.75."""
    trials = [FakeTrial(1, lr) for lr in (0.9, 0.3, 0.7)]
    rule = halving(trials, factor=factor)
    assert [stops(rule, trial, 1, trial.lr) for trial in trials][-1] == stopped


def test_the_last_epoch_is_not_stopped_early():
    """Trials of 2 epochs among trials of 4: at epoch 2, a rung, they end by themselves however bad."""
    short = [FakeTrial(1, lr, epochs=2) for lr in (0.2, 0.05)]
    trials = [*GRID[3:], *short]
    rule = halving(trials, grace=2)
    reached = run(rule, trials)
    assert [reached[str(trial)] for trial in short] == [2, 2]
    assert rule.stopped.keys() == {"1/0.5", "1/0.1"}


def test_a_trial_that_fails_before_its_rung_counts_for_nothing():
    rule = halving()  # 3/0.9 never reports
    assert not stops(rule, "3/0.5", 1, 0.1)
    assert rule.stopped == {}


def test_of_losses_the_lower_is_better():
    rule = halving([FakeTrial(1, 0.1), FakeTrial(1, 0.2), FakeTrial(1, 0.3)], value="val_loss")
    for lr, loss in ((0.1, 1.0), (0.2, 2.0), (0.3, 0.5)):
        rule.report(epoch_row(f"1/{lr}", 1, val_loss=loss))
    assert rule.stopped.keys() == {"1/0.2"}


@pytest.mark.parametrize("score", ["val_balanced_accuracy", "val_macro_f1"])
def test_trials_are_compared_by_the_objective(score):
    """Accuracy would stop the other one."""
    rule = halving([FakeTrial(1, 0.1), FakeTrial(1, 0.2)], value=score)
    for lr, value, accuracy in ((0.1, 0.9, 0.1), (0.2, 0.5, 0.8)):
        rule.report(epoch_row(f"1/{lr}", 1, **{score: value}, val_accuracy=accuracy))
    assert rule.stopped.keys() == {"1/0.2"}


def rungs(grace=1, most=4, factor=2):
    return Rungs(milestones(grace, most, factor), factor)


def test_who_is_first_at_a_rung_goes_on():
    assert not rungs().stops("a", 1, 0.0)


def test_of_equals_none_is_stopped():
    one = rungs()
    assert [one.stops(trial, 1, 0.5) for trial in "abc"] == [False] * 3


def test_a_stopped_trial_still_sets_the_mark():
    """The median of 0.8 and 0.2 is 0.5, though the trial of 0.2 is gone."""
    one = rungs()
    assert [one.stops(*at) for at in (("a", 1, 0.8), ("b", 1, 0.2), ("c", 1, 0.55))] == [False, True, False]


def test_between_rungs_nobody_is_stopped():
    """With grace 2 and factor 2 of 9 epochs, trials are compared after 2, 4 and 8 epochs."""
    one = rungs(grace=2, most=9)
    for epoch in range(1, 9):
        assert not one.stops("good", epoch, 0.9)
    asked = ((1, 0.0), (2, 0.9), (3, 0.0), (4, 0.0), (5, 0.0))
    assert [one.stops("bad", epoch, value) for epoch, value in asked] == [False, False, False, True, False]


@pytest.mark.parametrize("factor", [2, 1.5])
def test_the_same_question_has_the_same_answer(factor):
    """So that a run can be replayed from its rows, however the marks moved since."""
    one = rungs(grace=2, most=20, factor=factor)
    asked = [(trial, epoch) for epoch in range(1, 8) for trial in "abcd"]
    values = {trial: place / 10 for place, trial in enumerate("dbca")}
    first = [one.stops(trial, epoch, values[trial]) for trial, epoch in asked]
    assert True in first
    marks = {rung: dict(reached) for rung, reached in one.reached.items()}
    assert [one.stops(trial, epoch, 1 - values[trial]) for trial, epoch in asked] == first
    assert one.reached == marks


@pytest.mark.parametrize("factor", [1.3, 1.5, 2, 3])
@pytest.mark.parametrize("grace", [1, 2, 3])
def test_rungs_that_are_no_whole_epochs_are_reached_at_the_next(grace, factor):
    """As if they were at fractions of epochs: the first edition's rule, whose rungs were not rounded."""
    random = np.random.default_rng(0)
    exact = [at for at in (grace * factor**power for power in range(20)) if at < 20]
    one, seen, gone = rungs(grace, 20, factor), {}, set()
    for epoch in range(1, 20):
        for trial in range(8):
            if trial not in gone:
                value = float(random.random())
                passed = [at for at in exact if epoch - 1 < at <= epoch]
                marks = seen.setdefault(passed[-1], []) if passed else []
                expected = bool(marks) and value < np.quantile(marks, 1 - 1 / factor)
                marks.append(value)
                assert one.stops(str(trial), epoch, value) == expected
                gone |= {trial} if expected else set()
    assert gone


# ---- rungs ----


@pytest.mark.parametrize(
    ("grace", "most", "factor", "expected"),
    [
        (1, 10, 2, (1, 2, 4, 8)),
        (3, 24, 2, (3, 6, 12)),
        (3, 25, 2, (3, 6, 12, 24)),
        (2, 9, 1.5, (2, 3, 5, 7)),
        (2, 7, 1.2, (2, 3, 4, 5, 6)),
        (5, 5, 4, ()),
        (9, 5, 4, ()),
    ],
)
def test_milestones(grace, most, factor, expected):
    """Whole epochs, each once, below the last: after that one trials end by themselves."""
    assert milestones(grace, most, factor) == expected


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 2 / 3, 0.75, 1.0])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_quantile_is_numpys(count, share):
    values = np.random.default_rng(count).random(count).tolist()
    assert quantile(values, share) == pytest.approx(np.quantile(values, share), rel=1e-12)
