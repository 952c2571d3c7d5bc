"""Means, errors and the recommendation, against answers worked by hand."""

import math

import pytest

from raysweep.report import statistics
from raysweep.report.tables import trials_table
from tests.report.synthetic_runs import digits_outcomes, epoch_rows, final_result, planned


@pytest.fixture
def trials_of(make_run):
    """The trials table of finished trials (depth, lr, seed, accuracy[, more of the plan])."""

    def make(*rows, state="finished", seconds=None):
        outcomes = []
        for depth, lr, seed, accuracy, *more in rows:
            plan = planned(depth, lr=lr, seed=seed, **(more[0] if more else {}))
            outcomes.append((plan, state, epoch_rows(plan, accuracy, seconds=seconds or plan.layers)))
        return trials_table(make_run(outcomes))

    return make


def test_stopped_trials_enter_no_mean(make_run):
    good, bad = planned(1, seed=0), planned(1, seed=1)
    run = make_run([(good, "finished", epoch_rows(good, 0.9)), (bad, "stopped", epoch_rows(bad, 0.3, 3))])
    depth = statistics.by_depth(trials_table(run)).iloc[0]
    assert (depth["val_accuracy"], depth["n_seeds"], depth["stopped_early"]) == (pytest.approx(0.9), 1, 1)
    assert statistics.configurations(trials_table(run))["n_seeds"].tolist() == [1]


def test_error_of_several_seeds_is_pooled_over_depths(trials_of):
    # Variances 0.0002 and 0.0008, one degree of freedom each: pooled sqrt(0.0005), over sqrt(2) seeds.
    trials = trials_of((1, 0.1, 0, 0.80), (1, 0.1, 1, 0.82), (3, 0.1, 0, 0.90), (3, 0.1, 1, 0.94))
    depths = statistics.by_depth(trials)
    assert depths["val_accuracy"].tolist() == pytest.approx([0.81, 0.92])
    assert depths["standard_error"].tolist() == pytest.approx([math.sqrt(0.0005 / 2)] * 2)
    assert depths["error_from"].unique().tolist() == ["seeds"]


def test_error_of_one_seed_is_binomial_over_360_images(trials_of):
    depth = statistics.by_depth(trials_of((1, 0.1, 0, 0.9))).iloc[0]
    assert depth["standard_error"] == pytest.approx(math.sqrt(0.9 * 0.1 / 360))
    assert depth["error_from"] == "validation images"


def test_learning_rate_with_most_seeds_wins_then_the_most_accurate(trials_of):
    trials = trials_of((1, 0.1, 0, 0.99), (1, 0.2, 0, 0.80), (1, 0.2, 1, 0.82), (1, 0.3, 0, 0.90), (1, 0.3, 1, 0.92))
    assert statistics.by_depth(trials)["lr"].tolist() == [0.3]


def test_recommends_the_cheapest_depth_within_one_standard_error(trials_of):
    # Each depth's seeds are ± 0.01 about their mean: pooled error 0.01. Best 0.955, so 0.945 is the floor.
    means = {1: 0.85, 3: 0.944, 9: 0.95, 21: 0.955}
    rows = [(depth, 0.1, seed, mean + (0.01, -0.01)[seed]) for depth, mean in means.items() for seed in (0, 1)]
    trials = trials_of(*rows)
    advice = statistics.recommend(trials)
    assert (advice.recommended["depth"], advice.best["depth"]) == (9, 21)
    assert advice.sentence == (
        "Fine-tune the last 9 layers of tf_efficientnet_lite0 at lr 0.1: validation accuracy 95.0 % ± 1.0 (2 seeds), "
        "within one standard error of the best, depth 21 (95.5 %), at 0.43× its training time."
    )
    assert advice.notes == ()


def test_the_deepest_and_best_may_not_be_deep_enough(trials_of):
    trials = trials_of((1, 0.1, 0, 0.8), (1, 0.1, 1, 0.801), (3, 0.1, 0, 0.9), (3, 0.1, 1, 0.901))
    advice = statistics.recommend(trials)
    assert "the best of the 2 depths tried; no shallower depth comes within one standard error" in advice.sentence
    assert any("deeper one may be better" in note for note in advice.notes)


