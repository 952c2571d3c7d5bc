"""What is read for the next batch while a GPU computes this one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

Wanted = TypeVar("Wanted")
Fetched = TypeVar("Fetched")
CPU = torch.device("cpu")


def prefetched(
    wanted: Iterable[Wanted], fetch: Callable[[Wanted], Fetched], device: torch.device
) -> Iterator[tuple[Wanted, Fetched]]:
    """Each thing that is wanted, in order, with what is fetched of it.

    On a GPU the next one is fetched while the caller has this one: by a thread, which reads,
    and on a stream, which copies. On a CPU each is fetched when it is asked for.

    Args:
        wanted: what to fetch; taken from one at a time.
        fetch: tensors on the device, in tuples, of one of these.
        device: on which the caller computes.
    """
    if device.type != "cuda":
        for one in wanted:
            yield one, fetch(one)
        return
    stream = torch.cuda.Stream(device)
    with ThreadPoolExecutor(1) as reader:
        before: tuple[Wanted, Future[tuple[Fetched, torch.cuda.Event]]] | None = None
        for one in wanted:
            coming = reader.submit(_copied, fetch, one, stream)
            if before is not None:
                yield before[0], _arrived(*before[1].result(), device)
            before = (one, coming)
        if before is not None:
            yield before[0], _arrived(*before[1].result(), device)


def moved(values: Tensor, device: torch.device) -> Tensor:
    """The values on a device; nothing waits for a copy to a GPU, which goes through pinned memory."""
    if device.type != "cuda" or values.device.type == "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def _copied(
    fetch: Callable[[Wanted], Fetched], one: Wanted, stream: torch.cuda.Stream
) -> tuple[Fetched, torch.cuda.Event]:
    """What is fetched on a stream, and when it is there."""
    with torch.cuda.stream(stream):
        found = fetch(one)
        return found, stream.record_event()


def _arrived(found: Fetched, event: torch.cuda.Event, device: torch.device) -> Fetched:
    """What was fetched, once the caller's stream may use it; its memory is not given to others before that has."""
    current = torch.cuda.current_stream(device)
    current.wait_event(event)
    for tensor in _on_gpu(found):
        tensor.record_stream(current)
    return found


def _on_gpu(found: Any) -> Iterator[Tensor]:
    """The tensors on a GPU in nested tuples."""
    if isinstance(found, Tensor):
        if found.is_cuda:
            yield found
    elif isinstance(found, tuple):
        for part in found:
            yield from _on_gpu(part)
