"""Networks and their weights by name: what torchvision, timm and `raysweep.nets.scratch` have.

Torchvision's classification models and timm's models are known by their own names;
where both have one, torchvision's is meant and `timm/NAME` reaches the other. Weights
other than the library's default ones are named as the library does: IMAGENET1K_V1 of
torchvision's resnet50, the tag a1_in1k of timm/resnet50. Nothing here reads a tensor.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from torch import nn

from ..recipe import Model, RecipeError, Statistics, is_weights_file, near
from .scratch import SCRATCH

IMAGENET = Statistics(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
UNIT = Statistics(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
IMAGENET_CLASSES = 1000
USUAL_SIZE = 224
"""Side in pixels of the images that torchvision's networks are made for."""
DEFAULTS = ("pretrained", "none")
"""Values of `model.weights` that name no weights."""


def check(name: str) -> None:
    """Raise RecipeError with near matches unless `name` is a known backbone."""
    if name in SCRATCH or is_torchvision(name):
        return
    import timm

    plain, _, tag = _timm_name(name).partition(".")
    if not timm.is_model(plain):
        known = [*SCRATCH, *_torchvision_names(), *timm.list_models()]
        raise RecipeError(
            f"grid.backbone={name} is not a known network; {near(name, known)} (any torchvision or timm model)"
        )
    if tag and not _timm_config(name):
        raise RecipeError(f"grid.backbone={name}: timm has no weights {tag} of {plain}; {near(tag, _tags(plain))}")


def check_weights(name: str, model: Model) -> None:
    """Raise RecipeError unless the backbone has the weights and classifier that are asked for; fetches nothing."""
    check(name)
    weights = model.weights
    if name in SCRATCH and model.head.kind in ("keep", "stacked"):
        raise RecipeError(
            f"model.head.kind={model.head.kind}: {name} has no pretrained classifier; set head: linear beside it"
        )
    if weights == "none":
        return
    if is_weights_file(weights):
        if not Path(weights).is_file():
            raise RecipeError(
                f"model.weights={weights}: there is no such file; give a .pth or .safetensors file, pretrained or none"
            )
    elif name in SCRATCH:
        raise RecipeError(f"model.weights={weights}: {name} has no pretrained weights; set weights: none beside it")
    else:
        _check_name(name, weights)


def create(name: str, weights: str, image_size: int | None = None) -> nn.Module:
    """The architecture with random values and as many outputs as the weights' own classifier has.

    One of timm's can be built for images of `image_size` pixels (see `nets.sizes`).
    """
    if name in SCRATCH:
        return SCRATCH[name](IMAGENET_CLASSES)
    if is_torchvision(name):
        import torchvision

        # the weights of both expect images normalised in another way than ImageNet's: the network converts them
        inception = {"aux_logits": False, "init_weights": True, "transform_input": True}
        return torchvision.models.get_model(name, **(inception if name in ("googlenet", "inception_v3") else {}))
    import timm

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        more: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
        return timm.create_model(tagged(name, weights), **more)


def has_fixed_size(name: str, weights: str) -> bool:
    """Whether timm says that the network takes images of the one size that it is built for."""
    found = None if name in SCRATCH or is_torchvision(name) else _timm_config(name, weights)
    return bool(found and found.fixed_input_size)


def own_size(name: str, weights: str) -> int:
    """Side in pixels of the images that the library's network is made for."""
    found = None if name in SCRATCH or is_torchvision(name) else _timm_config(name, weights)
    return found.input_size[-1] if found else USUAL_SIZE


def statistics(name: str, weights: str) -> Statistics:
    """Channel statistics of the images that the weights were trained on; of a file, those of the default weights."""
    if name in SCRATCH:
        return UNIT
    found = torchvision_weights(name, weights).transforms() if is_torchvision(name) else _timm_config(name, weights)
    if found is None:
        return IMAGENET
    return Statistics(mean=tuple(found.mean), std=tuple(found.std))


def is_torchvision(name: str) -> bool:
    """Whether the backbone is one of torchvision's."""
    return name in _torchvision_names()


def torchvision_weights(name: str, weights: str) -> Any:
    """The member of torchvision's enumeration that `weights` names; the default where it names none."""
    import torchvision

    known = torchvision.models.get_model_weights(name)
    return known.DEFAULT if weights in DEFAULTS or is_weights_file(weights) else known[weights.upper()]


def tagged(name: str, weights: str) -> str:
    """What timm calls the backbone with these weights."""
    own = _timm_name(name)
    return own if weights in DEFAULTS or is_weights_file(weights) else f"{own.partition('.')[0]}.{weights.lower()}"


def _check_name(name: str, weights: str) -> None:
    """As `check_weights`, of weights that a library names."""
    plain, _, tag = _timm_name(name).partition(".")
    if is_torchvision(name):
        import torchvision

        known = [member.name for member in torchvision.models.get_model_weights(name)]
        if weights not in DEFAULTS and weights.upper() not in known:
            also = f"; timm's tags go with backbone timm/{plain}" if weights.lower() in _tags(plain) else ""
            raise RecipeError(f"model.weights={weights}: torchvision's {name} has {', '.join(known)}{also}")
    elif weights not in DEFAULTS and weights.lower() not in (known := _tags(plain)):
        raise RecipeError(f"model.weights={weights}: timm has no such weights of {plain}; {near(weights, known)}")
    elif weights not in DEFAULTS and tag and tag != weights.lower():
        raise RecipeError(
            f"model.weights={weights} and grid.backbone={name} name two sets of weights; leave one of them out"
        )
    elif not getattr(_timm_config(name, weights), "has_weights", False):
        raise RecipeError(f"model.weights={weights}: timm has no weights of {name}; set model.weights=none or a file")


def _torchvision_names() -> list[str]:
    import torchvision

    return torchvision.models.list_models(module=torchvision.models)


def _timm_name(name: str) -> str:
    return name.removeprefix("timm/")


def _timm_config(name: str, weights: str = "pretrained") -> Any:
    """timm's description of the weights; None where it has none."""
    from timm.models import get_pretrained_cfg

    try:
        return get_pretrained_cfg(tagged(name, weights))
    except RuntimeError:  # no such tag
        return None


def _tags(plain: str) -> list[str]:
    """timm's names of the weights of an architecture."""
    import timm

    split = [known.partition(".") for known in timm.list_pretrained(f"{plain}*")]
    return [tag for architecture, _, tag in split if architecture == plain and tag]
