"""Axes multiplied out into trials, and what a trial is named."""

import subprocess
import sys

import pytest

from raysweep.recipe import Block, Head, Recipe, Statistics


def test_the_last_axis_is_fastest():
    block = {"backbone": ["a", "b"], "depth": [1, "all"], "lr": 0.1, "seed": [0, 1], "epochs": [3]}
    got = [(t.backbone, t.depth, t.seed) for t in Recipe.model_validate({"grid": block}).trials()]
    assert got == [(b, d, s) for b in "ab" for d in (1, "all") for s in (0, 1)]


def test_an_extra_axis_sets_its_field():
    recipe = Recipe.model_validate({"grid": {"image_size": [32, 64], "optimizer": "sgd", "weights": "none"}})
    got = [(t.data.image_size, t.train.optimizer, t.model.weights) for t in recipe.trials()]
    assert got == [(32, "sgd", "none"), (64, "sgd", "none")]


def test_statistics_are_one_value_of_an_axis():
    grid = {"normalize": {"mean": [0, 0, 0], "std": [1, 1, 2]}}
    (one,) = Recipe.model_validate({"grid": grid}).trials()
    assert one.data.normalize == Statistics(mean=(0, 0, 0), std=(1, 1, 2))
    two = Recipe.model_validate({"grid": {"normalize": ["none", grid["normalize"]]}}).trials()
    assert [trial.data.normalize for trial in two] == ["none", one.data.normalize]


def test_a_head_is_one_value_of_an_axis():
    grid = {"head": ["keep", {"kind": "mlp", "sizes": [8, 4]}, {"kind": "linear"}]}
    heads = [trial.model.head for trial in Recipe.model_validate({"grid": grid}).trials()]
    assert heads == [Head(kind="keep"), Head(kind="mlp", sizes=(8, 4)), Head()]


def test_each_configuration_comes_once():
    grid = [{"depth": [1, "1", 2]}, {"depth": [2, 3], "epochs": Recipe().train.epochs}]
    assert [trial.depth for trial in Recipe.model_validate({"grid": grid}).trials()] == [1, 2, 3]


def test_block_is_usable_from_python():
    assert Recipe(grid=(Block(depth=(2,)),)).trials()[0].depth == 2


def test_name_is_the_hash_of_the_configuration():
    one, same = (Recipe.model_validate({"grid": {"lr": lr}}).trials()[0] for lr in (1, 1.0))
    assert one.name == same.name
    assert len(one.name) == 12
    assert set(one.name) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    "change",
    [
        {"grid": {"backbone": "resnet18"}},
        {"grid": {"depth": 2}},
        {"grid": {"depth": "all"}},
        {"grid": {"lr": 0.002}},
        {"grid": {"seed": 1}},
        {"grid": {"batch_norm": "training"}},
        {"data": {"dataset": "fake"}},
        {"data": {"image_size": 32}},
        {"data": {"augment": ["hflip"]}},
        {"data": {"split_seed": 1}},
        {"model": {"weights": "none"}},
        {"model": {"head": "keep"}},
        {"model": {"head": {"kind": "mlp"}}},
        {"train": {"epochs": 11}},
        {"train": {"momentum": 0.8}},
    ],
)
def test_name_changes_with_every_field(change):
    assert Recipe.model_validate(change).trials()[0].name != Recipe().trials()[0].name


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"asha": None},
        {"grid": {"lr": [0.001, 0.1]}},
        {"objective": "loss", "tolerance": 1.0, "confidence": 0.8},
        {"final": {"of": "all"}},
    ],
)
def test_name_does_not_change_with_what_other_trials_do(change):
    assert Recipe.model_validate(change).trials()[0].name == Recipe().trials()[0].name


def test_name_is_the_same_in_every_process():
    """Names identify trials across runs and machines, so they may not depend on Python's own hashing."""
    code = "from raysweep.recipe import Recipe; print(Recipe().trials()[0].name)"
    names = {
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True, env={"PYTHONHASHSEED": seed}
        ).stdout.strip()
        for seed in "12"
    }
    assert names == {Recipe().trials()[0].name}


def test_phases_in_words():
    grid = {"backbone": "small_cnn", "depth": "all"}
    phases = [{"depth": "head", "epochs": 1, "lr": 1e-3}, {"depth": ["stem", "head"]}, {"optimizer": "sgd"}]
    (trial,) = Recipe.model_validate({"grid": grid, "train": {"epochs": 4, "phases": phases}}).trials()
    assert trial.phases_label == (
        "head for 1 epoch (lr=0.001), then stem+head for 4 epochs, then all for 4 epochs (optimizer=sgd)"
    )
    (plain,) = Recipe.model_validate({"grid": grid}).trials()
    assert plain.phases_label == ""
