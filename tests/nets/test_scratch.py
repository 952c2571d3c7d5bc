"""Networks that are trained from scratch."""

import pytest
import torch
from torch import nn

from raysweep.nets.backbones import build
from raysweep.nets.zoo import UNIT
from raysweep.recipe import Model

NONE = Model(weights="none")


def test_parameters_of_small_cnn():
    # three bias-free 3 × 3 convolutions, their norms' weights and biases, the classifier
    expected = 9 * (3 * 16 + 16 * 32 + 32 * 64) + 2 * (16 + 32 + 64) + 64 * 10 + 10
    built = build("small_cnn", NONE, 10, seed=0)
    assert sum(value.numel() for value in built.network.parameters()) == expected == 24_346
    assert built.network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert (built.head, built.statistics, built.fresh) == (("classifier",), UNIT, True)


@pytest.mark.parametrize(
    ("name", "classes", "parameters", "larger"),
    [
        # 3 × 3 convolutions with bias, each norm's weight and bias; 512 → 256 → 100
        ("cnn_846k", 100, 9 * (3 * 16 + 16 * 32 + 32 * 64 + 64 * 128 + 128 * 512) + 3 * 752 + 131_328 + 25_700, 50),
        # 3 × 3 convolutions with bias; 256 → 512 → 10
        ("cnn_1m", 10, 9 * (3 * 128 + 128 * 256 + 256 * 256) + 640 + 131_584 + 5_130, 64),
    ],
)
def test_networks_from_scratch(name, classes, parameters, larger):
    built = build(name, NONE, classes, seed=0)
    assert sum(value.numel() for value in built.network.parameters()) == parameters
    assert parameters == {"cnn_846k": 846_308, "cnn_1m": 1_025_546}[name]
    assert (built.head, built.fresh, built.statistics) == (("classifier.2",), True, UNIT)
    for size in (32, larger):
        assert built.network(torch.zeros(2, 3, size, size)).shape == (2, classes)


def test_nothing_is_left_to_average_at_the_published_size():
    """32 pixels: five halvings; and 32 → 30 → 15 → 13 → 6 → 4 → 1 without padding."""
    for name in ("cnn_846k", "cnn_1m"):
        network = build(name, NONE, 10, seed=0).network
        stages = nn.Sequential(*[module for key, module in network.named_children() if key.startswith("stage")])
        assert stages(torch.zeros(2, 3, 32, 32)).shape[2:] == (1, 1)
