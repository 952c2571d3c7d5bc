"""The table of trials in groups: what enters a mean, what is compared, what a series is."""

from dataclasses import replace

import pytest

from raysweep.report import groups
from raysweep.report.groups import binomial_error, configurations, confusions, eligible, furthest, with_series
from raysweep.report.tables import trials_table
from tests.report.synthetic_runs import EPOCHS, epoch_rows, final_result, finished, planned


@pytest.fixture
def trials_of(make_run):
    """The trials table of finished trials (depth, lr, seed, accuracy[, more of the plan])."""

    def make(*rows):
        outcomes = [
            finished(planned(depth, lr=lr, seed=seed, **(more[0] if more else {})), accuracy)
            for depth, lr, seed, accuracy, *more in rows
        ]
        return trials_table(make_run(outcomes, predictions=False))

    return make


def test_stopped_trials_enter_no_mean(make_run):
    good, bad = planned(1, seed=0), planned(1, seed=1)
    run = make_run([finished(good, 0.9), (bad, "stopped", epoch_rows(bad, 0.3, 3))])
    one = configurations(trials_table(run)).iloc[0]
    assert (one["val_accuracy"], one["n_seeds"], one["n_planned"]) == (0.9, 1, 2)
    assert one["names"] == [good.trial]


def test_a_configuration_has_the_means_of_its_seeds_in_their_order(trials_of):
    one = configurations(trials_of((3, 0.1, 7, 0.92), (3, 0.1, 2, 0.90))).iloc[0]
    assert one["val_accuracy"] == pytest.approx(0.91)
    assert one["gap"] == pytest.approx(0.02)
    assert one["accuracies"] == [0.90, 0.92]
    assert one["names"] == [planned(3, lr=0.1, seed=seed).trial for seed in (2, 7)]
    assert one["folders"] == ["run", "run"]


def test_cost_is_training_and_the_share_of_the_prefix_pass(make_run):
    plans = [planned(1, seed=seed) for seed in (0, 1)]
    run = make_run([finished(plan, 0.9, seconds=2.0) for plan in plans])
    decision = {"store": True, "images_computed": 1_000, "prefix_ms_per_image": 6.0}
    shared = decision | {"trials": [plan.trial for plan in plans]}
    one = configurations(trials_table(replace(run, features={"decisions": [shared]}))).iloc[0]
    assert one["prefix_seconds"] == pytest.approx(3.0)  # 6 s between two trials
    assert one["cost_seconds"] == pytest.approx(2.0 * EPOCHS + 3.0)


# ---- which configurations are compared ----


def compared(outcomes, make_run):
    table = eligible(configurations(trials_table(make_run(outcomes, predictions=False))))
    return sorted(zip(table["depth_label"], table["lr"], table["n_seeds"], strict=True))


def test_only_rates_of_which_every_planned_seed_finished_are_compared(make_run):
    """The rate with 99 % had a seed stopped: with it in the mean it would not look so well."""
    lucky = [planned(1, lr=0.1, seed=seed) for seed in (0, 1)]
    whole = [planned(1, lr=0.2, seed=seed) for seed in (0, 1)]
    outcomes = [finished(lucky[0], 0.99), (lucky[1], "stopped", epoch_rows(lucky[1], 0.5, 3))]
    outcomes += [finished(plan, 0.8) for plan in whole]
    assert compared(outcomes, make_run) == [("1", 0.2, 2)]


@pytest.mark.parametrize("state", ["failed", "interrupted", "planned", "dropped"])
def test_whatever_kept_a_seed_from_finishing(make_run, state):
    plans = [planned(1, lr=lr, seed=seed) for lr in (0.1, 0.2) for seed in (0, 1)]
    outcomes = [finished(plan, 0.9) for plan in plans[:3]]
    assert compared([*outcomes, (plans[3], state, [])], make_run) == [("1", 0.1, 2)]


def test_where_no_rate_is_whole_those_with_the_most_seeds(make_run):
    plans = {(lr, seed): planned(1, lr=lr, seed=seed) for lr in (0.1, 0.2, 0.3) for seed in (0, 1, 2)}
    done = {(0.1, 0), (0.2, 0), (0.2, 1), (0.3, 1), (0.3, 2)}
    outcomes = [finished(plan, 0.9) if key in done else (plan, "failed", []) for key, plan in plans.items()]
    assert compared(outcomes, make_run) == [("1", 0.2, 2), ("1", 0.3, 2)]


def test_each_depth_is_judged_by_itself(make_run):
    whole, broken = [[planned(depth, seed=seed) for seed in (0, 1)] for depth in (1, 3)]
    outcomes = [finished(plan, 0.9) for plan in (*whole, broken[0])]
    assert compared([*outcomes, (broken[1], "failed", [])], make_run) == [("1", 0.001, 2), ("3", 0.001, 1)]


# ---- series ----


def series_of(trials):
    return configurations(trials)["series"].tolist()


def test_an_axis_that_varies_makes_series(trials_of):
    trials = trials_of((1, 0.1, 0, 0.8, {"batch_size": 1024}), (1, 0.1, 0, 0.9, {"batch_size": 64}))
    assert series_of(trials) == ["tf_efficientnet_lite0 (batch_size=1024)", "tf_efficientnet_lite0 (batch_size=64)"]


def test_null_is_a_value_of_an_axis(trials_of):
    trials = trials_of((1, 0.1, 0, 0.8, {"patience": None}), (1, 0.1, 0, 0.9, {"patience": 5}))
    assert series_of(trials) == ["tf_efficientnet_lite0 (patience=null)", "tf_efficientnet_lite0 (patience=5)"]


def test_an_axis_that_other_trials_lack_makes_no_series(trials_of):
    """A trial of another block of the grid, or one whose plan was lost, has an empty cell there."""
    trials = trials_of((1, 0.1, 0, 0.8, {"patience": 5}), (3, 0.1, 0, 0.9))
    assert set(series_of(trials)) == {"tf_efficientnet_lite0"}


def test_names_of_series_stay_in_a_part_of_the_table(trials_of):
    trials = with_series(trials_of((1, 0.1, 0, 0.8, {"batch_size": 1024}), (1, 0.1, 0, 0.9, {"batch_size": 64})))
    assert with_series(trials.head(1))["series"].tolist() == ["tf_efficientnet_lite0 (batch_size=1024)"]


# ---- the rest ----


def test_the_furthest_of_trials_that_did_not_finish_has_most_epochs(make_run):
    long, short = planned(1), planned(3)
    rows = [(short, "interrupted", epoch_rows(short, 0.99, 2)), (long, "interrupted", epoch_rows(long, 0.7, 4))]
    best = furthest(trials_table(make_run(rows)))
    assert best["depth"] == 1
    assert type(best["depth"]) is int


def test_nothing_to_compare(make_run):
    for run in (make_run([], name="none"), make_run([(planned(1), "planned", [])], name="planned")):
        trials = trials_table(run)
        assert eligible(configurations(trials)).empty
        assert furthest(trials) is None


def test_confusions_most_frequent_first():
    first = confusions(final_result()).to_dict("records")[0]
    assert first == {"true": "8", "predicted": "1", "images": 6, "share": pytest.approx(1 / 6)}


def test_binomial_error():
    assert binomial_error(0.9, 360) == pytest.approx((0.9 * 0.1 / 360) ** 0.5)


def test_records_are_plain_values(trials_of):
    (row,) = groups.records(configurations(trials_of((1, 0.1, 0, 0.8))))
    assert type(row["n_seeds"]) is int
    assert type(row["val_accuracy"]) is float
