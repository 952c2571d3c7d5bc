"""The answer of a run, or of several: evidence from predictions, the question, what is refitted."""

import numpy as np
import pytest

from raysweep.report import page, sentences
from raysweep.report.answer import Question, answer_of, question_of, to_refit
from raysweep.report.tables import trials_table
from raysweep.sweep.evidence import ImagePredictions, read_predictions
from raysweep.sweep.ledger import read
from tests.report.synthetic_runs import (
    IMAGES,
    LABELS,
    VAL_KEY,
    digits_outcomes,
    epoch_rows,
    finished,
    planned,
    predictions_of,
    write_run,
)  # fmt: skip
from tests.sweep.stored_predictions import write_predictions

RECIPE = {"data": {"dataset": "digits"}}


def depths(accuracies, seeds=(0, 1), **more):
    """Finished trials of these depths."""
    return [
        finished(planned(depth, seed=seed, **more), accuracy + 0.002 * seed)
        for depth, accuracy in accuracies.items()
        for seed in seeds
    ]


def notes(facts):
    return list(page.reservations(facts))


@pytest.fixture
def facts_of(make_run):
    """What the report knows of a run of these trials."""
    return lambda outcomes, **more: page.gather([make_run(outcomes, **more)])


# ---- evidence ----


def test_scores_are_those_of_the_rows_image_for_image(make_run):
    outcomes = digits_outcomes()
    run = make_run(outcomes)
    for plan, state, rows in outcomes:
        found = read_predictions(run.folder, plan.trial)
        if state == "finished":
            assert np.mean(found.predicted == LABELS) == rows[-1].val_accuracy
        else:
            assert found is None
    answer = page.gather([run]).answer
    assert answer.depths["score"].tolist() == pytest.approx(answer.depths["val_accuracy"].tolist(), abs=1e-15)


def test_with_predictions_trials_are_compared_image_by_image(facts_of):
    facts = facts_of(depths({1: 0.90, 3: 0.95, 9: 0.955}))
    answer = facts.answer
    assert answer.from_predictions
    assert answer.verdict.paired
    assert answer.depths["depth"].tolist() == [1, 3, 9]
    assert answer.depths["status"].tolist() == list(answer.verdict.status) == ["too shallow", "open", "enough"]
    assert answer.recommended["depth"] == answer.best["depth"] == 9
    assert not answer.several_series
    difference = answer.depths["difference"].tolist()
    assert difference == pytest.approx([-0.055, -0.005, 0.0])
    far = np.hypot(*answer.depths["standard_error"].iloc[:2])
    assert answer.depths["difference_error"].iloc[1] < 0.7 * far
    assert not [note for note in notes(facts) if "paired" in note]


def test_without_predictions_scores_are_compared_unpaired_and_a_note_says_so(facts_of):
    facts = facts_of(depths({1: 0.90, 3: 0.95}), predictions=False)
    answer = facts.answer
    assert (answer.from_predictions, answer.verdict.paired) == (False, False)
    accuracy = answer.depths["val_accuracy"]
    assert answer.depths["score"].tolist() == pytest.approx(accuracy.tolist())
    binomial = np.sqrt(accuracy * (1 - accuracy) / IMAGES)
    assert (answer.depths["standard_error"] > binomial).all()
    assert answer.verdict.image_errors == pytest.approx(binomial, rel=0.03)
    assert [note for note in notes(facts) if note.endswith("scores are compared unpaired, which tells less.")]


def break_file(path):
    path.write_bytes(path.read_bytes()[:100])


def lose_file(path):
    path.unlink()


def empty_file(path):
    path.write_bytes(b"")


def other_images(path):
    found = read_predictions(path.parent.parent, path.stem)
    other = ImagePredictions(found.epoch, found.predicted, found.true_probability, "other images")
    write_predictions(path.parent.parent, path.stem, other)


def fewer_images(path):
    found = read_predictions(path.parent.parent, path.stem)
    fewer = ImagePredictions(found.epoch, found.predicted[:-1], found.true_probability[:-1], VAL_KEY)
    write_predictions(path.parent.parent, path.stem, fewer)


