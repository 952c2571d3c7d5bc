import pytest

from raysweep.recipe import Head, Recipe


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
