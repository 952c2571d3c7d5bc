"""What is said of an answer, word for word, and the command that is advised."""

import shlex
from dataclasses import replace

import pytest

from raysweep.recipe import load
from raysweep.report import sentences
from raysweep.report.statistics import Plan
from tests.report.made_answers import Depth, answer

COMMAND = "python -m raysweep.grid quickstart --run-dir runs/one 'grid.lr=[1e-3,3e-4]' grid.seed=[0]"


def tried_of(found, rates=(0.001,)):
    """Rows of trials: every depth at these learning rates."""
    return [{**row, "lr": rate} for row in found.depths.to_dict("records") for rate in rates]


def notes(found, rates=(0.001,)):
    return list(sentences.notes(found, tried_of(found, rates)))


# ---- enough ----


def test_enough_and_all_shallower_depths_are_too_shallow():
    found = answer(
        Depth(3, 92.0, "too shallow", 4.0, 2.2),
        Depth(6, 93.5, "too shallow", 2.0, 0.8),
        Depth(9, 95.0, "enough", 0.3),
        Depth("all", 95.1, "enough", 0.2),
        recommended=2,
        configurations=24,
    )
    assert sentences.headline(found) == (
        "Fine-tune the last 9 layers of resnet18 at lr 0.001: at most 0.3 points below the best configuration tried "
        "(90 % confidence); every shallower depth loses more than 0.5 points. Expect 94.8 % ± 0.4 (3 seeds, 10,000 "
        "validation images; measured 95.0, 0.2 of it the luck of picking the best of 24)."
    )
    assert sentences.next_run(found, {"command": COMMAND}) == ""
    assert sentences.expected(found) == "94.8 % ± 0.4"
    assert sentences.measured(found) == "95.0 %"


def test_enough_and_some_shallower_depth_is_open():
    found = answer(
        Depth(3, 92.0, "too shallow", 4.0, 2.2), Depth(6, 94.6, "open", 0.8, 0.04), Depth(9, 95.0, "enough", 0.3),
        recommended=2,
    )  # fmt: skip
    assert (
        "(90 % confidence); depth 3 loses more than 0.5 points. Whether depth 6 would do is open: measured 0.4 points "
        "below the best (0.0 to 0.8). Expect"
    ) in sentences.headline(found)


def test_enough_and_many_shallower_depths_are_open():
    """Those nearest to the recommended one have sentences of their own, and none is left out."""
    shallower = [Depth(layers, 94.0 + layers / 10, "open", 1.5) for layers in (1, 3, 5, 7)]
    text = sentences.headline(answer(*shallower, Depth(9, 95.0, "enough", 0.3), recommended=4))
    assert "Whether depth 5 would do is open: measured 0.5 points below the best (0.0 to 1.5). Whether depth 7" in text
    assert "(0.0 to 1.5). Depth 1 and depth 3 are open too. Expect" in text


def test_the_cheapest_of_all_is_enough():
    found = answer(Depth(1, 95.0, "enough", 0.3), Depth(3, 95.1, "enough", 0.2))
    assert sentences.headline(found).startswith(
        "Train only the classifier of resnet18 at lr 0.001: at most 0.3 points below the best configuration tried (90 "
        "% confidence). Expect"
    )


def test_surely_the_best():
    found = answer(Depth(1, 80.0, "too shallow", 17.0, 13.0), Depth(3, 95.0, "enough", 0.0), recommended=1)
    assert "resnet18 at lr 0.001: no configuration tried is better (90 % confidence); every" in sentences.headline(
        found
    )


def test_the_confidence_is_the_one_asked_for():
    assert "(97.5 % confidence)" in sentences.headline(
        answer(Depth(1, 95.0, upper=0.2), Depth(3, 95.0), confidence=0.975)
    )


def test_no_luck_worth_a_word():
    found = answer(Depth(1, 95.0, upper=0.2), Depth(3, 95.0), optimism=0.04)
    assert sentences.headline(found).endswith("Expect 95.0 % ± 0.4 (3 seeds, 10,000 validation images).")