@pytest.mark.parametrize(
    ("which", "harm"),
    [(which, harm) for which in ("trial", "labels") for harm in (lose_file, break_file, empty_file)]
    + [("trial", other_images), ("trial", fewer_images)],
)
def test_a_file_that_is_of_no_use_costs_the_pairing_and_no_more(make_run, harm, which):
    outcomes = depths({1: 0.90, 3: 0.95})
    run = make_run(outcomes)
    name = outcomes[0][0].trial if which == "trial" else "validation"
    harm(run.folder / "predictions" / f"{name}.npz")
    answer = page.gather([run]).answer
    assert (answer.from_predictions, answer.verdict.paired) == (False, False)
    assert answer.depths["score"].tolist() == pytest.approx([0.901, 0.951])


def test_cheapest_first_within_a_network_by_layers(facts_of):
    slow = planned(1)
    quick = planned(3)
    facts = facts_of([finished(quick, 0.9, seconds=1.0), finished(slow, 0.9, seconds=5.0)])
    assert facts.depths["depth"].tolist() == [1, 3]


def test_cheapest_first_over_networks_by_what_a_trial_costs(facts_of):
    """One seed each; the middling network is cheaper than the large one, and as good."""
    rows = {"large": (0.95, 9.0), "middling": (0.95, 3.0), "small": (0.80, 1.0)}
    outcomes = [finished(planned(5, backbone=name), score, seconds=cost) for name, (score, cost) in rows.items()]
    answer = facts_of(outcomes, recipe=RECIPE | {"tolerance": 2.0}).answer
    assert answer.depths["backbone"].tolist() == ["small", "middling", "large"]
    assert answer.depths["status"].tolist() == ["too shallow", "enough", "enough"]
    assert answer.recommended["backbone"] == "middling"


def test_the_best_rate_stands_for_its_depth_and_the_other_is_compared_too(facts_of):
    rates = [
        finished(planned(3, lr=lr, seed=seed), score) for lr, score in ((0.1, 0.93), (0.2, 0.95)) for seed in (0, 1)
    ]
    answer = facts_of([*depths({1: 0.90}), *rates]).answer
    assert answer.depths["lr"].tolist() == [0.001, 0.2]
    assert len(answer.configurations) == 3
    assert answer.configurations["score"].tolist() == pytest.approx([0.901, 0.93, 0.95])


def test_stopped_trials_are_counted_beside_their_depth(digits_run):
    answer = page.gather([digits_run]).answer
    assert dict(zip(answer.depths["depth_label"], answer.depths["stopped_early"], strict=True)) == {
        "1": 2, "3": 2, "9": 2, "21": 2, "33": 2, "all": 0,
    }  # fmt: skip


def test_nothing_finished_no_answer(make_run):
    run = make_run([(planned(3), "interrupted", epoch_rows(planned(3), 0.9, 2))])
    assert answer_of(trials_table(run), [run], Question()) is None
    assert page.gather([run]).answer is None


# ---- the question ----


def test_the_recipe_asks(make_run):
    recipe = RECIPE | {"objective": "macro_f1", "tolerance": 1.5, "confidence": 0.8}
    run = make_run([], recipe=recipe)
    assert question_of(run) == Question("macro_f1", 1.5, 0.8)
    assert question_of(run, tolerance=0.0, confidence=0.95) == Question("macro_f1", 0.0, 0.95)
    assert question_of(make_run([], name="plain")) == Question("accuracy", 0.5, 0.9)


def test_another_tolerance_is_another_answer(make_run):
    run = make_run(depths({1: 0.93, 3: 0.95}))
    asked = [page.gather([run], tolerance=tolerance).answer for tolerance in (0.5, 4.0)]
    assert [answer.recommended["depth"] for answer in asked] == [3, 1]
    sure = [page.gather([run], confidence=confidence).answer.verdict.upper[0] for confidence in (0.8, 0.99)]
    assert sure[0] < sure[1]


