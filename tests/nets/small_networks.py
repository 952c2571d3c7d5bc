"""Small networks, and what happens to their tensors."""

from __future__ import annotations

import torch
from torch import nn

from raysweep.nets.cut import cut
from raysweep.nets.layers import select
from raysweep.nets.scratch import SmallCnn

BATCH = 5
"""Neither of tracing.PROBES."""


def images(size=32, batch=BATCH):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def lively(network):
    """Random batch-norm statistics and affine parameters: at their defaults much would go unnoticed."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return network.eval()


def cut_at(network, at, head, size=32):
    trained = select(network, at, head)
    return cut(network, trained, size), trained


def names(trained):
    return [name for layer in trained for name in layer.parameters]


def snapshot(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module, before):
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


class Net(nn.Module):
    """Frozen `conv`, then whatever `between` does, then the trainable `fc`."""

    def __init__(self, between, features, channels=2):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, padding=1)
        self.between = between
        self.fc = nn.Linear(features, 4)

    def forward(self, x):
        return self.fc(self.between(self.conv(x)).flatten(1))


class InPlace(nn.Module):
    """`conv` and `body` are frozen; what `change` does to the body's output, perhaps in place, is not."""

    def __init__(self, change):
        super().__init__()
        self.conv, self.body = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 2, 1)
        self.branch, self.dropout = nn.Conv2d(2, 2, 1), nn.Dropout(0.5, inplace=True)
        self.fc = nn.Linear(2 * 8 * 8, 4)
        self.change = change

    def forward(self, x):
        x = self.body(self.conv(x))
        return self.fc(self.change(self, x).flatten(1))


class Untraceable(SmallCnn):
    def forward(self, x):
        if x.sum() > 0:  # control flow on values
            x = x + 1
        return super().forward(x)
