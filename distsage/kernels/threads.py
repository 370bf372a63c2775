"""How many threads a process computes with, and how they share work. Trainer ranks, local run.

One budget counts for all: kernels run on as many threads as it has, and PyTorch computes in the
thread that calls it (`distsage.model.backend`), so that no pool of another library competes for
the same cores. Threads claim pieces of work from a common counter until none is left: one that
starts late, or whose core is busy with something else, leaves more to the others, and none waits
for a fixed share of another.
"""

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import numpy as np

from distsage.limits import usable_cores

Item = TypeVar("Item")
T = TypeVar("T")


def budget() -> int:
    """Threads that this process may compute with: OMP_NUM_THREADS, or the cores that it may use."""
    stated = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return max(1, int(stated)) if stated.isdecimal() else _cores()


@cache
def _cores() -> int:
    """Found once: it takes reading files of /proc, and a step asks some twenty times."""
    return usable_cores()


def share(work: Callable[[], None], pieces: int) -> None:
    """Run `work` in this thread and in others, as far as the budget goes; blocks until all is done.

    Args:
        work: claims pieces until none is left; releases the GIL while it works on one.
        pieces: how many there are; no more threads than that are asked.

    Raises:
        Exception: what `work` raised in any thread.
    """
    pool = _pool(budget())
    helpers = [pool.submit(work) for _ in range(min(budget(), pieces) - 1)]
    try:
        work()
    finally:
        # A helper that has not begun finds nothing left to do and need not be waited for.
        begun = [helper for helper in helpers if not helper.cancel()]
    for helper in begun:
        helper.result()


def share_rows(work: Callable[[int, int], None], count: int, step: int) -> None:
    """Run `work(begin, end)` on pieces of [0, count), `step` rows each, in several threads."""
    begins = itertools.count(0, step)

    def claim_rows() -> None:
        while (begin := next(begins)) < count:
            work(begin, min(begin + step, count))

    share(claim_rows, -(-count // step))


def each_in_threads(
    work: Callable[[Item], T], items: Sequence[Item], most: int | None = None
) -> list[T]:
    """What `work` gives for each item, in their order; several threads take one item after another.

    The threads end with this call, also after a failure, as soon as the items are done that they
    have begun.

    Args:
        work: releases the GIL for most of its time.
        items: any number.
        most: of threads, as far as the budget goes; 1 is this thread.

    Raises:
        Exception: what `work` raised, for the first of several items.
    """
    threads = min(budget(), len(items), len(items) if most is None else most)
    if threads <= 1:
        return [work(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, items))


def piece(count: int, unit: int) -> int:
    """Rows of one piece, a multiple of `unit`: a few pieces for each thread; all rows for one."""
    pieces = 1 if budget() == 1 else _PIECES_PER_THREAD * budget()
    return max(1, -(-count // (pieces * unit))) * unit


_PIECES_PER_THREAD = 4
"""So that the last piece, which others may have to wait for, is short."""


def new_counter() -> np.ndarray:
    """What threads claim pieces from: int64 `[1]`, at zero."""
    return np.zeros(1, np.int64)


_beginnings: list[Callable[[], None]] = []


def begin_with(action: Callable[[], None]) -> None:
    """Have every helper thread begin with an action: libraries keep settings for each thread.

    Comes before the first `share`.
    """
    _beginnings.append(action)


def _begin() -> None:
    for action in _beginnings:
        action()


@cache
def _pool(size: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(size, "kernel", initializer=_begin)