@pytest.mark.parametrize(
    ("objective", "column", "sign"),
    [("balanced_accuracy", "val_balanced_accuracy", 1), ("macro_f1", "val_macro_f1", 1), ("loss", "val_loss", -1)],
)
def test_every_objective_is_compared_by_its_own_score(facts_of, objective, column, sign):
    facts = facts_of(depths({1: 0.90, 3: 0.95, 9: 0.951}), recipe=RECIPE | {"objective": objective, "tolerance": 3.0})
    answer = facts.answer
    assert answer.question.objective == objective
    slack = 0.001 if objective == "macro_f1" else 1e-6  # pseudo-values; single precision
    assert answer.depths["score"].tolist() == pytest.approx((sign * answer.depths[column]).tolist(), abs=slack)
    assert answer.verdict.paired
    assert answer.verdict.status[0] == "too shallow"
    assert answer.recommended["depth"] == 3


def test_rates_are_chosen_by_the_objective(facts_of, make_run):
    """The rate with the better accuracy has the worse loss: all it is sure of is wrong."""
    careful, bold = planned(1, lr=0.1), planned(1, lr=0.2)
    run = make_run([finished(careful, 0.90), finished(bold, 0.91)], recipe=RECIPE | {"objective": "loss"})
    found = predictions_of(bold, 0.91)
    rash = np.where(found.predicted == LABELS, found.true_probability, 1e-6).astype(np.float32)
    write_predictions(run.folder, bold.trial, ImagePredictions(6, found.predicted, rash, VAL_KEY))
    assert page.gather([run]).answer.recommended["lr"] == 0.1
    assert facts_of([finished(careful, 0.90), finished(bold, 0.91)], name="by_accuracy").answer.recommended["lr"] == 0.2


def test_without_predictions_accuracy_is_compared_whatever_was_asked(facts_of):
    """No loss can be made of accuracies."""
    facts = facts_of(depths({1: 0.90, 3: 0.95}), predictions=False, recipe=RECIPE | {"objective": "loss"})
    answer = facts.answer
    assert (answer.question.objective, answer.asked) == ("accuracy", "loss")
    assert answer.depths["score"].tolist() == pytest.approx([0.901, 0.951])
    assert "Without them accuracy is compared, not loss." in notes(facts)
    assert "Expect 95.1 %" in sentences.headline(answer)


@pytest.mark.parametrize("objective", ["accuracy", "loss", "balanced_accuracy"])
def test_the_error_of_the_gap_is_that_of_accuracies(facts_of, objective):
    """Train and validation accuracy of 1000 images each, whatever is compared."""
    facts = facts_of(depths({1: 0.90, 3: 0.95}), recipe=RECIPE | {"objective": objective})
    shares = facts.depths["val_accuracy"], facts.depths["train_accuracy"]
    binomial = np.sqrt(sum(share * (1 - share) for share in shares) / IMAGES)
    assert facts.depths["gap_error"].tolist() == pytest.approx(binomial.tolist(), rel=0.1)


# ---- several runs ----


def test_two_runs_on_the_same_images_are_paired(make_run):
    first = make_run(depths({1: 0.90, 3: 0.95}), name="one")
    second = make_run(depths({1: 0.91}), name="two")
    facts = page.gather([first, second])
    assert facts.answer.verdict.paired
    assert facts.answer.depths["series"].tolist() == [
        "tf_efficientnet_lite0 (run=one)", "tf_efficientnet_lite0 (run=two)", "tf_efficientnet_lite0 (run=one)",
    ]  # fmt: skip
    assert facts.answer.depths["score"].tolist() == pytest.approx([0.901, 0.911, 0.951])
    assert facts.answer.several_series


def test_two_runs_on_different_images_of_the_same_data_are_not(make_run):
    runs = [
        make_run(depths({1: 0.90}), name="one"),
        make_run(depths({1: 0.95}), name="two", val_key="other images"),
    ]
    facts = page.gather(runs)
    assert facts.answer.from_predictions
    assert not facts.answer.verdict.paired
    assert "Measured on different images, so not paired." in notes(facts)


