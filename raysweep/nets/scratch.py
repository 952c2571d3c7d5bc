"""Convolutional networks that are trained from scratch, as yardsticks of the pretrained ones.

Two are those of published comparisons, with the same number of parameters; both end in
an average over positions, so that they also take images larger than the 32 pixels they
were made for.
"""

from __future__ import annotations

from torch import nn


class SmallCnn(nn.Sequential):
    """Three convolutions and a classifier: 24,346 parameters with 10 classes."""

    def __init__(self, classes: int) -> None:
        def stage(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
                nn.MaxPool2d(2),
            )

        super().__init__()
        self.stage1 = stage(3, 16)
        self.stage2 = stage(16, 32)
        self.stage3 = stage(32, 64)
        self.pool = _averaged()
        self.classifier = nn.Linear(64, classes)


class Cnn846k(nn.Sequential):
    """Five convolutions with batch norm after the activation: 846,308 parameters with 100 classes."""

    def __init__(self, classes: int) -> None:
        def stage(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, padding=1),
                nn.ReLU(),
                nn.BatchNorm2d(outputs),
                nn.MaxPool2d(2, ceil_mode=True),  # at 32 pixels nothing is left over; smaller images end at 1 × 1
            )

        super().__init__()
        self.stage1 = stage(3, 16)
        self.stage2 = stage(16, 32)
        self.stage3 = stage(32, 64)
        self.stage4 = stage(64, 128)
        self.stage5 = stage(128, 512)
        self.pool = _averaged()
        self.classifier = _two_layers(512, 256, classes)


class Cnn1m(nn.Sequential):
    """Three wide convolutions without padding, with dropout: 1,025,546 parameters with 10 classes."""

    def __init__(self, classes: int) -> None:
        def stage(inputs: int, outputs: int, pool: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(inputs, outputs, 3), nn.ReLU(), nn.MaxPool2d(pool), nn.Dropout(0.3))

        super().__init__()
        self.stage1 = stage(3, 128, pool=2)
        self.stage2 = stage(128, 256, pool=2)
        self.stage3 = stage(256, 256, pool=4)
        self.pool = _averaged()
        self.classifier = _two_layers(256, 512, classes)


SCRATCH: dict[str, type[SmallCnn | Cnn846k | Cnn1m]] = {"small_cnn": SmallCnn, "cnn_846k": Cnn846k, "cnn_1m": Cnn1m}


def _averaged() -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _two_layers(inputs: int, hidden: int, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, classes))