def test_over_several_networks_places_have_names():
    found = answer(
        Depth(1, 80.0, "too shallow", 17, 13, "alexnet"), Depth(3, 85.0, "too shallow", 12, 8, "alexnet"),
        Depth("head", 85.0, "too shallow", 12, 8, "resnet18"), Depth("all", 94.5, "open", 1.5, 0.0, "small_cnn"),
        Depth(9, 95.0, "enough", 0.3, 0.0, "resnet18"), recommended=4, tolerance=1,
    )  # fmt: skip
    assert (
        "alexnet at depths 1 and 3 and resnet18 with the head alone lose more than 1 point. Whether small_cnn with all "
        "layers would do is open"
    ) in sentences.headline(found)
    all_known = answer(
        *(Depth(1, 80.0, "too shallow", 17, 13, "alexnet"), Depth(9, 95.0, "enough", 0.3)), recommended=1
    )
    assert "; everything cheaper loses more than 0.5 points." in sentences.headline(all_known)


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("head", "Train only the head of resnet18"),
        (1, "Train only the classifier of resnet18"),
        (9, "Fine-tune the last 9 layers of resnet18"),
        ("all", "Train all layers of resnet18"),
        ("layer3", "Fine-tune resnet18 from layer3 to the output (2 layers)"),
        (("conv1", "bn1"), "Fine-tune only conv1, bn1 of resnet18 (2 layers)"),
    ],
)
def test_every_kind_of_depth(label, words):
    found = answer(Depth(label, 95.0, seeds=1), optimism=0.0)
    assert sentences.headline(found) == (
        f"{words} at lr 0.001: the only configuration with a finished trial. "
        "Expect 95.0 % ± 0.4 (1 seed, 10,000 validation images)."
    )
    assert sentences.next_run(found, {"command": COMMAND}) == ""


def test_from_scratch():
    found = answer(Depth("all", 95.0, weights="none"))
    assert sentences.headline(found).startswith("Train all layers of resnet18 from scratch at lr 0.001:")


# ---- undecided ----


def undecided(**more):
    """Between three depths, on 288 images."""
    given = {"images": 288, "error": 1.1, "optimism": 0.6, "plans": (Plan(3, 3_412), Plan(2, 12_345))} | more
    return answer(
        Depth(6, 95.0, "open", 1.1, seeds=2),
        Depth(9, 95.2, "open", 1.0, seeds=2),
        Depth(12, 95.1, "open", 1.3, seeds=2),
        **given,
    )


def test_undecided():
    assert sentences.headline(undecided()) == (
        "Undecided between depth 6, depth 9 and depth 12: 288 validation images and 2 seeds can show 1.0 points, not "
        "0.5. Until then: fine-tune the last 6 layers of resnet18 at lr 0.001, measured 0.2 points below the best, "
        "at most 1.1 points below it. Expect 94.4 % ± 1.1 (2 seeds, 288 validation images; measured 95.0, 0.6 of it "
        "the luck of picking the best of 3)."
    )


def test_undecided_with_the_best_in_front():
    found = answer(Depth(6, 95.2, "open", 0.9), Depth(9, 95.0, "open", 1.0))
    assert "at lr 0.001, measured best, though another can be better by up to 0.9 points. Expect" in sentences.headline(
        found
    )


def test_undecided_of_one_depth():
    found = answer(Depth(3, 95.0, "open", 0.9), Depth(9, 80.0, "too shallow", 16, 14))
    assert sentences.headline(found).startswith("Undecided whether depth 3 is enough: 10,000 validation images and")


def test_undecided_between_rates_of_one_depth():
    found = answer(Depth(3, 95.0, "open", 0.9), configurations=2)
    assert sentences.headline(found).startswith("Undecided between the 2 learning rates of the one depth: ")


def test_undecided_between_many():
    depths = [Depth(layers, 95.0, "open", 0.9) for layers in range(1, 10)]
    text = sentences.headline(answer(*depths))
    assert text.startswith("Undecided between depth 1, depth 2, depth 3, depth 4, depth 5, depth 6 and 3 more: ")


def test_undecided_over_several_networks():
    found = answer(
        Depth(1, 95.0, "open", 0.9, network="a"), Depth(9, 95.0, "open", 0.9, network="a"),
        Depth("all", 95.0, "open", 0.9, network="a"), Depth("head", 95.0, "open", 0.9, network="b"),
    )  # fmt: skip
    text = sentences.headline(found)
    assert text.startswith("Undecided between a at depths 1 and 9 and with all layers and b with the head alone: ")


