"""Reading rows of features: of each node, and the mean of its neighbours'.

Runs on trainer ranks and in the local run, on any number of threads at once. Arrays are as
`distsage.kernels.simd` has them. Rows are prefetched, since they lie anywhere in memory and that is
what these loops wait for.
"""

from typing import NamedTuple

import numpy as np

from distsage.kernels.compiled import compiled
from distsage.kernels.simd import (
    LANES,
    add16,
    load16,
    prefetch_row,
    row,
    scale16,
    slot_row,
    store16,
    zeros16,
)

_AHEAD = 16
"""How many edges ahead rows are prefetched; 8 to 32 measure the same."""


class Tables(NamedTuple):
    """Three tables `[., F]` of one type; slots count through them in this order."""

    own: np.ndarray
    cached: np.ndarray
    missed: np.ndarray


class Edges(NamedTuple):
    """The edges of a layer, by destination.

    Attributes:
        indptr: int64 `[n + 1]`; destination i has the edges [indptr[i], indptr[i + 1]).
        slots: integer `[nnz]`, the slot of each edge's source.
        dst_slots: integer `[n]`, the slot of each destination; empty where only means are asked
            for.
    """

    indptr: np.ndarray
    slots: np.ndarray
    dst_slots: np.ndarray


@compiled
def gather_self_and_mean(
    out: np.ndarray, edges: Edges, tables: Tables, begin: int, end: int
) -> None:
    """Rows [begin, end) of `out[i] = [x(dst i) | mean of x over i's edges]`, or of the means alone.

    Destinations one after the other, 64 columns at a time, and for these all edges: the sums stay
    in registers. Waits for memory, where the rows are not in a cache.

    Args:
        out: `[n, 2F]`, or `[n, F]` where there are no dst_slots. Sums are float32; the mean of no
            edges is 0.
        edges, tables: where the rows are.
        begin, end: the destinations.
    """
    indptr, slots, dst_slots = edges
    own, cached, missed = tables
    width = own.shape[1]
    with_self = len(dst_slots) > 0
    out_self = out[:, :width]
    out_mean = out[:, width if with_self else 0 :]
    last_edge = indptr[end]
    for i in range(begin, end):
        first = indptr[i]
        last = indptr[i + 1]
        for e in range(min(first + _AHEAD, last_edge), min(last + _AHEAD, last_edge)):
            prefetch_row(own, slot_row(own, cached, missed, slots[e]))
        if with_self:
            if i + 2 < end:
                prefetch_row(own, slot_row(own, cached, missed, dst_slots[i + 2]))
            source = slot_row(own, cached, missed, dst_slots[i])
            to = row(out_self, i)
            for c in range(0, width, LANES):
                store16(out_self, to, c, load16(own, source, c))
        share = np.float32(1) / np.float32(max(last - first, 1))
        to = row(out_mean, i)
        for c in range(0, width, 4 * LANES):
            a0 = zeros16()
            a1 = zeros16()
            a2 = zeros16()
            a3 = zeros16()
            for e in range(first, last):
                source = slot_row(own, cached, missed, slots[e])
                a0 = add16(a0, load16(own, source, c))
                a1 = add16(a1, load16(own, source, c + LANES))
                a2 = add16(a2, load16(own, source, c + 2 * LANES))
                a3 = add16(a3, load16(own, source, c + 3 * LANES))
            store16(out_mean, to, c, scale16(a0, share))
            store16(out_mean, to, c + LANES, scale16(a1, share))
            store16(out_mean, to, c + 2 * LANES, scale16(a2, share))
            store16(out_mean, to, c + 3 * LANES, scale16(a3, share))


@compiled
def gather(out: np.ndarray, slots: np.ndarray, tables: Tables) -> None:
    """`out[i]` = the row that slots[i] leads to.

    One row after the other; waits for memory.

    Args:
        out: `[n, F]`, of the tables' type.
        slots: integer `[n]`.
        tables: where the rows are.
    """
    own, cached, missed = tables
    width = own.shape[1]
    for i in range(len(slots)):
        if i + _AHEAD < len(slots):
            prefetch_row(own, slot_row(own, cached, missed, slots[i + _AHEAD]))
        source = slot_row(own, cached, missed, slots[i])
        to = row(out, i)
        for c in range(0, width, LANES):
            store16(out, to, c, load16(own, source, c))
