"""Bringing mini-batches to a GPU while it computes. Trainer ranks and the local run.

A worker pins the tensors of a batch as soon as it is prepared (`pinned`); the trainer starts their
copy on a stream of its own, two batches ahead of the one that is computed (`feed`). PyTorch's
allocator of pinned memory uses a block again when its copy is over, so that the blocks form a ring.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distsage.train.batches import Batch

_AHEAD = 2
"""Batches whose copies are under way while one is computed."""


def pinned(batch: Batch) -> Batch:
    """The batch in pinned memory, from which a GPU copies by itself."""
    result: Batch = _map_tensors(batch, lambda t: t if t.is_cuda else t.pin_memory())
    return result


def feed(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches on the device that computes, in order; on a CPU as they are."""
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)
    under_way: deque[tuple[Batch, torch.cuda.Event]] = deque()
    for batch in batches:
        with torch.cuda.stream(stream):
            moved = _map_tensors(batch, lambda t: t.to(device, non_blocking=True))
            under_way.append((moved, stream.record_event()))
        if len(under_way) > _AHEAD:
            yield _arrived(*under_way.popleft())
    while under_way:
        yield _arrived(*under_way.popleft())


def _arrived(batch: Batch, copied: torch.cuda.Event) -> Batch:
    """Have the stream that computes wait for a batch, and its memory wait for that stream."""
    stream = torch.cuda.current_stream()
    stream.wait_event(copied)

    def used_here(tensor: Tensor) -> Tensor:
        tensor.record_stream(stream)
        return tensor

    result: Batch = _map_tensors(batch, used_here)
    return result


def _map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same record with every tensor in it changed; arrays become tensors."""
    if isinstance(value, np.ndarray):
        return change(torch.from_numpy(value))
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_map_tensors(item, change) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value)]
        return replace(value, **{n: _map_tensors(getattr(value, n), change) for n in names})
    return value
