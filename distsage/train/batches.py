"""Mini-batches as a step takes them, and workers that prepare the next ones.

Runs on trainer ranks and in the local run.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from distsage.features.rows import RowFinder
from distsage.features.slots import InputLayer, MultipliedInput
from distsage.sampling.batch import Block, MiniBatch
from distsage.sampling.seeds import Step

Task = TypeVar("Task")
Prepared = TypeVar("Prepared")

# How many batches each worker may be ahead of the one that is computed; bounds their memory.
_AHEAD = 2


@dataclass(frozen=True)
class Batch:
    """What one step computes on.

    Attributes:
        inputs: layer 1.
        blocks: layers 2..L.
        key: dropout stream.
        labels: of the seed nodes, int64 `[B]` or float32 `[B, C]`.
        global_size: seed nodes of this step over all trainers.
        counters: what its preparation cost, by name; added up over an epoch.
    """

    inputs: InputLayer | MultipliedInput
    blocks: tuple[Block, ...]
    key: np.uint64
    labels: Tensor
    global_size: int
    counters: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Labels:
    """Labels of consecutive nodes.

    Attributes:
        first_gid: the first node's.
        values: int64 `[n]` or float32 `[n, C]`.
    """

    first_gid: int
    values: Tensor


def put_together(step: Step, sampled: MiniBatch, finder: RowFinder, labels: Labels) -> Batch:
    """Make a batch of what was sampled for a step: its rows and its labels. Blocks on its rows."""
    started = time.perf_counter()
    inputs, rows = finder.input_layer(sampled)
    return Batch(
        inputs,
        sampled.blocks,
        sampled.key,
        labels.values[torch.from_numpy(step.seed_gid - labels.first_gid)],
        step.global_size,
        {
            "edges": sampled.num_edges,
            **rows,
            "fetch_seconds": time.perf_counter() - started,
        },
    )


def prepare_ahead(
    tasks: Iterable[Task],
    prepare: Callable[[Task], Prepared],
    workers: ThreadPoolExecutor | None,
    num_workers: int,
) -> Iterator[Prepared]:
    """Yield `prepare(task)` for every task, in order, while workers are ahead by a few.

    Blocks until the next is prepared, however long other hosts take for what it needs; the rank's
    watcher ends the job when nobody gets on.

    Args:
        tasks: what to prepare.
        prepare: runs in the workers, on several tasks at once.
        workers: threads; None prepares in line.
        num_workers: how many threads there are.

    Raises:
        Exception: what `prepare` raised, at the place of its task.
    """
    if workers is None:
        yield from map(prepare, tasks)
        return
    pending: deque[Future[Prepared]] = deque()
    remaining = iter(tasks)
    try:
        for task in remaining:
            pending.append(workers.submit(prepare, task))
            if len(pending) > _AHEAD * num_workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
