"""Names of data sets."""

import pytest
import torchvision.datasets

from raysweep.data.catalogue import TORCHVISION, split_of
from raysweep.data.dataset import check
from raysweep.data.folders import image_suffixes
from raysweep.recipe import Data, RecipeError


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("cifar", "data.dataset=cifar is not a data set; did you mean cifar10"),
        ("torchvision:Flowers", "no classification data set of torchvision; did you mean flowers102"),
        ("torchvision:VOCDetection", "torchvision:VOCDetection is no classification data set"),
        ("fake:many", "data.dataset=fake:many is not a data set; did you mean fake"),
        ("fake:1", "data.dataset=fake:1 has fewer than 2 classes"),
    ],
)
def test_unknown_data_sets(dataset, message):
    with pytest.raises(RecipeError, match=message):
        check(Data(dataset=dataset))


def test_names_known_to_us_are_torchvisions():
    assert set(TORCHVISION) <= set(torchvision.datasets.__all__)
    assert image_suffixes() >= set(torchvision.datasets.folder.IMG_EXTENSIONS)


@pytest.mark.parametrize("name", ["dataset", "images", "set", "train_station", "test tube", "evaluate", "", "---"])
def test_names_of_classes_are_not_those_of_splits(name):
    assert split_of(name) is None
