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
    CACHE_LINE,
    LANES,
    add16,
    add_scaled_rows,
    drop16,
    host_has,
    load16,
    load16_exactly,
    mark16,
    multiply_tile,
    positive16,
    prefetch_row,
    row,
    scale16,
    slot_row,
    store16,
    where_marked16,
    zeros16,
)

_AHEAD = 16
"""How many edges ahead rows are prefetched; 8 to 32 measure the same."""

ROWS = 64
"""Rows of a hidden layer at a time: one per bit of the numbers that say which elements count."""

_TILE_ROWS, _TILE_VECTORS = (12, 2) if host_has("avx512f") else (6, 1)
"""Size of a tile of a product, which stays in registers; AVX2 and NEON have fewer."""

TILE_COLUMNS = _TILE_VECTORS * LANES
"""The same in columns."""

_VECTOR = 4 * LANES
"""Bytes of a vector."""

_ACCUMULATORS = 8 if host_has("avx512f") else 6
"""Vectors that stay in registers while rows are added to them; AVX2 and NEON have fewer."""


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
    h: np.ndarray,
    marks: np.ndarray,
    bias: np.ndarray,
    threshold: int,
    scale: float,
    key: np.uint64,
    begin: int,
    end: int,
) -> None:
    """In place on rows [begin, end) of h: `max(h + bias, 0) * scale`, or 0 where it is dropped.

    Row i has the key `draw(key, i)` and an element is dropped when its hash (`drop16`) is below
    `threshold`. `distsage.train.layers` has the same as tensor operations, for other devices.

    Args:
        h: `[n, H]`.
        marks: uint64 `[ceil(n / 64), max(H, 16)]`, zeros; `marks[i // 64, c]` gets bit i % 64 where
            h[i, c] is not zero afterwards.
        bias: float32 `[1, H]`.
        threshold, scale, key: as above.
        begin, end: the rows; begin is a multiple of 64.
    """
    width = h.shape[1]
    threshold32 = np.uint32(threshold)
    scale32 = np.float32(scale)
    for i in range(begin, end):
        at = row(h, i)
        key_i = draw(key, i)
        tail = load16(h, at, width)  # read before the vector that it overlaps is overwritten
        for c in range(0, width, LANES):
            a = load16(h, at, c) if c + LANES < width else tail
            a = add16(a, load16(bias, row(bias, 0), c))
            a = drop16(scale16(positive16(a, a), scale32), key_i, h, c, threshold32)
            mark16(marks, i, h, c, a)
            store16(h, at, c, a)


