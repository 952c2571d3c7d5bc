"""The comparison of configurations: cases worked by hand in points, and simulated sweeps with known truth."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from raysweep.report import statistics
from raysweep.report.statistics import V0, Evidence, Plan, judge
from tests.report.probit_world import sweeps


def points(*values):
    """Percentage points, to ± 0.0001."""
    return pytest.approx([value / 100 for value in values], abs=1e-6)


def wrong_on(images, *spans):
    """(images,) of a trial that is wrong on these spans of images alone."""
    right = np.ones(images, dtype=bool)
    for start, stop in spans:
        right[start:stop] = False
    return right


def one_seed(right, row=0, lr=0.001, val_key="images", network="network"):
    return Evidence(row, network, lr, right[None], val_key)


def a_pair(images, only_second, only_first, neither, rows=(0, 1), rates=(0.001, 0.001)):
    """Two configurations, and how many images only the second gets right, only the first, and neither."""
    start, stop = only_second, only_second + only_first
    first = wrong_on(images, (0, start), (stop, stop + neither))
    second = wrong_on(images, (start, stop), (stop, stop + neither))
    return [one_seed(first, rows[0], rates[0]), one_seed(second, rows[1], rates[1])]


def two_seeds_each():
    """1000 images, 30 that all trials have wrong; 20, 20 (row 0), 20, 10 (row 1) that one trial alone has wrong."""
    spans = [(30, 50), (50, 70), (70, 90), (90, 100)]
    trials = [wrong_on(1000, (0, 30), span) for span in spans]
    return [Evidence(row, "network", 0.001, np.stack(trials[2 * row : 2 * row + 2]), "images") for row in (0, 1)]


def on_different_images():
    return [
        one_seed(wrong_on(1000, (0, 50)), 0, val_key="some"),
        one_seed(wrong_on(400, (0, 20)), 1, val_key="others"),
    ]


PAIRS = {
    "1": a_pair(1000, 30, 20, 30),
    "2": a_pair(10000, 30, 20, 480),
    "3": a_pair(10000, 300, 100, 400),
    "4": a_pair(288, 0, 0, 12),
    "5": two_seeds_each(),
    "6": on_different_images(),
    "7": a_pair(1000, 30, 30, 20, rows=(0, 0), rates=(0.01, 0.001)),
    "8": a_pair(1000, 30, 25, 20),
}


def judged(name, tolerance=0.005, confidence=0.9):
    return judge(PAIRS[name], tolerance, confidence)


def h(name):
    """The standard error of the difference of a pair in two rows."""
    return max(error for _, error in judged(name).differences)


def test_case_1_the_better_of_two_is_enough_and_the_other_open():
    verdict = judged("1")
    assert verdict.errors == points(0.8270, 0.7597)
    assert [h("1")] == points(0.8488)
    assert verdict.upper == points(2.0878, 0.0878)
    assert verdict.lower == points(0, 0)
    assert verdict.status == ("open", "enough")
    assert (verdict.recommended, verdict.best, verdict.is_decided) == (1, 1, True)
    assert verdict.optimism == pytest.approx(0.001692, abs=1e-4)
    assert verdict.scores == (0.94, 0.95)
    assert verdict.error == verdict.errors[1]


def test_case_2_ten_thousand_images():
    verdict = judged("2")
    assert verdict.upper == points(0.6691, 0.4691)
    assert verdict.status == ("open", "enough")
    assert verdict.optimism == pytest.approx(0.001727, abs=1e-4)


def test_case_3_too_shallow():
    verdict = judged("3")
    assert verdict.lower == points(1.3400, 0)
    assert verdict.upper == points(2.6600, 0)
    assert verdict.status == ("too shallow", "enough")
    assert verdict.recommended == 1


def test_case_4_identical_predictions_are_undecided_for_the_luck_of_the_seed():
    verdict = judged("4")
    assert [h("4")] == points(0.5402)
    assert verdict.upper == points(0.6923, 0.6923)
    assert (verdict.status, verdict.recommended) == (("open", "open"), 0)
    assert not verdict.is_decided
    assert verdict.optimism == pytest.approx(0.002155, abs=1e-4)
    assert verdict.plans == (Plan(seeds=4, images=1717),)


def test_case_5_two_seeds_each():
    verdict = judged("5")
    smoothed = (1000 * 0.95 + 1) / 1002
    unit = smoothed * (1 - smoothed)
    assert 2 * verdict.seed_errors[0] ** 2 / unit == pytest.approx(0.00019922, abs=5e-9)
    assert [h("5")] == points(0.5260)
    assert verdict.upper == points(1.1741, 0.1741)
    assert verdict.optimism == pytest.approx(0.001336, abs=1e-4)


def test_case_6_different_images_are_not_paired():
    verdict = judged("6")
    assert verdict.errors == points(0.7597, 1.1492)
    assert [h("6")] == points(1.3776)
    assert h("6") == pytest.approx(math.hypot(*verdict.errors))
    assert verdict.upper == points(1.7655, 1.7655)
    assert not verdict.paired
    assert verdict.optimism == pytest.approx(0.005496, abs=1e-4)


def test_case_7_of_two_equal_rates_the_smaller_is_chosen_and_the_other_makes_it_undecided():
    verdict = judged("7")
    assert verdict.chosen == (1,)
    assert verdict.upper == points(1.1490)
    assert verdict.status == ("open",)
    assert verdict.lower == (0.0,)
    assert verdict.optimism == pytest.approx(0.003577, abs=1e-4)


def test_case_8_undecided_and_what_would_decide():
    verdict = judged("8")
    assert verdict.upper == points(1.6058, 0.6058)
    assert (verdict.status, verdict.recommended) == (("open", "open"), 0)
    assert verdict.plans == (Plan(seeds=1, images=14895),)


def test_case_8_one_configuration_alone():
    verdict = judge([one_seed(wrong_on(1000, (0, 50)))], 0.005, 0.9)
    assert (verdict.upper, verdict.lower, verdict.optimism, verdict.plans) == ((0.0,), (0.0,), 0.0, ())
    assert (verdict.status, verdict.recommended) == (("enough",), 0)


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_optimism_of_two_is_exact(name):
    """It is h φ(g / h), which the simulation meets to ± 0.01 points."""
    verdict = judge([replace(one, row=row) for row, one in enumerate(PAIRS[name])], 0.005, 0.9)
    error = max(error for _, error in verdict.differences)
    gap = verdict.scores[1] - verdict.scores[0]
    assert verdict.optimism == pytest.approx(error * norm.pdf(gap / error), abs=1e-4)
    assert judged(name).optimism == judged(name).optimism


# ---- who is compared with whom ----


def test_of_equal_rates_the_one_with_more_seeds_stands_for_its_row():
    right = wrong_on(1000, (0, 50))
    twice = Evidence(0, "network", 0.01, np.stack([right, right]), "images")
    assert judge([one_seed(right, lr=0.001), twice], 0.005, 0.9).chosen == (1,)


def test_a_higher_score_counts_before_the_number_of_seeds():
    right = wrong_on(1000, (0, 50))
    twice = Evidence(0, "network", 0.01, np.stack([right, right]), "images")
    assert judge([one_seed(wrong_on(1000, (0, 49))), twice], 0.005, 0.9).chosen == (0,)


def test_pairing_leaves_only_the_images_on_which_two_differ():
    pair = a_pair(1000, 10, 10, 40)
    apart = [replace(pair[0], val_key="some"), replace(pair[1], val_key="others")]
    (_, paired), (_, unpaired) = judge(pair, 0.005, 0.9).differences[1], judge(apart, 0.005, 0.9).differences[1]
    between, of_seeds = 20 / 1000 / 999, 2 * V0 * (951 / 1002) * (51 / 1002)
    assert paired == pytest.approx(math.sqrt(between + of_seeds + 1e-6))
    assert unpaired == pytest.approx(math.sqrt(2 * 0.95 * 0.05 / 999 + of_seeds + 1e-6))


def test_without_a_key_nothing_is_paired():
    pair = [replace(one, val_key="") for one in a_pair(1000, 10, 10, 40)]
    verdict = judge(pair, 0.005, 0.9)
    assert not verdict.paired
    assert verdict.differences[1][1] == pytest.approx(math.hypot(*verdict.errors))
    assert judge(a_pair(1000, 10, 10, 40), 0.005, 0.9).paired


def test_another_rate_of_its_own_row_keeps_a_row_from_being_enough():
    """Though no other row could: they are far behind."""
    first, second = a_pair(1000, 30, 30, 20, rows=(1, 1), rates=(0.01, 0.001))
    poor = one_seed(wrong_on(1000, (0, 400)), row=0)
    verdict = judge([poor, first, second], 0.005, 0.9)
    assert verdict.status == ("too shallow", "open")
    assert verdict.upper[1] == pytest.approx(0.011490, abs=1e-6)


def test_of_several_depths_one_is_too_shallow_by_a_stricter_quantile():
    """Of three rows the other two may each be the better one by luck: 95 % instead of 90."""
    first, second = a_pair(1000, 40, 10, 30)
    poor = one_seed(wrong_on(1000, (0, 400)), row=2)
    error = judge([first, second], 0.005, 0.9).differences[0][1]
    assert judge([first, second], 0.005, 0.9).lower[0] == pytest.approx(0.03 - norm.ppf(0.9) * error)
    assert judge([first, second, poor], 0.005, 0.9).lower[0] == pytest.approx(0.03 - norm.ppf(0.95) * error)


def test_undecided_recommends_the_cheapest_within_the_tolerance_of_the_best():
    spans = (0, 60), (100, 154), (200, 250)
    rows = [one_seed(wrong_on(1000, span), row) for row, span in enumerate(spans)]
    assert judge(rows, 0.005, 0.9).status == ("open", "open", "open")
    assert [judge(rows, tolerance, 0.9).recommended for tolerance in (0.003, 0.005, 0.010)] == [2, 1, 0]


def test_the_cheapest_that_is_enough_is_recommended_though_a_dearer_one_measures_better():
    rows = [one_seed(wrong_on(10_000, (0, wrong)), row) for row, wrong in enumerate((500, 499, 498))]
    verdict = judge(rows, 0.01, 0.9)
    assert verdict.status == ("enough", "enough", "enough")
    assert (verdict.recommended, verdict.best) == (0, 2)


def test_more_confidence_claims_less():
    bounds = [judged("3", confidence=confidence) for confidence in (0.8, 0.9, 0.99)]
    assert [one.upper[0] for one in bounds] == sorted(one.upper[0] for one in bounds)
    assert [one.lower[0] for one in bounds] == sorted((one.lower[0] for one in bounds), reverse=True)


def test_networks_do_not_share_what_a_seed_does():
    steady = one_seed(wrong_on(1000, (0, 50)), 0, network="steady")
    seeds = np.stack([wrong_on(1000, (0, 20)), wrong_on(1000, (0, 120))])
    verdict = judge([steady, Evidence(1, "restless", 0.001, seeds, "images")], 0.005, 0.9)
    unit = (951 / 1002) * (51 / 1002)
    assert verdict.seed_errors[0] == pytest.approx(math.sqrt(V0 * unit))
    assert verdict.seed_errors[1] > 5 * verdict.seed_errors[0]


def test_the_parts_of_an_error_make_up_the_whole():
    verdict = judged("5")
    parts = zip(verdict.errors, verdict.image_errors, verdict.seed_errors, strict=True)
    assert all(whole**2 == pytest.approx(images**2 + seeds**2 + 1 / (2 * 1000**2)) for whole, images, seeds in parts)


def test_numbers_that_are_zero_and_one_are_as_good_as_truth_values():
    numbers = [replace(one, contributions=one.contributions.astype(float)) for one in PAIRS["5"]]
    assert judge(numbers, 0.005, 0.9) == judged("5")


def test_other_numbers_bring_their_own_variance():
    """Of a loss, say; twice the numbers are twice the bounds."""
    rng = np.random.default_rng(0)
    losses = [-rng.exponential(0.3, (2, 500)) for _ in range(2)]
    one, double = (
        judge([Evidence(row, "n", 0.1, scale * x, "k") for row, x in enumerate(losses)], 0.0, 0.9) for scale in (1, 2)
    )
    assert double.seed_errors == pytest.approx([2 * error for error in one.seed_errors])
    assert double.upper == pytest.approx([2 * bound for bound in one.upper], rel=0.01)


# ---- what to run next ----


def test_plans_are_with_the_seeds_there_are_with_the_images_there_are_and_with_few_seeds_on_more():
    found = judged("5").plans
    assert found[0].seeds == 2
    assert found[1].images <= 1000 < found[0].images
    assert found[2].seeds == min(plan.seeds for plan in found)
    assert 1000 < found[2].images <= 20_000
    assert all(plan.seeds <= 10 for plan in found)


def test_what_is_planned_would_decide():
    """The same shares of images on as many images as asked for: the best row becomes enough."""
    (plan,) = judged("8").plans
    assert (plan.seeds, judged("8").is_decided) == (1, False)
    more = a_pair(plan.images, *(round(share * plan.images) for share in (0.030, 0.025, 0.020)))
    assert judge(more, 0.005, 0.9).status[1] == "enough"


def test_no_plan_where_no_run_can_tell_equals_apart():
    """Identical predictions and no tolerance: any difference may be asked for."""
    assert judge(a_pair(288, 0, 0, 12), 0.0, 0.9).plans == ()


# ---- sweeps with known truth ----


@pytest.fixture(scope="module")
def outcomes():
    """(true error of the estimate in standard errors, is decided, how far behind the best in truth) of 200 sweeps."""
    draws, statistics.DRAWS = statistics.DRAWS, 2_000  # noise of 0.02 points, a tenth of the time
    found = []
    for sweep in sweeps(200):
        verdict = judge(sweep.evidence, 0.005, 0.9)
        pick = verdict.chosen[verdict.recommended]
        off = (verdict.scores[pick] - verdict.optimism - sweep.truth[pick]) / verdict.error
        found.append((off, verdict.is_decided, sweep.truth.max() - sweep.truth[pick]))
    statistics.DRAWS = draws
    return np.array(found).T


def test_plus_minus_holds_the_truth_in_two_thirds_of_sweeps(outcomes):
    """Sixty-eight percent are wanted."""
    assert 0.60 <= np.mean(np.abs(outcomes[0]) <= 1) <= 0.76


def test_enough_is_seldom_false(outcomes):
    """A configuration that is truly better by more than the tolerance of half a point."""
    _, decided, behind = outcomes
    assert 0.05 < decided.mean() < 0.95
    assert np.mean((decided == 1) & (behind > 0.005)) <= 0.06


def test_the_estimate_has_no_luck_left_in_it(outcomes):
    """Without the correction it is 0.7 standard errors too good."""
    assert abs(outcomes[0].mean()) < 0.25


def test_too_shallow_is_seldom_false():
    """Where all configurations are equally good, none is."""
    false = 0
    for sweep in sweeps(60, differ=0.0):
        verdict = judge(sweep.evidence, 0.005, 0.9)
        false += "too shallow" in verdict.status
    assert false <= 3


def test_simulated_trials_disagree_as_real_ones_do():
    others = {"seed": (0, 1), "rate": (1, 0), "next depth": (2, 0), "last depth": (6, 0)}
    apart = {name: [] for name in others}
    for sweep in sweeps(60, images=1_000, differ=0.0):
        for name, (place, seed) in others.items():
            one, other = sweep.evidence[0].contributions[0], sweep.evidence[place].contributions[seed]
            apart[name].append(100 * np.mean(one != other))
    means = [np.mean(shares) for shares in apart.values()]
    assert means == pytest.approx([3.3, 3.9, 4.2, 4.8], abs=0.3)