@pytest.mark.parametrize("upper", [0.5001, 0.52, 0.549])
def test_bounds_are_rounded_away_from_what_they_exclude(upper):
    """Not `can show 0.5 points, not 0.5`, nor `at most 0.5` of what may be 0.549."""
    text = sentences.headline(answer(Depth(1, 94.0, "open", 1.61, 0.09), Depth(3, 95.0, "open", upper), recommended=1))
    assert "can show 0.6 points, not 0.5" in text
    assert "by up to 0.6 points" in text
    enough = answer(Depth(1, 94.0, "open", 1.61, 0.09), Depth(3, 95.0, "enough", 0.41), recommended=1)
    assert "at most 0.5 points below" in sentences.headline(enough)
    assert "below the best (0.0 to 1.7)" in sentences.headline(enough)


def test_a_bound_that_needs_no_rounding_stays():
    found = answer(Depth(1, 95.0, "enough", 0.3), Depth(3, 95.0, "enough", 0.3))
    assert "at most 0.3 points" in sentences.headline(found)


# ---- other objectives ----


@pytest.mark.parametrize(("objective", "name"), [("balanced_accuracy", "balanced accuracy"), ("macro_f1", "macro-F1")])
def test_other_scores_have_their_names(objective, name):
    found = answer(Depth(1, 95.0, upper=0.2), Depth(3, 95.0), objective=objective)
    assert f"Expect a {name} of 94.8 % ± 0.4 (" in sentences.headline(found)


def test_a_loss_is_no_percentage():
    """Less is better: numbers are of the loss itself, and what is worse lies above."""
    found = answer(
        Depth(1, 25.0, "too shallow", 5.0, 3.0), Depth(3, 21.1, "open", 1.6, 0.1), Depth(9, 20.0, "enough", 0.3),
        recommended=2, objective="loss", tolerance=1.0, error=1.3,
    )  # fmt: skip
    assert sentences.headline(found) == (
        "Fine-tune the last 9 layers of resnet18 at lr 0.001: at most 0.003 above the best configuration tried (90 % "
        "confidence); depth 1 loses more than 0.01. Whether depth 3 would do is open: measured 0.011 above the best "
        "(0.001 to 0.016). Expect a loss of 0.202 ± 0.013 (3 seeds, 10,000 validation images; measured 0.200, too "
        "low by 0.002, the luck of picking the best of 3)."
    )
    assert "the ± 0.013" in sentences.errors_apart(found)
    assert "points" not in sentences.headline(found) + sentences.errors_apart(found)


def test_undecided_about_a_loss():
    found = answer(
        Depth(3, 20.1, "open", 1.2), Depth(9, 20.0, "open", 1.1), objective="loss", plans=[Plan(3, 400_000)]
    )  # fmt: skip
    text = sentences.headline(found)
    assert "can show 0.011, not 0.005. Until then: fine-tune the last 3 layers" in text
    assert "measured 0.001 above the best, at most 0.012 above it." in text
    assert sentences.next_run(found, {}) == (
        "No affordable run decides this; with a tolerance of 1.1 (hundredths of loss) the answer is depth 9."
    )


# ---- notes ----


def test_nothing_to_bear_in_mind():
    assert notes(answer(Depth(1, 95.0, upper=0.2), Depth(3, 95.0))) == []


def test_one_seed_is_an_assumption():
    found = answer(Depth(1, 95.0, seeds=1), Depth(3, 95.0, seeds=1), seed_error=0.31)
    assert notes(found) == ["One seed: ± assumes that a seed moves accuracy by 0.3 points; run a second."]
    loss = answer(Depth(1, 20.0, seeds=1), Depth(3, 20.0, seeds=1), seed_error=0.31, objective="loss")
    assert notes(loss) == ["One seed: ± assumes that a seed moves loss by 0.003; run a second."]


