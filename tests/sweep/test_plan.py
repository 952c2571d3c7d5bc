import pytest

from raysweep.recipe import Recipe, RecipeError, load
from raysweep.sweep.plan import extra_axes, plan

pytestmark = pytest.mark.usefixtures("no_network")


def recipe(grid, **more):
    return Recipe.model_validate({"data": {"dataset": "cifar10"}, "grid": grid, **more})


def planned_one(sweep):
    """What is known of a sweep's one trial before it starts."""
    (planned,) = plan(sweep)
    assert planned.name == planned.configuration.trial == planned.trial.name
    return planned.configuration


def problems(grid, **more):
    with pytest.raises(RecipeError) as caught:
        plan(recipe(grid, **more))
    return caught.value.problems


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
    planned = planned_one(recipe({"backbone": "resnet50", "depth": [at]}))
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
    columns = planned_one(sweep).columns()
    expected = {
        "trial": sweep.trials()[0].name,
        "phases": "",
        "keep": "last",
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
    assert columns.keys() - expected.keys() == {"schema_version"}


def test_further_axes_are_those_that_a_block_sets():
    grid = [{"optimizer": "sgd"}, {"weights": "none", "optimizer": "adam"}, {}]
    assert extra_axes(recipe(grid)) == ["optimizer", "weights"]
    assert extra_axes(recipe({})) == []


def test_phases_as_an_axis_are_told_in_words():
    phases = [[], [{"depth": 1, "epochs": 2}, {}]]
    sweep = recipe({"backbone": "small_cnn", "depth": "all", "weights": "none", "phases": phases})
    labels = [one.configuration.axes["phases"] for one in plan(sweep)]
    assert labels == [None, "1 for 2 epochs, then all for 10 epochs"]


def test_quickstart():
    planned = [one.configuration for one in plan(load())]
    assert len(planned) == len({one.trial for one in planned}) == 5 * 2 * 2 + 2 * 2
    lite0 = [one for one in planned if one.backbone == "tf_efficientnet_lite0" and one.depth == 1]
    assert {(one.trainable_parameters, one.trainable_tensors) for one in lite0} == {(1280 * 10 + 10, 2)}
    (cnn, *_) = [one for one in planned if one.backbone == "small_cnn"]
    assert cnn.trainable_parameters == cnn.total_parameters == 24_346


def test_problems_of_several_trials_are_told_at_once():
    grid = {"backbone": ["small_cnn", "resnet81", "resnet18"], "depth": [1, 99, "layer9"], "lr": [0.1, 0.2]}
    with pytest.raises(RecipeError) as caught:
        plan(recipe(grid, model={"weights": "none"}))
    found = caught.value.problems
    assert len(found) == len(set(found))
    for text in (
        "grid.depth=99 is deeper than small_cnn, which has 7 layers",
        "grid.depth=99 is deeper than resnet18, which has 38 layers",
        "grid.depth=layer9 is no module of small_cnn",
        "grid.depth=layer9 is no module of resnet18",
        "resnet81 is not",
    ):
        assert any(text in problem for problem in found), text


def test_a_depth_too_deep_names_the_backbone():
    (problem,) = problems({"backbone": ["resnet50", "resnet18"], "depth": [90]})
    assert problem == (
        "grid.depth=90 is deeper than resnet18, which has 38 layers (conv1 ... fc); "
        'choose 1 (classifier alone) to 38, or "all"'
    )


@pytest.mark.parametrize(
    ("grid", "problem"),
    [
        ({"weights": "pretrained"}, "model.weights=pretrained: small_cnn has no pretrained weights; set weights: none"),
        ({"weights": "a1_in1k"}, "model.weights=a1_in1k: small_cnn has no pretrained weights; set weights: none"),
        ({"weights": "nowhere.pth"}, "model.weights=nowhere.pth: there is no such file; give a .pth or"),
        ({"weights": "none", "head": "keep"}, "model.head.kind=keep: small_cnn has no pretrained classifier"),
        (
            {"backbone": "cnn_1m", "weights": "none", "image_size": 28},
            "data.image_size: cnn_1m takes images of 30 ",
        ),
        ({"backbone": "timm/resnet50", "weights": "a9"}, "model.weights=a9: timm has no such weights of resnet50;"),
        (
            {"backbone": "resnet50.a9"},
            "grid.backbone=resnet50.a9: timm has no weights a9 of resnet50; choose one of a1",
        ),
        ({"backbone": "squeezenet1_1", "head": "stacked"}, "model.head.kind=stacked: the classifier of squeezenet1_1"),
    ],
)
def test_what_a_backbone_does_not_have(grid, problem):
    (found,) = problems({"backbone": "small_cnn", "depth": ["head"], **grid})
    assert found.startswith(problem)


def test_more_classes_than_a_kept_classifier_has():
    (problem,) = problems({"backbone": "resnet18", "head": "keep"}, data={"dataset": "fake:1001"})
    assert problem.startswith("model.head.kind=keep: the classifier of resnet18 has 1000 outputs, fewer than the 1001")


# ---- heads ----


def planned_head(backbone, head, at="head"):
    return planned_one(recipe({"backbone": backbone, "head": head, "depth": [at]}, data={"dataset": "cifar100"}))


@pytest.mark.parametrize(
    ("backbone", "head", "tensors", "trainable", "total", "first"),
    [
        ("resnet18", {"kind": "mlp"}, 4, 157_028, 11_333_540, "fc.0"),
        ("resnet18", {"kind": "mlp", "dropout": 0.5}, 4, 157_028, 11_333_540, "fc.1"),
        (
            "resnet50",
            {"kind": "mlp", "sizes": [1024, 512, 256, 128], "activation": "none"},
            10, 2_800_100, 25_557_032 - 2_049_000 + 2_800_100, "fc.0",
        ),
        ("resnet50", "keep", 2, 2_049_000, 25_557_032, "fc"),
        ("resnet50", "stacked", 2, 1000 * 100 + 100, 25_557_032 + 100_100, "fc.2"),
        ("mobilenet_v3_small", {"kind": "mlp", "sizes": 8}, 4, 1024 * 8 + 8 + 8 * 100 + 100, None, "classifier.3.0"),
    ],
)  # fmt: skip
def test_parameters_of_a_head(backbone, head, tensors, trainable, total, first):
    """resnet18's mlp: (512 × 256 + 256) + (256 × 100 + 100) beside 11,689,512 − 513,000 of the rest."""
    planned = planned_head(backbone, head)
    assert (planned.trainable_tensors, planned.trainable_parameters, planned.first_trainable) == (
        tensors, trainable, first,
    )  # fmt: skip
    assert total in (planned.total_parameters, None)


def test_depth_counts_a_head_of_several_layers():
    assert planned_head("resnet18", "mlp", at=3).first_trainable == "layer4.1.bn2"
    assert planned_head("resnet18", "stacked", at=2).first_trainable == "fc.0"
    with pytest.raises(RecipeError, match="untrained at random values; choose 'head' or at least 2"):
        planned_head("resnet18", "mlp", at=1)
    assert planned_head("resnet18", "keep", at=1).trainable_parameters == 513_000


def test_columns_tell_heads_apart():
    sweep = recipe({"backbone": "resnet18", "depth": "head", "head": ["keep", "mlp", {"kind": "mlp", "sizes": [8, 4]}]})
    planned = [one.configuration for one in plan(sweep)]
    assert [one.head for one in planned] == ["keep", "mlp 256", "mlp 8-4"]
    assert [one.axes for one in planned] == [{"head": one.head} for one in planned]


@pytest.mark.parametrize(("name", "classes", "parameters"), [("cnn_846k", 100, 846_308), ("cnn_1m", 10, 1_025_546)])
def test_published_cnns(name, classes, parameters):
    sweep = recipe({"backbone": name, "depth": "all", "weights": "none"}, data={"dataset": f"cifar{classes}"})
    planned = planned_one(sweep)
    assert planned.trainable_parameters == planned.total_parameters == parameters


def test_unknown_data_set():
    with pytest.raises(RecipeError, match=r"data\.dataset=cifar11.*cifar10"):
        plan(recipe({}, data={"dataset": "cifar11"}))


@pytest.mark.parametrize(
    ("grid", "train", "said"),
    [
        ({"depth": ["all"]}, {}, "has batch norm in training mode (such as stage3.1), which needs 2 images or more; "
         "set train.batch_size=2 or more, or a depth that trains no batch norm"),
        ({"depth": [1], "batch_norm": "training"}, {}, "or model.batch_norm=frozen"),
        ({"depth": [1]}, {"phases": [{}, {"depth": "stage3"}]}, "small_cnn at depth stage3 has batch norm"),
        ({"depth": [1]}, {}, None),
        ({"depth": [1], "batch_norm": "recalibrated"}, {}, None),
    ],
)  # fmt: skip
def test_batches_of_one_image(grid, train, said):
    more = {"train": {"batch_size": 1, **train}, "model": {"weights": "none"}}
    if said is None:
        plan(recipe({"backbone": "small_cnn", **grid}, **more))
    else:
        (problem,) = problems({"backbone": "small_cnn", **grid}, **more)
        assert problem.startswith("train.batch_size=1: small_cnn at depth ")
        assert said in problem


def test_a_weights_file_is_looked_into(tmp_path):
    import torch

    torch.save({"model": {"fc.weight": torch.zeros(3)}}, tmp_path / "mine.pth")
    (problem,) = problems({"backbone": "small_cnn"}, model={"weights": str(tmp_path / "mine.pth")})
    assert "does not fit small_cnn: 15 tensors are missing" in problem