@pytest.mark.parametrize(
    ("depth", "words"),
    [
        ("head", "Train only the head of"),
        (1, "Train only the classifier of"),
        ("all", "Train all layers of"),
        ("layer3", "Fine-tune tf_efficientnet_lite0 from layer3 to the output (22 layers)"),
        (["conv1", "bn1"], "Fine-tune only conv1, bn1 of tf_efficientnet_lite0 (2 layers)"),
    ],
)
def test_sentences_for_every_kind_of_depth(trials_of, depth, words):
    layers = {"layer3": 22}.get(str(depth), 2 if isinstance(depth, list) else 1)
    advice = statistics.recommend(trials_of((depth, 0.1, 0, 0.9, {"layers": layers})))
    assert advice.sentence.startswith(words)
    assert advice.sentence.endswith("(1 seed), the only depth with a finished trial.")
    assert any("luck of the seed" in note for note in advice.notes)


def test_over_backbones_the_fastest_of_those_within_one_standard_error(trials_of):
    # One seed each, 360 images: the error of 0.95 is 0.0115. 0.945 is within it, 0.90 is not.
    trials = trials_of(
        (9, 0.1, 0, 0.95, {"backbone": "large"}),
        (3, 0.1, 0, 0.945, {"backbone": "middling"}),
        (1, 0.1, 0, 0.90, {"backbone": "small"}),
    )
    advice = statistics.recommend(trials)
    assert (advice.recommended["backbone"], advice.best["backbone"]) == ("middling", "large")
    assert "within one standard error of the best, large at depth 9 (95.0 %), at 0.33× its" in advice.sentence
    assert [pick["backbone"] for pick, _ in advice.choices] == ["large", "middling", "small"]


def test_an_axis_that_varies_makes_series(trials_of):
    trials = trials_of((1, 0.1, 0, 0.8, {"batch_size": 1024}), (1, 0.1, 0, 0.9, {"batch_size": 64}))
    assert statistics.by_depth(trials)["series"].tolist() == [
        "tf_efficientnet_lite0 (batch_size=1024)",
        "tf_efficientnet_lite0 (batch_size=64)",
    ]


def test_null_is_a_value_of_an_axis(trials_of):
    trials = trials_of((1, 0.1, 0, 0.8, {"patience": None}), (1, 0.1, 0, 0.9, {"patience": 5}))
    names = ["tf_efficientnet_lite0 (patience=null)", "tf_efficientnet_lite0 (patience=5)"]
    assert statistics.by_depth(trials)["series"].tolist() == names


def test_an_axis_that_other_trials_lack_makes_no_series(trials_of):
    """A trial of another block of the grid, or one whose plan was lost, has an empty cell there."""
    trials = trials_of((1, 0.1, 0, 0.8, {"patience": 5}), (3, 0.1, 0, 0.9))
    assert set(statistics.by_depth(trials)["series"]) == {"tf_efficientnet_lite0"}


def test_the_trial_to_refit(make_run):
    best = statistics.best_configuration(trials_table(make_run(digits_outcomes())))
    assert {key: best[key] for key in ("depth", "lr", "seed")} == {"depth": 33, "lr": 1e-3, "seed": 0}
    assert type(best["depth"]) is int


def test_the_trial_to_refit_when_none_finished_has_most_epochs(make_run):
    long, short = planned(1), planned(3)
    rows = [(short, "interrupted", epoch_rows(short, 0.99, 2)), (long, "interrupted", epoch_rows(long, 0.7, 4))]
    trials = trials_table(make_run(rows))
    assert statistics.recommend(trials) is None
    assert statistics.best_configuration(trials)["depth"] == 1


def test_nothing_to_recommend_or_refit(make_run):
    for run in (make_run([], name="none"), make_run([(planned(1), "planned", [])], name="planned")):
        trials = trials_table(run)
        assert statistics.by_depth(trials).empty
        assert statistics.recommend(trials) is None
        assert statistics.best_configuration(trials) is None


def test_confusions_most_frequent_first():
    first = statistics.confusions(final_result()).to_dict("records")[0]
    assert first == {"true": "8", "predicted": "1", "images": 6, "share": pytest.approx(1 / 6)}