def test_one_seed_beside_others_is_no_assumption():
    found = answer(Depth(1, 95.0, seeds=1), Depth(3, 95.0, seeds=2), seed_error=0.31)
    assert notes(found) == [
        "One seed at this depth: by the other depths a seed moves accuracy by 0.3 points; run a second."
    ]
    another_network = answer(Depth(1, 95.0, seeds=1), Depth(3, 95.0, seeds=2, network="alexnet"))
    assert notes(another_network)[0].startswith("One seed: ± assumes")


def test_what_is_not_paired_is_said():
    pair = Depth(1, 95.0), Depth(3, 95.0)
    assert notes(answer(*pair, paired=False)) == ["Measured on different images, so not paired."]
    assert notes(answer(*pair, paired=False, from_predictions=False)) == [
        "Predictions of single images are missing: scores are compared unpaired, which tells less."
    ]
    assert notes(answer(*pair, paired=False, from_predictions=False, asked="macro_f1"))[1:] == [
        "Without them accuracy is compared, not macro-F1."
    ]


def test_a_tolerance_of_less_than_an_image():
    pair = Depth(1, 95.0), Depth(3, 95.0)
    assert notes(answer(*pair, images=199)) == ["The tolerance of 0.5 points is less than one image of 199."]
    assert notes(answer(*pair, images=200)) == []
    assert notes(answer(*pair, images=1_000, tolerance=0.05)) == [
        "The tolerance of 0.05 points is less than one image of 1,000."
    ]


def test_macro_f1_is_compared_by_the_jackknife():
    (note,) = notes(answer(Depth(1, 95.0), Depth(3, 95.0), objective="macro_f1"))
    assert note.startswith("Macro-F1 is compared by its jackknife pseudo-values")


def test_the_best_at_an_end_of_the_grid():
    found = answer(Depth(1, 90.0, "too shallow", 6, 4), Depth(3, 95.0), recommended=1)
    assert notes(found, rates=(0.001, 0.01)) == [
        "The recommended depth is the deepest tried: a deeper one may be better.",
        "0.001 is the smallest learning rate tried at this depth: a smaller one may be better.",
    ]
    assert notes(found, rates=(0.0001, 0.001))[1] == (
        "0.001 is the largest learning rate tried at this depth: a larger one may be better."
    )
    assert notes(found, rates=(0.0001, 0.001, 0.01)) == notes(found)
    whole = answer(Depth(1, 90.0, "too shallow", 6, 4), Depth("all", 95.0), recommended=1)
    assert notes(whole) == []  # no network is deeper than all its layers


def test_the_two_parts_of_an_error():
    found = answer(Depth(1, 95.0), Depth(3, 95.0))
    assert sentences.errors_apart(found) == (
        "Two things make up the ± 0.4 of the recommended depth, added as squares: which images are in validation (0.3; "
        "more images make it smaller) and the luck of the seed (0.2; more seeds do)."
    )
    assert sentences.errors_in_short(found) == "± 0.3 by the images, 0.2 by the seeds"


# ---- the next run ----


def advised(text):
    """The recipe that the command at the end of a sentence asks for."""
    words = shlex.split(text.partition("Next: ")[2])
    assert words[:3] == ["python", "-m", "raysweep.grid"]
    names = [word for word in words[3:] if "=" not in word]
    return load(*names, [word for word in words[3:] if "=" in word])


def about(command=COMMAND, **data):
    return {"command": command, "recipe": {"data": data}}


def test_more_seeds_on_the_same_images():
    found = undecided(plans=[Plan(2, 9_000), Plan(5, 280), Plan(3, 400)])
    text = sentences.next_run(found, about())
    assert text.startswith(
        "To decide: 5 seeds on the same 288 validation images. Next: python -m raysweep.grid quickstart "
    )
    recipe = advised(text)
    assert recipe.grid[0].seed == (0, 1, 2, 3, 4)
    assert recipe.grid[0].lr == (1e-3, 3e-4)
    assert recipe.data.val_fraction == 0.2
    assert "runs/one" not in text


def test_more_images_by_a_larger_share():
    text = sentences.next_run(undecided(plans=[Plan(3, 601), Plan(2, 9_000)]), about(val_fraction=0.2))
    assert text.startswith("To decide: about 610 validation images with 3 seeds. Next: ")
    recipe = advised(text)
    assert recipe.grid[0].seed == (0, 1, 2)
    assert recipe.data.val_fraction == pytest.approx(0.42)  # 0.2 × 601 / 288, rounded up