@compiled
def hidden_layer_forward(
    h: np.ndarray,
    marks: np.ndarray,
    x: np.ndarray,
    indptr: np.ndarray,
    slots: np.ndarray,
    dst_slots: np.ndarray,
    own: np.ndarray,
    cached: np.ndarray,
    missed: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    threshold: int,
    scale: float,
    key: np.uint64,
    begin: int,
    end: int,
) -> None:
    """Rows [begin, end) of `relu_dropout(x weight' + bias)`, in float32.

    A tile of the product is as large as the registers can hold; ReLU and dropout get it from the
    first-level cache, so that the product itself is never in memory. In layer 1 a few rows of x are
    gathered at a time, and while their products are computed, the memory delivers what the next
    ones are gathered from.

    Args:
        h: `[n, H]`, to fill.
        marks, threshold, scale, key, begin, end: as in `relu_dropout`.
        x: float32 `[n, K]`; to fill, where there are dst_slots.
        indptr, slots, dst_slots, own, cached, missed: what x is gathered from, as in
            `gather_self_and_mean`; no dst_slots where x is given.
        weight: float32 `[panels, K, TILE_COLUMNS]`: the transposed weight, TILE_COLUMNS of its
            columns in each panel; the last one ends with the last column.
        bias: float32 `[1, H]`.
    """
    width = h.shape[1]
    length = x.shape[1]
    threshold32 = np.uint32(threshold)
    scale32 = np.float32(scale)
    gathers = len(dst_slots) > 0
    tile = _aligned(_TILE_ROWS * TILE_COLUMNS).reshape(_TILE_ROWS, TILE_COLUMNS)[:, :width]
    keys = np.empty(_TILE_ROWS, np.uint64)
    ahead = np.empty(len(weight) * length, np.int64)
    lines = ahead.reshape(len(weight), length)
    out = row(tile, 0)
    tiles = end - begin >= _TILE_ROWS
    first = begin
    while first < end:
        rows = _TILE_ROWS if tiles else 1
        first = min(first, end - rows)  # a few rows twice, so that the last tile is a whole one
        if gathers:
            gather_self_and_mean(
                x, indptr, slots, dst_slots, own, cached, missed, first, first + rows
            )
        ahead[:] = row(x, first)
        count = 0
        for i in range(first + rows, min(first + rows + _TILE_ROWS, end)):
            if gathers:
                size = own.shape[1] * own.itemsize
                source = slot_row(own, cached, missed, dst_slots[i])
                count = _ask_ahead(ahead, count, source, size)
                for e in range(indptr[i], indptr[i + 1]):
                    source = slot_row(own, cached, missed, slots[e])
                    count = _ask_ahead(ahead, count, source, size)
            else:
                count = _ask_ahead(ahead, count, row(x, i), 4 * length)
        for r in range(rows):
            keys[r] = draw(key, first + r)
        for panel in range(len(weight)):
            a = row(x, first)
            b = row(weight[panel], 0)
            asked = row(lines, panel)
            if rows == 1:
                multiply_tile(out, a, 4 * length, b, length, asked, 1, _TILE_VECTORS)
            else:
                multiply_tile(out, a, 4 * length, b, length, asked, _TILE_ROWS, _TILE_VECTORS)
            column = max(0, min(panel * TILE_COLUMNS, width - TILE_COLUMNS))
            for r in range(rows):
                i = first + r
                for c in range(0, tile.shape[1], LANES):
                    at = column + c
                    z = add16(load16(tile, row(tile, r), c), load16(bias, row(bias, 0), at))
                    z = drop16(scale16(positive16(z, z), scale32), keys[r], h, at, threshold32)
                    mark16(marks, i, h, at, z)
                    store16(h, row(h, i), at, z)
        first += rows


