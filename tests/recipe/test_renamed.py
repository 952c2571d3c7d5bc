"""Keys of earlier versions: refused with what to write, understood in what a run wrote down."""

import pytest

from raysweep.recipe import RecipeError, dump, load, renewed, yaml_core
from raysweep.recipe.renamed import now_called


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "train.autocast=bfloat16",
            "train.autocast is not a key of a recipe; it is now train.precision: write train.precision=bfloat16",
        ),
        (
            "train.autocast=none",
            "train.autocast is not a key of a recipe; it is now train.precision: write train.precision=float32",
        ),
        (
            "grid.autocast=[none, float16]",
            "grid.autocast is not a key of a recipe; it is now grid.precision: write grid.precision=[float32,float16]",
        ),
    ],
)
def test_the_former_key_is_refused_with_the_present_one(override, sentence):
    with pytest.raises(RecipeError) as found:
        load(None, [override])
    assert found.value.problems[0] == sentence


@pytest.mark.parametrize("path", ["data.autocast", "train.precision", "train.phases.0.autocast.x", "autocast"])
def test_other_keys_are_no_former_ones(path):
    assert now_called(path, "none") == ""


def test_the_recipe_of_a_run_of_an_earlier_version(tmp_path):
    """As it stands in recipe.yaml, beside versions and the like."""
    tree = dump(load(None, ["grid=[{depth: 1, precision: [float32, float16]}, {depth: 3}]"]))
    expected = load(None, ["grid=[{depth: 1, precision: [float32, float16]}, {depth: 3}]"])
    tree["train"]["autocast"] = "none"
    del tree["train"]["precision"], tree["grid"][0]["precision"]
    tree["grid"][0]["autocast"] = ["none", "float16"]
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml_core.dumps({"recipe": tree, "versions": {}}))
    assert load(str(path)) == expected


@pytest.mark.parametrize(
    "record",
    [{}, {"train": None}, {"train": {"epochs": 3}}, {"grid": [None, {"lr": [1]}]}, {"grid": {"lr": 1}, "train": []}],
)
def test_what_has_no_former_key_is_as_it_was(record):
    assert renewed(record) == record


def test_a_trial_of_an_earlier_version():
    assert renewed({"train": {"autocast": "bfloat16", "epochs": 2}, "lr": 1}) == {
        "train": {"epochs": 2, "precision": "bfloat16"},
        "lr": 1,
    }
