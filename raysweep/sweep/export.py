"""The final model as files that anyone can load: safetensors and JSON, nothing pickled.

classify = raysweep.sweep.export.load("runs/quickstart-.../final/recommended")
print(classify(["a.png", "b.png"]))
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from ..data.preparation import Preparation
from ..files import write_text
from ..nets import backbones
from ..nets.heads import output_names
from ..recipe import Statistics, Trial, renewed
from ..train.checkpoint import write_tensors

WEIGHTS, ABOUT = "model.safetensors", "model.json"


@dataclass(frozen=True)
class Classifier:
    """A trained network with everything it needs to name the class of an image."""

    network: nn.Module
    """(batch, 3, image_size, image_size) normalised → (batch, classes or more); in eval mode."""
    class_names: tuple[str, ...]
    preparation: Preparation

    def __call__(self, images: Sequence[str | Path | Image.Image]) -> list[tuple[str, float]]:
        """The likeliest class and its probability, for each image file or PIL image.

        It answers as the test predictions do: a kept classifier has more outputs than the data has
        classes, and may say one of these (`output 700`).
        """
        pixels = torch.stack([torch.from_numpy(self.decode(image)) for image in images])
        return [best for (best,) in self.likeliest(pixels, 1)]

    def decode(self, image: str | Path | Image.Image) -> np.ndarray:
        """An image file or PIL image as the data set would store it: (3, height, width) uint8."""
        if isinstance(image, Image.Image):
            return self.preparation.decode(image)
        with Image.open(image) as opened:
            return self.preparation.decode(opened)

    @torch.no_grad()
    def probabilities(self, pixels: Tensor) -> Tensor:
        """(batch, outputs) for stored images, (batch, 3, height, width) uint8."""
        return self.network(self.preparation(pixels)).softmax(1)

    def likeliest(self, pixels: Tensor, most: int) -> list[list[tuple[str, float]]]:
        """The likeliest classes of each stored image with their probabilities, the likeliest first."""
        found = self.probabilities(pixels)
        names = output_names(self.class_names, found.shape[1])
        best = found.topk(min(most, found.shape[1]), dim=1)
        return [
            [(names[index], value) for value, index in zip(values, indices, strict=True)]
            for values, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]


def save(folder: Path, network: nn.Module, trial: Trial, class_names: Sequence[str], preparation: Preparation) -> None:
    """Write the network's tensors and what is needed to use them."""
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    write_tensors(folder / WEIGHTS, state)
    about: dict[str, Any] = {
        "trial": trial.model_dump(mode="json"),
        "class_names": list(class_names),
        "stored_size": list(preparation.stored),
        "image_size": preparation.image_size,
        "normalize": preparation.statistics.model_dump(mode="json"),
        "value_range": preparation.value_range,
    }
    write_text(folder / ABOUT, json.dumps(about, indent=2))


def load(folder: str | Path) -> Classifier:
    """Load what `save` wrote; needs no network."""
    about = json.loads((Path(folder) / ABOUT).read_text(encoding="utf-8"))
    trial = Trial.model_validate(renewed(about["trial"]))
    size, classes = about["image_size"], len(about["class_names"])
    network = backbones.build(trial.backbone, trial.model, classes, 0, size, load=False).network
    network.load_state_dict(load_file(Path(folder) / WEIGHTS))
    height, width = about.get("stored_size", (size, size))  # the first edition did not say
    value_range = about.get("value_range")  # the same: it took images to fill 8 or 16 bits
    preparation = Preparation(
        (height, width), size, Statistics.model_validate(about["normalize"]), value_range and tuple(value_range)
    )
    return Classifier(network.eval(), tuple(about["class_names"]), preparation)
