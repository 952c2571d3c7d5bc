"""Tensors of a checkpoint file under a network's own names.

Trainings save a network inside other things: under a prefix (`module.`, `model.`,
`backbone.`), in a dict beside the optimizer, with a loss or another head. The tensors that
are the network's are found by their names; what is not the network's is left out and said.
Files are never unpickled into objects: where one names a class, an empty stand-in takes
its place, and nothing of that class is imported or called.
"""

from __future__ import annotations

import logging
import pickle
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..recipe import RecipeError
from .sizes import resampled

State = dict[str, Tensor]
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of names that DistributedDataParallel, torch.compile and others put in, wherever they stand."""
DEEPEST = 3
"""Levels of dicts in which tensors are looked for."""
MOST_NAMED = 6
LOG = logging.getLogger(__name__)


def read(path: Path, network: nn.Module, name: str, replaced: str | None) -> State:
    """The tensors of a .pth or .safetensors file that are a network's, by its names.

    Args:
        path: the file.
        network: as `zoo.create` made it, perhaps without memory.
        name: of the backbone.
        replaced: name of the classifier, whose tensors are left out; None for none.

    Raises:
        RecipeError: the file cannot be read, its tensors do not fit, or are no finite numbers.
    """
    own = network.state_dict()
    found = [one for where, state in _states(_opened(path)) for one in _candidates(where, state, own)]
    if not found:
        raise RecipeError(
            f"model.weights={path} holds no state dict (names of tensors to tensors); "
            "save one with torch.save(model.state_dict(), ...) or as safetensors"
        )
    chosen = max(found, key=lambda one: (one.hits, not one.is_average))  # the first of equals
    fit = fitted(chosen.inside, network, name, str(path), replaced)
    if broken := [key for key, x in fit.items() if x.is_floating_point() and not bool(torch.isfinite(x).all())]:
        raise RecipeError(
            f"model.weights={path}: {len(broken)} of its {len(fit)} tensors hold NaN or infinite numbers (first: "
            f"{broken[0]}); give a checkpoint of a training that did not diverge"
        )
    _say_what_is_left(path, chosen, found, own, replaced)
    return fit


def fitted(state: State, network: nn.Module, name: str, source: str, replaced: str | None) -> State:
    """Those of the tensors that a network takes, brought to the image size that it is built for.

    Args:
        state: tensors by the network's names, perhaps with others.
        network: as `zoo.create` made it, perhaps without memory.
        name: of the backbone.
        source: what `model.weights` says.
        replaced: name of the classifier, whose tensors are left out; None for none.

    Raises:
        RecipeError: they do not fit.
    """
    misfit = _Misfit.of(state, network, replaced)
    if misfit:
        try:
            brought = resampled(network, state)
        except Exception:  # each of timm's functions raises its own where names or shapes are not what it expects
            brought = state
        if _Misfit.of(brought, network, replaced):
            raise RecipeError(f"model.weights={source} does not fit {name}: {misfit.text()}")
        state = brought
    return {key: state[key] for key in network.state_dict() if key in state and not _is_within(key, replaced)}


@dataclass(frozen=True)
class _Candidate:
    """Tensors of a file that may be the network's: those of one dict under one prefix."""

    where: str
    """Names of the dicts that lead there, with dots."""
    prefix: str
    state: State
    """All tensors of the dict."""
    hits: int
    """How many of the network's names are among those under the prefix."""

    @property
    def inside(self) -> State:
        """The tensors under the prefix, without it."""
        length = len(self.prefix)
        return {key[length:]: value for key, value in self.state.items() if key.startswith(self.prefix)}

    @property
    def is_average(self) -> bool:
        """Whether the names say a moving average of the weights."""
        return "ema" in f"{self.where}.{self.prefix}".lower()

    @property
    def title(self) -> str:
        """What a person calls it."""
        return ".".join(filter(None, (self.where, self.prefix.removesuffix("."))))


