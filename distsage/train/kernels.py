"""Loops over sampled edges that PyTorch has no fast form of, for the CPU, compiled by numba.

Runs on trainer ranks and in the local run. All take numpy arrays (views of tensors; bfloat16 as
uint16, float16 as int16), release the GIL, and handle a range of rows, so that the callers in
`distsage.train.layers` can divide the work between threads. The inner loops take 64 columns at a
time, in four vectors.
"""

import numpy as np

from distsage.train.compiled import compiled
from distsage.train.rng import draw
from distsage.train.vectors import (
    LANES,
    add16,
    drop16,
    load16,
    positive16,
    prefetch_row,
    row,
    scale16,
    slot_row,
    store16,
    zeros16,
)

_AHEAD = 16
"""How many edges ahead rows are prefetched; 8 to 32 measure the same."""


@compiled
def gather_self_and_mean(
    out: np.ndarray,
    indptr: np.ndarray,
    slots: np.ndarray,
    dst_slots: np.ndarray,
    own: np.ndarray,
    cached: np.ndarray,
    missed: np.ndarray,
    begin: int,
    end: int,
) -> None:
    """Rows [begin, end) of layer 1's input: `out[i] = [x(dst i) | mean of x over i's edges]`.

    Where there are no dst_slots, the means alone, and out is `[n, F]`.

    Slots count through the rows of `own`, then `cached`, then `missed`, `[., F]` each; `out` is
    `[n, 2F]`. Sums are float32. The mean of no edges is 0.
    """
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
def gather(
    out: np.ndarray,
    slots: np.ndarray,
    own: np.ndarray,
    cached: np.ndarray,
    missed: np.ndarray,
) -> None:
    """`out[i]` = the row that slots[i] leads to; slots count as in `gather_self_and_mean`."""
    width = own.shape[1]
    for i in range(len(slots)):
        if i + _AHEAD < len(slots):
            prefetch_row(own, slot_row(own, cached, missed, slots[i + _AHEAD]))
        source = slot_row(own, cached, missed, slots[i])
        to = row(out, i)
        for c in range(0, width, LANES):
            store16(out, to, c, load16(own, source, c))


@compiled
def relu_dropout(
    h: np.ndarray, threshold: int, scale: float, key: np.uint64, begin: int, end: int
) -> None:
    """In place on rows [begin, end) of h: `max(h, 0) * scale`, or 0 where the hash says drop.

    Row i has the key `draw(key, i)` and an element is dropped when its hash (`drop16`) is below
    `threshold`. `distsage.train.layers` has the same as tensor operations, for other devices.
    """
    width = h.shape[1]
    threshold32 = np.uint32(threshold)
    scale32 = np.float32(scale)
    for i in range(begin, end):
        at = row(h, i)
        key_i = draw(key, i)
        tail = load16(h, at, width)  # read before the vector that it overlaps is overwritten
        for c in range(0, width - LANES, LANES):
            a = load16(h, at, c)
            a = drop16(scale16(positive16(a, a), scale32), key_i, h, c, threshold32)
            store16(h, at, c, a)
        a = drop16(scale16(positive16(tail, tail), scale32), key_i, h, width, threshold32)
        store16(h, at, width, a)


@compiled
def transpose(
    indptr: np.ndarray, indices: np.ndarray, num_src: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A block's edges by source.

    Returns:
        (int64 `[num_src + 1]`, int32 `[nnz]`, float32 `[nnz]`): where the edges of each source
        begin, their destinations in ascending order, and 1 / degree of each destination.
    """
    begin = np.zeros(num_src + 2, np.int64)
    for e in range(len(indices)):
        begin[indices[e] + 2] += 1
    for s in range(num_src):
        begin[s + 2] += begin[s + 1]
    dst = np.empty(len(indices), np.int32)
    weight = np.empty(len(indices), np.float32)
    for i in range(len(indptr) - 1):
        for e in range(indptr[i], indptr[i + 1]):
            at = begin[indices[e] + 1]
            begin[indices[e] + 1] = at + 1
            dst[at] = i
            weight[at] = np.float32(1) / np.float32(indptr[i + 1] - indptr[i])
    return begin[:-1], dst, weight


@compiled
def hidden_layer_backward(
    grad_z: np.ndarray,
    h: np.ndarray,
    grad_out: np.ndarray,
    begin_of: np.ndarray,
    dst: np.ndarray,
    weight: np.ndarray,
    scale: float,
    offset: int,
    begin: int,
    end: int,
) -> None:
    """Gradient before ReLU of the rows [begin, end), through mean, dropout and ReLU in one pass.

    Args:
        grad_z: `[., H]`, to fill; its row 0 is for row `offset`.
        h: the activations `[num_src, H]`; gradient passes where they are positive.
        grad_out: `[num_dst, 2H]`.
        begin_of, dst, weight: from `transpose`.
        scale: what dropout multiplied the kept elements by.
        offset, begin, end: the rows.
    """
    width = h.shape[1]
    grad_self = grad_out[:, :width]
    grad_mean = grad_out[:, width:]
    scale32 = np.float32(scale)
    for s in range(begin, end):
        first = begin_of[s]
        last = begin_of[s + 1]
        gate = row(h, s)
        to = row(grad_z, s - offset)
        for c in range(0, width, 4 * LANES):
            if s < len(grad_out):
                source = row(grad_self, s)
                a0 = load16(grad_self, source, c)
                a1 = load16(grad_self, source, c + LANES)
                a2 = load16(grad_self, source, c + 2 * LANES)
                a3 = load16(grad_self, source, c + 3 * LANES)
            else:
                a0 = zeros16()
                a1 = zeros16()
                a2 = zeros16()
                a3 = zeros16()
            for e in range(first, last):
                source = row(grad_mean, dst[e])
                w = weight[e]
                a0 = add16(a0, scale16(load16(grad_mean, source, c), w))
                a1 = add16(a1, scale16(load16(grad_mean, source, c + LANES), w))
                a2 = add16(a2, scale16(load16(grad_mean, source, c + 2 * LANES), w))
                a3 = add16(a3, scale16(load16(grad_mean, source, c + 3 * LANES), w))
            a0 = positive16(scale16(a0, scale32), load16(h, gate, c))
            a1 = positive16(scale16(a1, scale32), load16(h, gate, c + LANES))
            a2 = positive16(scale16(a2, scale32), load16(h, gate, c + 2 * LANES))
            a3 = positive16(scale16(a3, scale32), load16(h, gate, c + 3 * LANES))
            store16(grad_z, to, c, a0)
            store16(grad_z, to, c + LANES, a1)
            store16(grad_z, to, c + 2 * LANES, a2)
            store16(grad_z, to, c + 3 * LANES, a3)


@compiled
def column_sums(out: np.ndarray, rows: np.ndarray, count: int) -> None:
    """Fill out, float32 `[1, H]`, with the sum of the first rows of `[., H]`."""
    width = rows.shape[1]
    to = row(out, 0)
    for c in range(0, width, 4 * LANES):
        a0 = zeros16()
        a1 = zeros16()
        a2 = zeros16()
        a3 = zeros16()
        for s in range(count):
            source = row(rows, s)
            a0 = add16(a0, load16(rows, source, c))
            a1 = add16(a1, load16(rows, source, c + LANES))
            a2 = add16(a2, load16(rows, source, c + 2 * LANES))
            a3 = add16(a3, load16(rows, source, c + 3 * LANES))
        store16(out, to, c, a0)
        store16(out, to, c + LANES, a1)
        store16(out, to, c + 2 * LANES, a2)
        store16(out, to, c + 3 * LANES, a3)
