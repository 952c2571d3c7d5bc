import pytest

from raysweep.recipe import depth_label


@pytest.mark.parametrize(("depth", "label"), [(3, "3"), ("all", "all"), (("layer1", "fc"), "layer1+fc")])
def test_depth_label(depth, label):
    assert depth_label(depth) == label