@dataclass(frozen=True)
class _Misfit:
    """Where tensors and network differ."""

    state: State
    own: dict[str, Tensor]
    missing: list[str]
    wrong: list[str]
    """Of another shape."""
    foreign: list[str]
    """Of a module that the network has, in a place where it has no tensor: another architecture's."""

    def __bool__(self) -> bool:
        return bool(self.missing or self.wrong or self.foreign)

    @classmethod
    def of(cls, state: State, network: nn.Module, replaced: str | None) -> _Misfit:
        own = network.state_dict()
        modules = {key.partition(".")[0] for key in own if "." in key}
        needed = [key for key in own if not _is_within(key, replaced)]
        missing = [key for key in needed if key not in state and not key.endswith("num_batches_tracked")]
        wrong = [key for key in needed if key in state and state[key].shape != own[key].shape]
        foreign = [
            key for key, value in state.items()
            if key not in own and key.partition(".")[0] in modules and not _is_within(key, replaced)
            and value.is_floating_point() and not key.lower().startswith("aux")
        ]  # fmt: skip
        return cls(state, own, missing, wrong, foreign)

    def text(self) -> str:
        """The differences, each with a tensor of either side."""
        parts = []
        if self.missing:
            first = self.missing[0]
            names = [key for key in self.state if key not in self.own] or list(self.state)
            theirs = f"; the file has such as {_with_shape(names[0], self.state)}" if names else ""
            parts.append(f"{len(self.missing)} tensors are missing (first: {_with_shape(first, self.own)}{theirs})")
        if self.wrong:
            first = self.wrong[0]
            shapes = f"{_with_shape(first, self.state)}, in the network {tuple(self.own[first].shape)}"
            parts.append(f"{len(self.wrong)} have another shape (first: {shapes})")
        if self.foreign:
            parts.append(f"{len(self.foreign)} are unknown (first: {_with_shape(self.foreign[0], self.state)})")
        return f"{', '.join(parts)}; give weights of the same architecture"


class _StandIn:
    """What takes the place of an object of any class that a file names."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass

    def __setitem__(self, *_: Any) -> None:
        pass


def _opened(path: Path) -> Any:
    """What a file holds: tensors, plain values, stand-ins."""
    if not path.is_file():
        raise RecipeError(
            f"model.weights={path}: there is no such file; give a .pth or .safetensors file, pretrained or none"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return _unpickled(path)
    except Exception as error:  # both libraries raise many types for a file that is not theirs
        raise RecipeError(
            f"model.weights={path} could not be read as tensors alone ({type(error).__name__}); "
            "save a state dict with torch.save(model.state_dict(), ...) or as safetensors"
        ) from None


def _unpickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # beside the tensors there are objects, such as the settings of the training
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
        if not names:
            raise
        with torch.serialization.safe_globals([(_StandIn, name) for name in names]):
            return torch.load(path, map_location="cpu", weights_only=True)


def _states(value: Any, where: str = "", level: int = 0) -> Iterator[tuple[str, State]]:
    """The dicts that hold tensors, with the names that lead to them; the outermost first."""
    if not isinstance(value, dict) or level > DEEPEST:
        return
    if tensors := {key: x for key, x in value.items() if isinstance(key, str) and isinstance(x, Tensor)}:
        yield where, tensors
    for key, inner in value.items():
        yield from _states(inner, f"{where}.{key}".lstrip("."), level + 1)


def _candidates(where: str, state: State, own: Iterable[str]) -> list[_Candidate]:
    """A candidate for each prefix that leads to a name of the network's; the whole dict where none does."""
    known = set(own)
    used = {part for key in known for part in key.split(".")}
    wrappers = [part for part in WRAPPERS if part not in used]
    plain = {".".join(part for part in key.split(".") if part not in wrappers): x for key, x in state.items()}
    hits: Counter[str] = Counter()
    for key in plain:
        parts = key.split(".")
        hits.update(".".join(parts[:at]) + "." * bool(at) for at in range(len(parts)) if ".".join(parts[at:]) in known)
    return [_Candidate(where, prefix, plain, count) for prefix, count in hits.items()] or [
        _Candidate(where, "", plain, 0)
    ]


def _say_what_is_left(
    path: Path, chosen: _Candidate, found: Iterable[_Candidate], own: State, replaced: str | None
) -> None:
    """Name what was in the file and is not the network's."""
    others = dict.fromkeys(one.where for one in found if one.hits and one.where != chosen.where)
    left = Counter(
        f"{first}.*" if rest else first
        for key in chosen.state
        if not (_own_name(key, chosen.prefix) in own or _is_within(_own_name(key, chosen.prefix), replaced))
        for first, _, rest in [key.partition(".")]
    )
    names = [*others, *(f"{key} ({count} tensors)" if count > 1 else key for key, count in left.items())]
    if names := list(filter(None, names)):
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        under = f" (which is under {chosen.title})" if chosen.title else ""
        named = ", ".join(names[:MOST_NAMED])
        _warn(f"model.weights={path}: left out, as it is not the network's{under}: {named}{more}")


@cache
def _warn(text: str) -> None:
    """Say something once: a file is read when it is checked, and again when it is used."""
    LOG.warning(text)


def _own_name(key: str, prefix: str) -> str:
    """A name without the prefix; empty where it has another."""
    return key[len(prefix) :] if key.startswith(prefix) else ""


def _is_within(key: str, module: str | None) -> bool:
    return module is not None and key.startswith(f"{module}.")


def _with_shape(key: str, state: dict[str, Tensor]) -> str:
    return f"{key} {tuple(state[key].shape)}"
