from urllib.error import URLError

import pytest

from raysweep.plan import extra_axes, plan
from raysweep.recipe import Recipe, RecipeError, load


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise URLError("a plan fetches nothing")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("torch.hub.urlopen", refuse)


def recipe(grid, **more):
    return Recipe.model_validate({"data": {"dataset": "cifar10"}, "grid": grid, **more})


FC = 2048 * 10 + 10
LAST_CONVOLUTION = 512 * 2048 + 2 * 2048
MIDDLE_CONVOLUTION = 512 * 512 * 9 + 2 * 512


@pytest.mark.parametrize(
    ("at", "tensors", "parameters", "first"),
    [
        (1, 2, FC, "fc"),
        (3, 5, FC + LAST_CONVOLUTION, "layer4.2.conv3"),
        (5, 8, FC + LAST_CONVOLUTION + MIDDLE_CONVOLUTION, "layer4.2.conv2"),
        ("all", 161, 23_528_522, "conv1"),
    ],
)
def test_counts_of_resnet50(at, tensors, parameters, first):
    """Total: torchvision's 25,557,032 without its 2,049,000 of the ImageNet classifier, with 20,490 of ours."""
    (planned,) = plan(recipe({"backbone": "resnet50", "depth": [at]}))
    assert planned.total_parameters == 25_557_032 - (2048 * 1000 + 1000) + FC == 23_528_522
    assert (planned.trainable_tensors, planned.trainable_parameters, planned.first_trainable) == (
        tensors,
        parameters,
        first,
    )
    assert planned.layers == (planned.network_layers if at == "all" else at)


def test_nothing_is_fetched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(plan(recipe({"backbone": ["resnet50", "timm/resnet18"], "depth": [1]}))) == 2
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_columns():
    sweep = recipe(
        {"backbone": "small_cnn", "depth": [["stage1", "head"]], "optimizer": ["sgd"], "weights": "none", "epochs": 3},
        data={"dataset": "cifar10", "image_size": 16},
    )
    (planned,) = plan(sweep)
    columns = planned.columns(extra_axes(sweep))
    expected = {
        "trial": sweep.trials()[0].name,
        "backbone": "small_cnn",
        "depth": ["stage1", "head"],
        "depth_label": "stage1+head",
        "layers": 3,
        "network_layers": 7,
        "lr": 0.001,
        "seed": 0,
        "trainable_tensors": 5,
        "trainable_parameters": 27 * 16 + 32 + 650,
        "total_parameters": 24_346,
        "first_trainable": "stage1.0",
        "epochs_planned": 3,
        "image_size": 16,
        "batch_norm": "frozen",
        "weights": "none",
        "head": "linear",
        "optimizer": "sgd",
        "epochs": 3,
        "axes": {"optimizer": "sgd", "weights": "none", "epochs": 3},
    }
    assert expected.items() <= columns.items()
    assert "config" not in columns


def test_quickstart():
    planned = plan(load())
    assert len(planned) == len({one.trial for one in planned}) == 5 * 2 * 2 + 2 * 2
    lite0 = [one for one in planned if one.backbone == "tf_efficientnet_lite0" and one.depth == 1]
    assert {(one.trainable_parameters, one.trainable_tensors) for one in lite0} == {(1280 * 10 + 10, 2)}
    (cnn, *_) = [one for one in planned if one.backbone == "small_cnn"]
    assert cnn.trainable_parameters == cnn.total_parameters == 24_346


def test_problems_of_several_trials_are_told_at_once():
    grid = {"backbone": ["small_cnn", "resnet81", "resnet18"], "depth": [1, 99, "layer9"], "lr": [0.1, 0.2]}
    with pytest.raises(RecipeError) as caught:
        plan(recipe(grid))
    found = caught.value.problems
    assert len(found) == len(set(found))
    for text in (
        "grid.depth=99 is deeper",
        "which has 7 layers",
        "which has 38 layers",
        "grid.depth=layer9",
        "resnet81 is not",
    ):
        assert any(text in problem for problem in found), text


@pytest.mark.xfail(strict=True, reason="reported: with several backbones the sentence does not say which one")
def test_a_depth_too_deep_names_the_backbone():
    with pytest.raises(RecipeError, match="small_cnn"):
        plan(recipe({"backbone": ["small_cnn", "resnet18"], "depth": [20]}))


@pytest.mark.xfail(strict=True, reason="reported: found when trials start, each of which fails")
def test_weights_that_do_not_exist_are_a_mistake():
    with pytest.raises(RecipeError, match="small_cnn has no pretrained weights"):
        plan(recipe({"backbone": "small_cnn", "depth": ["all"], "weights": "pretrained"}))


def test_unknown_data_set():
    with pytest.raises(RecipeError, match=r"data\.dataset=cifar11.*cifar10"):
        plan(recipe({}, data={"dataset": "cifar11"}))
