"""Which images train, choose and test."""

import numpy as np
import pytest

from raysweep.data.dataset import check, load
from raysweep.data.splits import split
from raysweep.recipe import Data, RecipeError


def rows_of(data):
    loaded = load(data)
    return {part: set(getattr(loaded, part).rows.tolist()) for part in ("train", "val", "test")}


def per_class(split):
    return np.bincount(split.labels).tolist()


def test_splits_are_disjoint_and_together_everything():
    rows = rows_of(Data(dataset="digits"))
    assert rows["train"] | rows["val"] | rows["test"] == set(range(1797))
    assert sum(map(len, rows.values())) == 1797


def test_a_long_tail_by_hand():
    """Of 100, 100 and 30 training images stay 100, 100 / 2 and 100 / 4."""
    labels, counts = np.repeat([0, 1, 2], [100, 100, 30]), {"train": 230, "val": 0, "test": 0}
    rows = split(labels, counts, Data(imbalance=4.0))
    assert np.bincount(labels[rows["train"]]).tolist() == [100, 50, 25]
    assert rows["train"].tolist() == sorted(set(rows["train"].tolist()))
    other = split(labels, counts, Data(imbalance=4.0, split_seed=1))
    assert other["train"].tolist() != rows["train"].tolist()
    assert np.bincount(labels[split(labels, counts, Data(imbalance=1000.0))["train"]]).tolist() == [100, 3, 1]


def test_a_long_tail_leaves_val_and_test_as_they_are():
    whole, thin = rows_of(Data()), rows_of(Data(imbalance=50.0))
    assert (thin["val"], thin["test"]) == (whole["val"], whole["test"])
    assert thin["train"] < whole["train"]


def test_splits_follow_the_seed_alone():
    assert rows_of(Data(split_seed=1)) == rows_of(Data(split_seed=1))
    assert rows_of(Data(split_seed=1)) != rows_of(Data(split_seed=2))


def test_split_is_the_same_on_every_machine():
    """Worked once and written down: results are compared across machines and years."""
    assert load(Data(dataset="fake", limit=20)).val.rows.tolist() == [
        1,
        63,
        160,
        259,
        345,
        377,
        398,
        416,
        452,
        504,
    ]


def test_test_split_does_not_move_with_val_fraction():
    few, many = rows_of(Data(val_fraction=0.1)), rows_of(Data(val_fraction=0.5))
    assert few["test"] == many["test"]
    assert len(few["val"]) < len(many["val"])


def test_splits_are_stratified():
    loaded = load(Data(dataset="digits"))
    whole = np.bincount(np.concatenate([loaded.train.labels, loaded.val.labels, loaded.test.labels]))
    for part, share in ((loaded.test, 0.2), (loaded.val, 0.16), (loaded.train, 0.64)):
        assert np.abs(per_class(part) - share * whole).max() <= 2


@pytest.mark.parametrize(
    ("counts", "train", "val", "test"),
    [
        ([3, 3], [1, 1], [1, 1], [1, 1]),
        ([2, 30], [1, 20], [1, 4], [0, 6]),
        ([1, 40], [1, 25], [0, 7], [0, 8]),
    ],
)
def test_rare_classes_reach_train_then_val_then_test(counts, train, val, test):
    labels = np.repeat(np.arange(len(counts)), counts)
    rows = split(labels, {"train": len(labels)}, Data(val_fraction=0.2))
    got = [np.bincount(labels[rows[part]], minlength=2).tolist() for part in ("train", "val", "test")]
    assert got == [train, val, test]


@pytest.mark.parametrize("fraction", [0.01, 0.33, 0.5, 0.99])
def test_every_fraction_leaves_each_class_in_each_split(fraction):
    labels = np.repeat(np.arange(7), [3, 4, 5, 10, 50, 100, 333])
    rows = split(labels, {"train": len(labels)}, Data(val_fraction=fraction, test_fraction=fraction))
    assert all(len(set(labels[rows[part]])) == 7 for part in rows)
    assert sum(map(len, rows.values())) == len(labels) == len(set(np.concatenate(list(rows.values()))))


def test_limit_is_exact_stratified_and_shrinks_the_rest():
    loaded = load(Data(dataset="digits", limit=115))
    assert (len(loaded.train), len(loaded.val), len(loaded.test)) == (115, 29, 36)
    assert min(per_class(loaded.train)) >= 11


def test_limit_holds_though_classes_are_rare():
    labels = np.repeat(np.arange(5), [1000, 10, 10, 10, 10])
    rows = split(labels, {"train": len(labels)}, Data(limit=6))
    assert len(rows["train"]) == 6
    assert set(labels[rows["train"]]) == set(range(5))


def test_limit_below_the_number_of_classes_is_refused():
    with pytest.raises(
        RecipeError, match=r"data.limit=9 is fewer images than the 10 classes of digits; give at least 10"
    ):
        check(Data(dataset="digits", limit=9))
