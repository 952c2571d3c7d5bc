import pytest

from raysweep.recipe import Asha, Data, Final, Head, Recipe


@pytest.mark.parametrize(
    ("head", "label"),
    [
        ({}, "linear"),
        ({"kind": "stacked"}, "stacked"),
        ({"kind": "mlp"}, "mlp 256"),
        ({"kind": "mlp", "sizes": (8, 4), "dropout": 0.5, "activation": "none"}, "mlp 8-4 activation=none dropout=0.5"),
    ],
)
def test_label_of_a_head(head, label):
    assert Head(**head).label == label


def test_a_head_holds_only_what_applies():
    assert Head().model_dump() == {"kind": "linear"}
    assert set(Head(kind="mlp").model_dump()) == {"kind", "sizes", "activation", "dropout", "hidden_dropout"}


def test_recipe_is_immutable():
    with pytest.raises(ValueError, match="frozen"):
        Recipe().train.epochs = 3


def test_what_a_recipe_asks_unless_it_says_otherwise():
    recipe = Recipe()
    assert (recipe.objective, recipe.tolerance, recipe.confidence) == ("accuracy", 0.5, 0.9)
    assert (recipe.asha.guard, recipe.asha.compare_within) == (3.0, ("backbone", "depth", "seed"))
    assert recipe.final == Final(enabled=True, of="recommended", workers=None)


@pytest.mark.parametrize(
    ("asha", "guard", "within"),
    [
        ({}, 3.0, ("backbone", "depth", "seed")),
        ({"grace_epochs": 5}, 3.0, ("backbone", "depth", "seed")),
        ({"guard": None}, None, ("backbone", "depth", "seed")),
        ({"guard": 2}, 2.0, ("backbone", "depth", "seed")),
        ({"compare_within": ["backbone", "depth", "seed"]}, 3.0, ("backbone", "depth", "seed")),
        ({"compare_within": ["depth"]}, None, ("depth",)),
        ({"compare_within": "depth"}, None, ("depth",)),
        ({"compare_within": []}, None, ()),
        ({"compare_within": ["seed", "depth", "backbone"]}, None, ("seed", "depth", "backbone")),
        ({"guard": None, "compare_within": ["depth"]}, None, ("depth",)),
    ],
)
def test_whoever_says_what_competes_with_what_asks_for_plain_asha(asha, guard, within):
    found = Asha.model_validate(asha)
    assert (found.guard, found.compare_within) == (guard, within)
    assert Asha.model_validate(found.model_dump(mode="json")) == found


def test_the_guard_and_what_competes_with_what_exclude_each_other():
    with pytest.raises(ValueError, match=r"compare_within=\['depth'\] is of plain ASHA; set asha.guard=null"):
        Asha(guard=3.0, compare_within=("depth",))


@pytest.mark.parametrize("values", [(1, 1), (2, 1), (0, float("inf")), (0,), ("a", "b"), (False, True)])
def test_a_range_of_values_ascends(values):
    with pytest.raises(ValueError, match="value_range"):
        Data(value_range=values)
    assert Data(value_range=[-1000, 3000.5]).value_range == (-1000, 3000.5)