def test_the_share_given_before_is_replaced():
    command = "python -m raysweep.grid quickstart data.val_fraction=0.1"
    recipe = advised(sentences.next_run(undecided(plans=[Plan(3, 601)]), about(command, val_fraction=0.1)))
    assert recipe.data.val_fraction == pytest.approx(0.21)


def test_a_recipe_file_and_words_that_need_quotes(tmp_path):
    (tmp_path / "my recipe.yaml").write_text("name: mine\ngrid: {seed: [7, 8], depth: [1, 3]}\n")
    command = shlex.join(["python", "-m", "raysweep.grid", str(tmp_path / "my recipe.yaml"), "--run-dir=out"])
    recipe = advised(sentences.next_run(undecided(plans=[Plan(4, 288)]), about(command)))
    assert (recipe.name, recipe.grid[0].seed, recipe.grid[0].depth) == ("mine", (0, 1, 2, 3), (1, 3))


def test_every_block_of_a_grid_gets_the_seeds():
    recipe = advised(sentences.next_run(undecided(plans=[Plan(3, 288)]), about("python -m raysweep.grid quickstart")))
    assert len(recipe.grid) > 1
    assert {block.seed for block in recipe.grid} == {(0, 1, 2)}


def test_no_command_where_no_share_gives_so_many_images():
    text = sentences.next_run(undecided(), about(val_fraction=0.2))
    assert text == (
        "To decide: about 3,500 validation images with 3 seeds. Or with a tolerance of 1.0 points the answer is depth "
        "9."
    )


@pytest.mark.parametrize("command", [None, "", "raysweep.grid quickstart", "python sweep.py"])
def test_no_command_where_the_run_was_not_started_by_ours(command):
    text = sentences.next_run(undecided(plans=[Plan(3, 288)]), about(command))
    assert text.startswith("To decide: 3 seeds on the same 288 validation images. Or with")


@pytest.mark.parametrize("plans", [[], [Plan(2, 288 * 20 + 1)]])
def test_no_affordable_run(plans):
    """None, or none on at most twenty times the images."""
    assert sentences.next_run(undecided(plans=plans), about()) == (
        "No affordable run decides this; with a tolerance of 1.0 points the answer is depth 9."
    )


@pytest.mark.parametrize("upper", [0.7, 1.4, 2.9, 1.01, 1.0])
def test_the_tolerance_that_would_do_suffices(upper):
    """Rounded up to a tenth; also where floating point puts a bound a hair above its tenth."""
    found = answer(Depth(1, 95.0, "open", upper), Depth(3, 95.0, "open", upper + 1))
    text = sentences.next_run(found, {})
    tolerance = float(text.partition("tolerance of ")[2].split()[0])
    assert upper <= tolerance < upper + 0.1
    assert text.endswith("the answer is depth 1.")


def test_a_split_that_the_data_has_itself_is_not_made_larger():
    """The data's own validation split ignores data.val_fraction."""
    own = about(val_fraction=0.2) | {"images": {"val": 288, "drawn": ["test"]}}
    text = sentences.next_run(undecided(plans=[Plan(3, 601)]), own)
    assert "val_fraction" not in text and text.startswith("To decide: about 610 validation images with 3 seeds.")


def test_no_accuracy_below_nothing_is_expected():
    assert sentences.expected(answer(Depth(1, 0.1), Depth(3, 0.2), optimism=0.6)).startswith("0.0 % ± ")


@pytest.mark.parametrize("images", [None, float("nan")])
def test_rows_that_do_not_say_how_many_images_there_were(images):
    """As the first ones of the first edition."""
    found = answer(Depth(3, 92.0, "open", 4.0), Depth(9, 95.0, "open", 1.3), recommended=1)
    found = replace(found, depths=found.depths.assign(val_images=images))
    assert "validation images of unknown number and 3 seeds can show" in sentences.headline(found)
    text = sentences.next_run(found, {"command": COMMAND})
    assert text.startswith(
        "No row says how many validation images there were, so no run is advised; with a tolerance of"
    )
    assert not [note for note in notes(found) if "less than one image" in note]