@pytest.mark.parametrize("other", [{"dataset": "cifar10"}, {"dataset": "digits", "root": "/elsewhere"}])
def test_runs_on_different_data_are_not_ranked(make_run, other):
    runs = [make_run(depths({1: 0.90}), name="one"), make_run(depths({1: 0.9}), name="two", recipe={"data": other})]
    facts = page.gather(runs)
    assert facts.answer is None
    assert facts.compared is not None
    assert page.headline(facts) == "These runs were made on different data: they are shown side by side and not ranked."
    assert page.next_step(facts) == ""


def test_runs_whose_folders_have_one_name_are_told_apart(tmp_path):
    """Else the second run's predictions would stand for the first one's trials, as further seeds."""
    folders = [
        write_run(tmp_path / month / "run", depths({3: score})) for month, score in (("may", 0.90), ("june", 0.95))
    ]
    facts = page.gather([read(folder) for folder in folders])
    depths_of = {row["series"]: (row["n_seeds"], row["score"]) for _, row in facts.depths.iterrows()}
    assert depths_of == {
        "tf_efficientnet_lite0 (run=may/run)": (2, pytest.approx(0.901)),
        "tf_efficientnet_lite0 (run=june/run)": (2, pytest.approx(0.951)),
    }
    assert facts.depths["score"].tolist() == pytest.approx(facts.depths["val_accuracy"].tolist())


# ---- what is refitted ----


@pytest.fixture
def several(facts_of):
    """Two networks; depth 3 of the first is enough, depth 9 is best."""
    outcomes = depths({1: 0.90, 3: 0.950, 9: 0.953})
    outcomes += depths({"head": 0.85, "all": 0.80}, backbone="timm/vit_small")
    return facts_of(outcomes, recipe=RECIPE | {"tolerance": 2.0}).answer


def refitted(answer, of):
    return {name: (row["backbone"], row["depth"]) for name, row in to_refit(answer, of).items()}


def test_refit_the_recommended(several):
    assert refitted(several, "recommended") == {"recommended": ("tf_efficientnet_lite0", 3)}


def test_refit_the_best(several):
    assert refitted(several, "best") == {"best": ("tf_efficientnet_lite0", 9)}


def test_refit_the_best_depth_of_each_network(several):
    assert refitted(several, "each-network") == {
        "timm-vit_small": ("timm/vit_small", "head"),
        "tf_efficientnet_lite0": ("tf_efficientnet_lite0", 9),
    }


def test_refit_every_depth_compared(several):
    assert refitted(several, "all") == {
        "tf_efficientnet_lite0-depth-1": ("tf_efficientnet_lite0", 1),
        "tf_efficientnet_lite0-depth-3": ("tf_efficientnet_lite0", 3),
        "tf_efficientnet_lite0-depth-9": ("tf_efficientnet_lite0", 9),
        "timm-vit_small-the-head-alone": ("timm/vit_small", "head"),
        "timm-vit_small-all-layers": ("timm/vit_small", "all"),
    }


def test_axes_that_vary_make_folders_of_their_own(facts_of):
    outcomes = [finished(planned(3, head=head), 0.9) for head in ("linear", "mlp 256/2")]
    names = list(to_refit(facts_of(outcomes).answer, "each-network"))
    assert sorted(names) == ["tf_efficientnet_lite0-head=linear", "tf_efficientnet_lite0-head=mlp-256-2"]


def test_the_trial_to_refit_is_one_of_the_recommended_configuration(digits_run):
    (chosen,) = to_refit(page.gather([digits_run]).answer, "recommended").values()
    assert {key: chosen[key] for key in ("depth", "lr")} == {"depth": 33, "lr": 1e-3}
    assert chosen["names"] == [planned(33, seed=seed).trial for seed in (0, 1)]
    assert type(chosen["depth"]) is int