@compiled
def _ask_ahead(ahead: np.ndarray, count: int, address: int, size: int) -> int:
    """Note pairs of cache lines that hold `size` bytes, while there is room; return the count."""
    first = address & -CACHE_LINE
    while first < address + size and count < ahead.size:
        ahead[count] = first
        first += 2 * CACHE_LINE
        count += 1
    return count


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
    grad_weight: np.ndarray,
    grad_bias: np.ndarray,
    grad_z: np.ndarray,
    x: np.ndarray,
    marks: np.ndarray,
    grad_out: np.ndarray,
    begin_of: np.ndarray,
    dst: np.ndarray,
    weight: np.ndarray,
    scale: float,
    begin: int,
    end: int,
) -> None:
    """Gradients of a hidden layer from the rows [begin, end), through mean, dropout and ReLU.

    The gradient before ReLU is zero wherever ReLU or dropout has set h to zero, which with dropout
    of a half is three elements in four. So the product with x, which is the gradient of the weight,
    multiplies the other elements only.

    Args:
        grad_weight: float32 `[H, whole vectors >= width of x]`, to add to.
        grad_bias: float32 `[H]`, to add to.
        grad_z: `[num_src, H]`, to fill with the gradient before ReLU, or `[0, H]`.
        x: the layer's input `[num_src, .]`.
        marks: uint64 `[ceil(num_src / 64), max(H, 16)]`, where the activations are not zero, as in
            `relu_dropout`.
        grad_out: `[num_dst, 2H]`.
        begin_of, dst, weight: from `transpose`.
        scale: what dropout multiplied the kept elements by.
        begin, end: the rows; begin is a multiple of 64.
    """
    width = len(grad_bias)
    grad_self = grad_out[:, :width]
    grad_mean = grad_out[:, width:]
    scale32 = np.float32(scale)
    z = np.empty((ROWS, width + LANES), np.float32)[:, :width]
    sums = np.empty((1, width), np.float32)
    panel = _aligned(ROWS * _ACCUMULATORS * LANES)
    for first_row in range(begin, end, ROWS):
        rows = min(ROWS, end - first_row)
        for r in range(rows):
            s = first_row + r
            if s + ROWS < end:
                prefetch_row(x, row(x, s + ROWS))
            first = begin_of[s]
            last = begin_of[s + 1]
            to = row(z, r)
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
                a0 = where_marked16(marks, s, z, c, scale16(a0, scale32))
                a1 = where_marked16(marks, s, z, c + LANES, scale16(a1, scale32))
                a2 = where_marked16(marks, s, z, c + 2 * LANES, scale16(a2, scale32))
                a3 = where_marked16(marks, s, z, c + 3 * LANES, scale16(a3, scale32))
                store16(z, to, c, a0)
                store16(z, to, c + LANES, a1)
                store16(z, to, c + 2 * LANES, a2)
                store16(z, to, c + 3 * LANES, a3)
            if len(grad_z):
                to = row(grad_z, s)
                for c in range(0, width, LANES):
                    store16(grad_z, to, c, load16(z, row(z, r), c))
        column_sums(sums, z, rows)
        for j in range(width):
            grad_bias[j] += sums[0, j]
        _add_outer_products(grad_weight, panel, marks[first_row // ROWS], z, x, first_row, rows)


@compiled
def _add_outer_products(
    grad_weight: np.ndarray,
    panel: np.ndarray,
    marks: np.ndarray,
    z: np.ndarray,
    x: np.ndarray,
    first_row: int,
    rows: int,
) -> None:
    """`grad_weight[j] += sum of z[r, j] * x[first_row + r]` over the bits r of marks[j]."""
    vectors = grad_weight.shape[1] // LANES
    panels = (vectors + _ACCUMULATORS - 1) // _ACCUMULATORS
    size = z.strides[0]
    for p in range(panels):
        at = vectors * p // panels
        count = vectors * (p + 1) // panels - at
        base = _pack(panel, x, first_row, rows, at, count)
        for j in range(z.shape[1]):
            to = row(grad_weight, j) + at * _VECTOR
            scales = row(z, 0) + 4 * j
            chosen = marks[j]
            if count == 8:
                add_scaled_rows(to, base, 8 * _VECTOR, scales, size, chosen, 8)
            elif count == 7:
                add_scaled_rows(to, base, 7 * _VECTOR, scales, size, chosen, 7)
            elif count == 6:
                add_scaled_rows(to, base, 6 * _VECTOR, scales, size, chosen, 6)
            elif count == 5:
                add_scaled_rows(to, base, 5 * _VECTOR, scales, size, chosen, 5)
            elif count == 4:
                add_scaled_rows(to, base, 4 * _VECTOR, scales, size, chosen, 4)
            elif count == 3:
                add_scaled_rows(to, base, 3 * _VECTOR, scales, size, chosen, 3)
            elif count == 2:
                add_scaled_rows(to, base, 2 * _VECTOR, scales, size, chosen, 2)
            else:
                add_scaled_rows(to, base, _VECTOR, scales, size, chosen, 1)


@compiled
def _pack(panel: np.ndarray, x: np.ndarray, first_row: int, rows: int, at: int, count: int) -> int:
    """Copy `count` vectors of each row, from vector `at` on, to panel; return its address.

    There rows are aligned, float32, zero beyond the width of x, and in the first-level cache.
    """
    to = panel[: rows * count * LANES].reshape(rows, count * LANES)
    for r in range(rows):
        source = row(x, first_row + r)
        for i in range(count):
            c = (at + i) * LANES
            if c + LANES <= x.shape[1]:
                store16(to, row(to, r), i * LANES, load16(x, source, c))
            else:
                store16(to, row(to, r), i * LANES, load16_exactly(x, source, c))
    return row(to, 0)


@compiled
def _aligned(count: int) -> np.ndarray:
    """Memory for float32 `[count]` that begins with a cache line."""
    memory = np.empty((1, count + LANES), np.float32)
    skip = -row(memory, 0) % _VECTOR // 4
    return memory[0, skip : skip + count]


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
