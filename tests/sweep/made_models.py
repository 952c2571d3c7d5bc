"""Small final models on disk, of every head, whose answers differ from image to image."""

from __future__ import annotations

from pathlib import Path

import torch

from raysweep.data.preparation import Preparation
from raysweep.nets import backbones
from raysweep.recipe import Recipe, Statistics
from raysweep.sweep import export

NAMES = ("ant", "bee", "été")
HEADS = (
    ({"kind": "linear"}, "none"),
    ({"kind": "mlp", "sizes": [6, 5], "dropout": 0.5}, "pretrained"),
    ({"kind": "keep"}, "IMAGENET1K_V1"),
    ({"kind": "stacked"}, "nowhere.pth"),
)
"""Heads, and weights that a recipe may have with them."""


def write_model(folder: Path, head=HEADS[0], stored=(20, 16), side=24, value_range=None, seed=0) -> Path:
    """Write a model with random values, none of which is neutral, as a final fit leaves it."""
    kind, weights = head
    grid = {"backbone": "small_cnn", "depth": "head", "head": kind, "weights": weights}
    (trial,) = Recipe.model_validate({"grid": grid}).trials()
    network = backbones.build(trial.backbone, trial.model, len(NAMES), seed=seed, load=False).network.eval()
    torch.manual_seed(seed)
    for name, value in network.state_dict().items():
        if value.is_floating_point() and value.dim() == 1:
            value.uniform_(0.5, 1.5) if "var" in name or "weight" in name else value.normal_(std=0.1)
    _spread(network, side)
    statistics = Statistics(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    export.save(folder, network, trial, NAMES, Preparation(stored, side, statistics, value_range))
    return folder


@torch.no_grad()
def _spread(network, side):
    """Scale the last layer so that each class score varies by 2 over images of many colours, around 0."""
    last = [module for module in network.modules() if isinstance(module, torch.nn.Linear)][-1]
    scores = network((torch.rand(32, 3, 1, 1) + torch.rand(32, 3, side, side) * 0.2 - 0.2) / 0.6)
    scale = 2 / scores.std(0)
    last.bias.copy_((last.bias - scores.mean(0)) * scale)
    last.weight.mul_(scale[:, None])
